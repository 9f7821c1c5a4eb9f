"""Options that several commands share, and what is refused of them before the work begins."""
import os
from pathlib import Path
from typing import Annotated

import typer

from minires.errors import UserError

Threads = Annotated[int | None, typer.Option(help="CPU threads; all by default.", show_default=False)]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
DataDir = Annotated[str | None, typer.Option(help="Folder that holds CIFAR-10 (cifar-10-batches-bin/ or -py/).",
                                             show_default=False)]
Shortcut = Annotated[str | None, typer.Option(help="A (identity, zero-padded channels) or B (1x1 projection); "
                                                   "by default the family's own.", show_default=False)]
CHECKPOINT = "A run's folder (its best epoch), a .safetensors file of a run, or PyTorch's .pth or .th."
Stem = Annotated[str | None, typer.Option(help="cifar or imagenet, for resnet18 to resnet152.", show_default=False)]
BatchSize = Annotated[int, typer.Option(help="Images a step.")]
ImageSize = Annotated[int | None, typer.Option(help="Pixels a side; by default 32, with the imagenet stem 224.",
                                               show_default=False)]
Model = Annotated[str | None, typer.Option("--model", help="For a checkpoint that does not name its network: a name, "
                                                    "or FILE.py:function.", show_default=False)]
Mean = Annotated[str | None, typer.Option(help="Of each channel, pixels in [0, 1], as 0.485,0.456,0.406 (ImageNet's); for a "
                                               "checkpoint that does not say.", show_default=False)]
Std = Annotated[str | None, typer.Option(help="Likewise.", show_default=False)]
Records = Annotated[Path | None, typer.Option(help="A file of CIFAR-10 records (.bin), instead of a data set.",
                                              show_default=False)]
Data = Annotated[str | None, typer.Option("--dataset", help="By default what the checkpoint was trained on, else "
                                                      "cifar10.", show_default=False)]


def use_threads(threads):
    """Set the CPU threads a command was given, if it was given any."""
    if threads is not None:
        from minires.backends import set_num_threads

        set_num_threads(threads)


def pixels_of(image_size, stem, **others):
    """Pixels a side where an option may say them; UserError if they or one of the others, by their names, are below 1."""
    size = image_size if image_size is not None else 224 if stem == "imagenet" else 32
    for name, value in {"image size": size, **others}.items():
        if value < 1:
            raise UserError(f"{name.replace('_', ' ')} {value} is too small: expected 1 or more")
    return size


def require_picture(path, option="--out"):
    """UserError unless a picture can be written to `path`, a file name that ends in .png in a folder that is there."""
    if path.suffix.lower() != ".png":
        raise UserError(f"{option} writes a PNG, got {path}: choose a name that ends in .png")
    if not path.absolute().parent.is_dir():
        raise UserError(f"the picture {path} cannot be written: {path.parent} is not a folder, make it first")
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises when a name is too long)
        raise UserError(f"the picture {path} cannot be written: it is a folder, choose another name")
