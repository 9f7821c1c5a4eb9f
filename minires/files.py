"""Files: written in one step, and arrays with a header as safetensors (no pickle), with a checksum over both."""
import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np

from minires.arguments import shown
from minires.errors import UserError, WriteError

UNFINISHED = ".minires-"  # how the name of a file, or a folder, begins that is still being written
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8",
           "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}


def write_atomically(path, content):
    """Write bytes so that `path` holds either what it held before or all of `content`, whenever the process dies.

    WriteError, a UserError, where that cannot be done: a full disk, a folder that is read-only or gone.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{UNFINISHED}{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            give_usual_rights(name, 0o666)
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        failure = WriteError(f"{path} cannot be written ({error.strerror or error}): what was there before still is; make "
                             "room or choose another folder")
        failure.strerror = error.strerror
        raise failure from error
    _flush_folder(path.parent)


def _flush_folder(folder):
    """Have the names in a folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def give_usual_rights(path, mode):
    """The rights that others' files and folders get: those that `tempfile` makes are for their owner alone."""
    with contextlib.suppress(OSError):  # some mounts refuse it (CIFS, exFAT, S3), though the file is written
        umask = os.umask(0)
        os.umask(umask)
        Path(path).chmod(mode & ~umask)


def unfinished(folder, name):
    """The paths in `folder` that writers of `name` left who were killed: or that somebody writes at this moment."""
    return sorted(Path(folder).glob(f"{UNFINISHED}{name}*"))


def read_json(text, what):
    """The JSON value of a text or its bytes. UserError that begins with `what` for anything else."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is no JSON ({type(error).__name__}: {str(error)[:100]}): it was changed or "
                        "damaged") from error


def plain_json(name, value):
    """A dict as it is once it was written as JSON and read again. UserError where it cannot be."""
    try:
        if isinstance(value, dict):
            return json.loads(json.dumps(value, allow_nan=False))
        problem = f"a {type(value).__name__}"
    except (ValueError, TypeError, RecursionError) as error:
        problem = error
    raise UserError(f"{name} {shown(value)} cannot be written as JSON ({problem}): expected a dict of text, finite numbers, "
                    "lists and dicts, so convert NumPy's with float(), int() or tolist()")


def save_tensors(path, tensors, about=None):
    """Write a dict of NumPy arrays; `about`, a dict of JSON values, goes into the file's header, with a checksum."""
    from safetensors.numpy import save

    # safetensors writes an array's memory as it lies, whatever its strides and the order of its bytes.
    contiguous = {name: array.astype(array.dtype.newbyteorder("<"), order="C") for name, array in tensors.items()}
    about = plain_json("about", about or {})
    header = [_checksum(contiguous, about), about]
    metadata = {"minires": json.dumps(header)}  # one key: safetensors orders several at random
    write_atomically(path, save(contiguous, metadata))


def is_safetensors(path):
    """Whether a file begins as a safetensors file does, whatever its name."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise _unreadable(path, error) from error
    return start[8:9] == b"{" or Path(path).suffix == ".safetensors"


def load_tensors(path):
    """(dict of arrays, about) of a safetensors file; `about` is {} for a file that minires did not write.

    bfloat16 is widened to float32, which is exact. UserError when the file is missing, damaged, or not what was written, by
    its checksum.
    """
    from safetensors import SafetensorError, deserialize

    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"checkpoint {path} is not a file: expected one such as a run's last.safetensors")
    try:
        content = path.read_bytes()
        parts = deserialize(content)
    except OSError as error:
        raise _unreadable(path, error) from error
    except (SafetensorError, ValueError, TypeError, MemoryError) as error:
        raise UserError(f"checkpoint {path} is damaged or no safetensors file ({error}): get it again") from error
    tensors = {name: _array(path, name, part) for name, part in parts}
    header = read_json(content[8:8 + int.from_bytes(content[:8], "little")], f"the header of checkpoint {path}")
    said = (header.get("__metadata__") or {}).get("minires", "{}")
    checksum, about = None, read_json(said, f"checkpoint {path} has a damaged header, which")
    if isinstance(about, list) and len(about) == 2:
        checksum, about = about
    if not isinstance(about, dict):
        raise UserError(f"checkpoint {path} has a damaged header (a {type(about).__name__}): get it again")
    if checksum is not None and checksum != _checksum(tensors, about):
        raise UserError(f"checkpoint {path} is damaged: its checksum is not that of what it holds; get it again, or go "
                        "back to an earlier one")
    return tensors, about


def _unreadable(path, error):
    return UserError(f"checkpoint {path} cannot be read ({error.strerror or error}): make it readable")


def _array(path, name, part):
    dtype = part["dtype"]
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(part["data"], "<u2").astype("<u4") << 16).view("<f4").reshape(part["shape"])
    if dtype not in _DTYPES:
        raise UserError(f"checkpoint {path} holds {name} as {dtype}, which NumPy does not know: convert it to float32 first")
    return np.frombuffer(part["data"], _DTYPES[dtype]).reshape(part["shape"]).copy()


def _checksum(tensors, about):
    digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()
