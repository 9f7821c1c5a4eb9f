"""The commands of `minires plot`: the curves of runs, and what a trained network sees."""
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from minires.commands.options import (
    CHECKPOINT,
    Data,
    DataDir,
    Mean,
    Model,
    Records,
    Shortcut,
    Std,
    Stem,
    Threads,
    require_picture,
    use_threads,
)
from minires.errors import UserError

FIRST_IMAGES = 6  # of the test set, where nobody chooses
DRAWN = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


class _CurvesByDefault(TyperGroup):
    """`minires plot RUN ...` is `minires plot curves RUN ...`."""

    def parse_args(self, context, arguments):
        if not arguments or arguments[0] not in (*self.commands, "--help"):
            arguments = ["curves", *arguments]
        return super().parse_args(context, arguments)


plot = typer.Typer(cls=_CurvesByDefault, help="Draw pictures of runs and networks. `minires plot RUN ...` draws the curves "
                                              "of runs (a folder named like a command: ./filters).")

Checkpoint = Annotated[Path, typer.Argument(help=CHECKPOINT)]
Pictures = Annotated[list[Path] | None, typer.Option("--image", help="A picture file, instead of test images; several "
                                                                     "times for several.", show_default=False)]
Indices = Annotated[list[int] | None, typer.Option("--index", help="A test image by number; several times for several. "
                                                                   f"By default the first {FIRST_IMAGES}.",
                                                   show_default=False)]
ClassName = Annotated[str | None, typer.Option("--class", help="The class to ask about; by default the predicted one.",
                                               show_default=False)]


@plot.command()
def curves(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("comparison.png"),
):
    """Draw the curves of several runs into one picture."""
    from minires.plots import draw_comparison
    from minires.training.metrics import read_metrics

    require_picture(out)
    rows_of = {str(run): read_metrics(run / "metrics.jsonl") for run in runs}
    for name, rows in rows_of.items():
        if not rows:
            raise UserError(f"{name}/metrics.jsonl holds no epoch yet: there is nothing to draw")
        absent = [key for key in DRAWN if not all(key in row for row in rows)]
        if absent:
            raise UserError(f"{name}/metrics.jsonl has an epoch without {absent[0]}: expected what minires train writes")
    draw_comparison(rows_of, out)
    typer.echo(f"drew {len(rows_of)} {'run' if len(rows_of) == 1 else 'runs'} into {out}")


@plot.command()
def filters(
    checkpoint: Checkpoint, model: Model = None, shortcut: Shortcut = None, stem: Stem = None, mean: Mean = None,
    std: Std = None, out: Annotated[Path, typer.Option(help="The picture.")] = Path("filters.png"),
):
    """Draw the filters of the first convolution."""
    from minires.plots.network import draw_filters

    require_picture(out)
    network, _ = _open(checkpoint, model, shortcut, stem, mean, std)
    weight = next(parameter.data for parameter in network.parameters())
    draw_filters(weight, out)
    typer.echo(f"drew {weight.shape[-1]} filters into {out}")


@plot.command()
def features(
    checkpoint: Checkpoint,
    layer: Annotated[str, typer.Option(help="The layer's name, as in minires summary: conv1, layer1.0 ..")],
    model: Model = None, shortcut: Shortcut = None, stem: Stem = None, mean: Mean = None, std: Std = None,
    image: Pictures = None, index: Indices = None, dataset: Data = None, data_dir: DataDir = None, records: Records = None,
    threads: Threads = None, out: Annotated[Path, typer.Option(help="The picture.")] = Path("features.png"),
):
    """Draw what a layer makes of one image, channel by channel."""
    from minires.plots.network import draw_features
    from minires.study.seeing import feature_maps

    require_picture(out)
    use_threads(threads)
    network, card = _open(checkpoint, model, shortcut, stem, mean, std)
    pixels, x = _images(card, image, index if image else index or [0], dataset, data_dir, records)
    if len(pixels) > 1:
        raise UserError(f"features are drawn of one image, got {len(pixels)}: name one with --image or --index")
    maps = feature_maps(network, x, layer)[0]
    draw_features(pixels[0], maps, layer, out)
    typer.echo(f"drew {min(maps.shape[-1], 64)} of {maps.shape[-1]} channels of {layer} into {out}")


