"""Options that several commands share."""
from typing import Annotated

import typer

Threads = Annotated[int | None, typer.Option(help="CPU threads; all by default.", show_default=False)]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
DataDir = Annotated[str | None, typer.Option(help="Folder that holds CIFAR-10 (cifar-10-batches-bin/ or -py/).",
                                             show_default=False)]
Shortcut = Annotated[str | None, typer.Option(help="A (identity, zero-padded channels) or B (1x1 projection); "
                                                   "by default the family's own.", show_default=False)]


def use_threads(threads):
    """Set the CPU threads a command was given, if it was given any."""
    if threads is not None:
        from minires.backends import set_num_threads

        set_num_threads(threads)
