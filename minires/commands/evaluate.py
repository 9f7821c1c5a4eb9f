"""The command `minires eval`."""
from pathlib import Path
from typing import Annotated

import typer

from minires.commands.options import (
    CHECKPOINT,
    Data,
    DataDir,
    Device,
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

PRINTED = 20  # classes up to which the confusion matrix is printed


def evaluate(
    checkpoint: Annotated[Path, typer.Option(help=CHECKPOINT)],
    dataset: Data = None,
    data_dir: DataDir = None,
    records: Records = None,
    model: Model = None,
    shortcut: Shortcut = None,
    stem: Stem = None,
    mean: Mean = None,
    std: Std = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the confusion matrix into this PNG.",
                                                 show_default=False)] = None,
    tta: Annotated[str, typer.Option(help="Views that logits are averaged over: none, mirror, or crops (six passes)."
                                     )] = "none",
    threads: Threads = None,
    device: Device = "cpu",
):
    """Evaluate weights: accuracy with its 95 % interval, top-5, precision, recall, F1 of each class, confusion matrix."""
    from minires.backends import require_device
    from minires.evaluation import evaluated, open_checkpoint, open_test_set
    from minires.losses import CrossEntropyLoss

    use_threads(threads)
    require_device(device)
    if picture is not None:
        require_picture(picture, "--picture")
    network, card = open_checkpoint(checkpoint, model, shortcut, mean, std, stem)
    test = open_test_set(card, dataset, data_dir, records)
    result = evaluated(network.to(device), CrossEntropyLoss(), card.loader(test), device, tta)
    _print_classes(result, test.classes)
    if len(test.classes) <= PRINTED:
        typer.echo("\nconfusion matrix: a row for each true class, a column for each predicted one")
        _print_confusion(result.confusion, test.classes)
    typer.echo(f"\nloss {result.loss:.4f}")
    if len(test.classes) > 5:
        typer.echo(f"top-5 accuracy {result.top5:.2%} ({result.found:,} of {result.images:,})")
    low, high = result.interval
    typer.echo(f"accuracy {result.accuracy:.2%} ({result.correct:,} of {result.images:,}), 95 % interval {low:.2%} to "
               f"{high:.2%}")
    if picture is not None:
        from minires.plots.mistakes import draw_confusion

        draw_confusion(result.confusion, test.classes, [], picture)
        typer.echo(f"drew the confusion matrix into {picture}")


def _print_classes(result, classes):
    import numpy as np

    rows = [("class", "precision", "recall", "F1", "images")]
    for name, *fractions, images in zip(classes, result.precision, result.recall, result.f1, result.confusion.sum(1),
                                        strict=True):
        rows.append((name, *(_percent(fraction) for fraction in fractions), f"{images:,}"))
    means = ("mean of the classes", *(_percent(np.nanmean(values)) if np.isfinite(values).any() else "none"
                                      for values in (result.precision, result.recall, result.f1)), f"{result.images:,}")
    _print([*rows, means])


def _print_confusion(confusion, classes):
    numbers = [str(number) for number in range(1, len(classes) + 1)]  # columns are too narrow for names
    _print([("", *numbers), *((f"{number} {name}", *(f"{count:,}" if count else "." for count in row))
                              for number, name, row in zip(numbers, classes, confusion, strict=True))])


def _percent(fraction):
    return f"{fraction:.2%}" if fraction == fraction else "none"


def _print(rows):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.rjust(width) if place else cell.ljust(width)
                             for place, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip())