@plot.command()
def gradcam(
    checkpoint: Checkpoint,
    layer: Annotated[list[str] | None, typer.Option(help="A layer's name; several times for several. By default the end of "
                                                         "each stage.", show_default=False)] = None,
    class_name: ClassName = None, model: Model = None, shortcut: Shortcut = None, stem: Stem = None, mean: Mean = None,
    std: Std = None, image: Pictures = None, index: Indices = None, dataset: Data = None, data_dir: DataDir = None,
    records: Records = None, threads: Threads = None,
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("gradcam.png"),
):
    """Draw where a layer sees the evidence for a class (Grad-CAM)."""
    from minires.plots.network import draw_grad_cam
    from minires.study.seeing import grad_cam

    require_picture(out)
    use_threads(threads)
    network, card = _open(checkpoint, model, shortcut, stem, mean, std)
    pixels, x = _images(card, image, index, dataset, data_dir, records)
    target, titles = _asked(network, card, x, class_name)
    names = layer or [name for name, _ in network.named_children() if name.startswith("layer")]
    draw_grad_cam(pixels, grad_cam(network, x, names, target), titles, out)
    typer.echo(f"drew Grad-CAM of {', '.join(names)} for {_count(pixels)} into {out}")


@plot.command()
def saliency(checkpoint: Checkpoint, class_name: ClassName = None, model: Model = None, shortcut: Shortcut = None,
             stem: Stem = None, mean: Mean = None, std: Std = None, image: Pictures = None, index: Indices = None,
             dataset: Data = None, data_dir: DataDir = None, records: Records = None, threads: Threads = None,
             out: Annotated[Path, typer.Option(help="The picture.")] = Path("saliency.png")):
    """Draw how much each pixel matters to a class: the gradient at the image, and gradient times input."""
    from minires.plots.network import draw_saliency
    from minires.study import seeing

    require_picture(out)
    use_threads(threads)
    network, card = _open(checkpoint, model, shortcut, stem, mean, std)
    pixels, x = _images(card, image, index, dataset, data_dir, records)
    target, titles = _asked(network, card, x, class_name)
    dx = seeing.input_gradient(network, x, target)
    draw_saliency(pixels, seeing.saliency(dx), seeing.gradient_times_input(dx, x), titles, out)
    typer.echo(f"drew the saliency of {_count(pixels)} into {out}")


@plot.command()
def confusion(
    checkpoint: Checkpoint,
    mistakes: Annotated[int, typer.Option(help="How many of the worst mistakes to show.", min=0, max=40)] = 20,
    model: Model = None, shortcut: Shortcut = None, stem: Stem = None, mean: Mean = None, std: Std = None,
    dataset: Data = None, data_dir: DataDir = None, records: Records = None, threads: Threads = None,
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("confusion.png"),
):
    """Draw the confusion matrix of an evaluation, and its worst mistakes."""
    import numpy as np

    from minires.evaluation import open_test_set
    from minires.plots.mistakes import draw_confusion
    from minires.study.seeing import classify, confusion_matrix, worst_mistakes

    require_picture(out)
    use_threads(threads)
    network, card = _open(checkpoint, model, shortcut, stem, mean, std)
    test = open_test_set(card, dataset, data_dir, records)
    probabilities, target = classify(network, card.loader(test))
    predicted = probabilities.argmax(1)
    matrix = confusion_matrix(target, predicted, card.num_classes)
    worst = [(test.images[place], test.classes[target[place]], test.classes[predicted[place]],
              probabilities[place, predicted[place]]) for place in worst_mistakes(probabilities, target, mistakes)]
    draw_confusion(matrix, test.classes, worst, out)
    typer.echo(f"accuracy {np.trace(matrix) / matrix.sum():.2%} of {matrix.sum():,} images; drew the confusion matrix and "
               f"the {len(worst)} worst mistakes into {out}")


