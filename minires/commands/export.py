"""The command `minires export`."""
from pathlib import Path
from typing import Annotated

import typer

from minires.commands.options import CHECKPOINT, Mean, Model, Shortcut, Std, Stem

FORMATS = ("torch", "torchvision", "onnx")


def export(
    checkpoint: Annotated[Path, typer.Argument(help=CHECKPOINT)],
    file: Annotated[Path, typer.Argument(help="The file to write: .onnx, or for PyTorch .safetensors, .pth, .pt or .th.")],
    to: Annotated[str, typer.Option(help="torch: PyTorch's layouts, this project's names; torchvision: its names too, of "
                                         "resnet18 to 152; onnx: the whole network.")],
    model: Model = None,
    shortcut: Shortcut = None,
    stem: Stem = None,
    mean: Mean = None,
    std: Std = None,
):
    """Write weights, or a whole network, for other programs."""
    from minires import arguments
    from minires.evaluation import open_checkpoint
    from minires.interop.onnx import save_onnx
    from minires.interop.torch import save_torch_weights

    arguments.choice("--to", to, FORMATS)
    network, card = open_checkpoint(checkpoint, model, shortcut, mean, std, stem)
    said = f"standardise pixels in [0, 1] with mean {_listed(card.mean)} and std {_listed(card.std)}"
    if to == "onnx":
        about = {"classes": "\n".join(card.classes), "mean": _listed(card.mean), "std": _listed(card.std)}
        save_onnx(network, file, card.image_size, len(card.mean), about)
        typer.echo(f"wrote {file}: images (N, {card.image_size}, {card.image_size}, {len(card.mean)}) float32 to logits "
                   f"(N, {card.num_classes}); {said}")
    else:
        save_torch_weights(network, file, torchvision=to == "torchvision")
        typer.echo(f"wrote {file}: a state_dict of {len(network.state_dict())} tensors; {said}")


def _listed(values):
    return ",".join(f"{value:.6g}" for value in values)
