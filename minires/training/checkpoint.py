"""Weights and resumable states as safetensors files (arrays and a header, no pickle), each replaced in one step."""
import contextlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np

from minires.errors import UserError


def write_atomically(path, content):
    """Write bytes so that `path` holds either what it held before or all of `content`, whenever the process dies."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)  # mkstemp's files are for their owner alone
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def save_tensors(path, tensors, about=None):
    """Write a dict of NumPy arrays; `about`, a dict of JSON values, goes into the file's header."""
    from safetensors.numpy import save

    metadata = {"minires": json.dumps(about or {})}  # one key: safetensors orders several at random
    # safetensors writes an array's memory as it lies, whatever its strides.
    contiguous = {name: array.copy(order="C") for name, array in tensors.items()}
    write_atomically(path, save(contiguous, metadata))


def load_tensors(path):
    """(dict of arrays, about) of a safetensors file; `about` is {} for a file that minires did not write.

    UserError when the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise UserError(f"checkpoint {path} is not a file: expected one such as a run's last.safetensors")
    try:
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise UserError(f"checkpoint {path} is damaged or no safetensors file ({error}): get it again") from error
    try:
        about = json.loads(metadata.get("minires", "{}"))
    except ValueError as error:
        raise UserError(f"checkpoint {path} has a damaged header ({error}): get it again") from error
    return tensors, about


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
