"""What a run depends on, in a few lines of JSON: its data, its recipe, and where it ran. A resumed run compares them."""
import hashlib
import importlib.metadata
import math
import platform
from operator import length_hint

import numpy as np

import minires
from minires.data import Dataset
from minires.errors import UserError
from minires.reprs import Shown
from minires.schedules import Schedule

_PLAIN = (str, int, float, bool, tuple, list, type(None))


def fingerprint(loaders, **parts):
    """{"data": .., "recipe": .., "environment": ..} of JSON values.

    loaders: {"train": a loader, ..}; of one with a `dataset` the images' number, shape and contents, by a hash, else the
    number of batches. parts: optimiser, schedule, loss: what is set on them, but for what moves as they run.
    """
    data = {name: _of_data(loader) for name, loader in loaders.items() if loader is not None}
    recipe = {name: _of_settings(part) for name, part in parts.items() if part is not None}
    if parts.get("schedule") is None:
        recipe["optimiser"]["lr"] = parts["optimiser"].lr
    recipe["batches"] = _of_settings(getattr(loaders["train"], "loader", loaders["train"]))
    return {"data": data, "recipe": recipe, "environment": _environment()}


def differences(saved, now):
    """UserError when a run would go on with other data; else lines that say what else is not as it was."""
    if not isinstance(saved, dict) or not all(isinstance(saved.get(part), dict) for part in now):
        raise UserError("the run's state does not say what data and recipe it began with, so it was damaged or changed: "
                        "begin a new run")
    for name in sorted(saved["data"].keys() | now["data"].keys()):
        was, is_ = saved["data"].get(name), now["data"].get(name)
        if was != is_:
            raise UserError(f"the {name} data is not what the run began with ({_told(was)} then, {_told(is_)} now): put it "
                            "back, or begin a new run")
    lines = []
    for part in ("recipe", "environment"):
        was, is_ = _flat(saved[part]), _flat(now[part])
        odd = [f"{key} {_told(was.get(key))} then, {_told(is_.get(key))} now" for key in sorted(was.keys() | is_.keys())
               if was.get(key) != is_.get(key)]
        if odd:
            lines.append(f"the {part} is not that of the run so far, so its numbers may part from it: {'; '.join(odd)}")
    return lines


def _flat(settings, prefix=""):
    """{"optimiser.momentum": 0.9, ..} of nested dicts."""
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _of_data(loader):
    data = getattr(loader, "dataset", None)
    if not isinstance(data, Dataset):
        return {"batches": length_hint(loader) or None}
    digest = hashlib.blake2b(digest_size=12)
    for array in (data.images, data.labels):
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return {"images": len(data.images), "shape": list(data.images.shape[1:]), "classes": list(map(str, data.classes)),
            "contents": digest.hexdigest()}


def _of_settings(thing):
    """What is set on an object, as JSON: its class and its plain attributes."""
    moving = ("lr", "steps", "waiting", "epoch") if not isinstance(thing, Schedule) else ()
    found = {"kind": type(thing).__name__}
    for name, value in vars(thing).items() if hasattr(thing, "__dict__") else ():
        if isinstance(value, Schedule):
            found[name] = _of_settings(value)
        elif isinstance(value, _PLAIN) and name not in moving and not name.startswith("_"):
            found[name] = [_plain(item) for item in value] if isinstance(value, tuple | list) else _plain(value)
    return found


def _plain(value):
    """JSON has no word for what is not finite, nor for an object: its name, or what it shows of itself."""
    if isinstance(value, str | int | float | type(None)):
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value
    return getattr(value, "__qualname__", None) or (repr(value) if isinstance(value, Shown) else type(value).__qualname__)


def _environment():
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "numba")}
    from minires.machine import processor

    return {"minires": minires.__version__, "python": platform.python_version(), **versions, "system": platform.system(),
            "processor": processor()}


def _told(value):
    if isinstance(value, dict) and "images" in value:
        return f"{value['images']:,} images, contents {value['contents']}"
    said = str(value)
    return said if len(said) <= 100 else f"{said[:97]}..."
