"""The command `minires predict`."""
from pathlib import Path
from typing import Annotated

import typer

from minires.commands.options import CHECKPOINT, Mean, Model, Shortcut, Std, Stem, Threads, use_threads


def predict(
    images: Annotated[list[Path], typer.Argument(help="Picture files.")],
    checkpoint: Annotated[Path | None, typer.Option(help=f"{CHECKPOINT} By default the newest run's in runs/.",
                                                    show_default=False)] = None,
    model: Model = None,
    shortcut: Shortcut = None,
    stem: Stem = None,
    mean: Mean = None,
    std: Std = None,
    threads: Threads = None,
):
    """Name what is on pictures: the five most likely classes of each, and their probabilities."""
    from minires.evaluation import TOP, open_checkpoint, predict_classes, read_image
    from minires.training.run import newest_weights

    use_threads(threads)
    if checkpoint is None:
        checkpoint = newest_weights()
        typer.echo(f"using {checkpoint}", err=True)
    network, card = open_checkpoint(checkpoint, model, shortcut, mean, std, stem)
    pictures = [read_image(path, card.image_size) for path in images]  # all of them before the first is shown
    for path, (pixels, done) in zip(images, pictures, strict=True):
        best = "   ".join(f"{name} {p:.1%}" for name, p in predict_classes(network, card, pixels)[:TOP])
        typer.echo(f"{path}: {best}{f'   ({done})' if done else ''}")
