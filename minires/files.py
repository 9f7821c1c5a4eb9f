"""Files: written in one step, and arrays with a header as safetensors (no pickle)."""
import contextlib
import json
import os
import tempfile
from pathlib import Path

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
