"""A run's resumable state: weights, optimiser, random streams and position, in one file."""

import numpy as np

from minires.errors import UserError
from minires.files import load_tensors, save_tensors


def _generators(model, loader):
    """Every random stream that a further epoch draws from, by name: the loader's and the dropout layers'."""
    streams = {"loader": getattr(loader, "rng", None)}
    streams |= {f"model.{name}": getattr(layer, "rng", None) for name, layer in model.named_layers()}
    return {name: rng for name, rng in streams.items() if isinstance(rng, np.random.Generator)}


def save_state(path, model, optimiser, loader, epoch):
    """Everything the epochs after `epoch` depend on, in one file: weights, optimiser, random streams."""
    tensors = {f"model.{name}": array for name, array in model.state_dict().items()}
    tensors |= {f"optimiser.{name}": array for name, array in optimiser.state_dict().items()}
    streams = {name: rng.bit_generator.state for name, rng in _generators(model, loader).items()}
    save_tensors(path, tensors, {"epoch": epoch, "random": streams})


def load_state(path, model, optimiser, loader):
    """Put a `save_state` back into objects that were built alike; returns the epoch it was saved after.

    UserError when the file is missing, damaged or another model's, optimiser's or data pipeline's.
    """
    tensors, about = load_tensors(path)
    streams = _generators(model, loader)
    if not isinstance(about.get("epoch"), int) or about.get("random", {}).keys() != streams.keys():
        raise UserError(f"{path} is no state of this training run: expected its epoch and the random streams "
                        f"{', '.join(streams) or '(none)'}")
    part = {prefix: {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
            for prefix in ("model.", "optimiser.")}
    model.load_state_dict(part["model."])
    optimiser.load_state_dict(part["optimiser."])
    for name, rng in streams.items():
        rng.bit_generator.state = about["random"][name]
    return about["epoch"]