@plot.command()
def landscape(
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoints of runs, as of a resnet and its plain twin.")],
    model: Model = None, shortcut: Shortcut = None, stem: Stem = None, mean: Mean = None, std: Std = None,
    dataset: Data = None, data_dir: DataDir = None, records: Records = None,
    images: Annotated[int, typer.Option(help="Training images to take the loss over, evenly spread.", min=1)] = 256,
    points: Annotated[int, typer.Option(help="Steps along a direction, for contours; curves get four times as many.",
                                        min=3, max=201)] = 17,
    span: Annotated[float, typer.Option(help="How far to go to either side, in units of each filter's norm.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the random directions.", min=0)] = 0,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("landscape.png"),
):
    """Draw slices of the loss around trained weights, along directions scaled to the filters."""
    import numpy as np
    from rich.console import Console
    from rich.progress import Progress

    from minires.plots.landscape import draw_landscapes
    from minires.study import landscape as slices

    use_threads(threads)
    require_picture(out)
    if not 0 < span < float("inf"):
        raise UserError(f"span {span} is not above 0: expected a number such as 1")
    points += 1 - points % 2  # odd, so that the weights themselves are among the points
    grid, line = (np.linspace(-span, span, count) for count in (points, 4 * points - 3))
    opened = [(str(path), *_open(path, model, shortcut, stem, mean, std)) for path in checkpoints]
    curves, surfaces, console = {}, {}, Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.file.isatty()) as bar:
        for name, network, card in opened:
            batches = _training_batches(card, images, dataset, data_dir, records)
            rng = np.random.default_rng(seed)
            directions = [slices.random_direction(network, rng) for _ in range(2)]
            task = bar.add_task(name, total=len(line) + len(grid) ** 2)
            curves[name] = slices.landscape(network, batches, line, directions[:1], lambda *_: bar.advance(task))  # noqa: B023
            surfaces[name] = slices.landscape(network, batches, grid, directions, lambda *_: bar.advance(task))  # noqa: B023
    draw_landscapes(curves, surfaces, out)
    for name, curve in curves.items():
        typer.echo(f"{name}: loss {curve.loss[len(line) // 2]:.4f} at the weights")
    typer.echo(f"drew {len(curves)} {'landscape' if len(curves) == 1 else 'landscapes'} into {out}")


def _open(checkpoint, model, shortcut, stem, mean, std):
    from minires.evaluation import open_checkpoint

    return open_checkpoint(checkpoint, model, shortcut, mean, std, stem)


def _images(card, files, indices, dataset, data_dir, records):
    """(pixels (N, H, W, 3) uint8, x standardised) of picture files, or of test images by number."""
    import numpy as np

    from minires.data import Standardise
    from minires.evaluation import open_test_set, read_image

    if files:
        given = [name for name, value in (("index", indices), ("dataset", dataset), ("data-dir", data_dir),
                                          ("records", records)) if value]
        if given:
            raise UserError(f"--image names the pictures: leave out --{given[0]}")
        pixels = np.stack([read_image(path, card.image_size)[0] for path in files])
    else:
        test = open_test_set(card, dataset, data_dir, records)
        indices = indices or list(range(min(FIRST_IMAGES, len(test))))
        outside = [number for number in indices if not 0 <= number < len(test)]
        if outside:
            raise UserError(f"there is no test image {outside[0]}: expected 0 to {len(test) - 1}")
        pixels = test.images[indices]
    return pixels, Standardise(card.mean, card.std)(pixels)


def _asked(network, card, x, class_name):
    """(target (N,), a title for each image): the class that was asked about, or the predicted ones; its probability."""
    import numpy as np

    from minires.study.seeing import classify

    probabilities, _ = classify(network, [(x, np.zeros(len(x), np.int64))])
    if class_name is not None and class_name not in card.classes:
        raise UserError(f"class {class_name!r} is unknown to this checkpoint: choose one of {', '.join(card.classes)}")
    target = probabilities.argmax(1) if class_name is None else np.full(len(x), card.classes.index(class_name))
    return target, [f"{card.classes[k]} {row[k]:.0%}" for k, row in zip(target, probabilities, strict=True)]


def _training_batches(card, count, dataset, data_dir, records):
    """A list of batches over `count` images, spread evenly over the training set (or the file of records)."""
    import numpy as np

    from minires.evaluation import open_data

    train = open_data(card, dataset, data_dir, records)[0]
    if len(train.classes) != card.num_classes:
        raise UserError(f"the checkpoint tells {card.num_classes} classes apart and the data has {len(train.classes)}: "
                        "take the data set it was trained for")
    places = np.linspace(0, len(train) - 1, min(count, len(train))).astype(int)
    return list(card.loader(train.subset(places)))


def _count(pixels):
    return "1 image" if len(pixels) == 1 else f"{len(pixels)} images"
