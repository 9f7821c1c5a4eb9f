"""The command `minires summary`."""
from pathlib import Path
from typing import Annotated

import typer

from minires.commands.options import Model, Shortcut, Stem, pixels_of
from minires.errors import UserError


def summary(
    target: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name, such as resnet20, FILE.py:function, or a "
                                          "run's folder or file of weights.")],
    model: Model = None,
    shortcut: Shortcut = None,
    stem: Stem = None,
    num_classes: Annotated[int | None, typer.Option(help="Outputs of the last layer, 10 by default; weights have their own.",
                                                    show_default=False)] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels a side; by default 32, with the imagenet stem 224, of "
                                                        "weights what they were trained on.", show_default=False)] = None,
):
    """List a network's layers: output shapes, parameters, multiply-adds."""
    from rich.console import Console
    from rich.table import Table

    from minires.models import MODELS, build_model
    from minires.study.summary import summarise

    if target not in MODELS and Path(target).exists():
        from minires.evaluation import open_checkpoint

        if num_classes is not None:
            raise UserError(f"--num-classes {num_classes} is for a model's name, and {target} has its own: leave it out")
        network, card = open_checkpoint(target, model, shortcut, stem=stem)
        channels = len(card.mean)
        size, name = card.image_size if image_size is None else image_size, f"{target}, {card.model},"
    elif model is not None:
        raise UserError(f"{target} is not there, and --model {model} is for a file of weights: give the file, or the model "
                        "alone")
    else:
        size = pixels_of(image_size, stem)
        network, name = build_model(target, 10 if num_classes is None else num_classes, shortcut, stem), target
        channels = 3
    layers = summarise(network, size, channels)
    table = Table(box=None, pad_edge=False, show_footer=True)
    table.add_column("layer", footer="total", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("output H x W x C", justify="right", no_wrap=True)
    totals = f"{sum(row.parameters for row in layers):,}", f"{sum(row.multiply_adds for row in layers):,}"
    for heading, total in zip(("parameters", "multiply-adds"), totals, strict=True):
        table.add_column(heading, justify="right", footer=total, no_wrap=True)
    for row in layers:
        shape = " x ".join(map(str, row.output_shape))
        table.add_row(row.name, row.kind, shape, f"{row.parameters:,}" if row.parameters else "",
                      f"{row.multiply_adds:,}" if row.multiply_adds else "")
    console = Console(highlight=False)
    # A pipe has no width of its own, and a table cut off at 80 columns would lose its numbers.
    console.print(table, width=None if console.is_terminal else 120)
    console.print(f"{name} on one {size} x {size} image; convolutions and linear layers are counted", style="dim")
