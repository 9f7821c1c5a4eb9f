"""Read a pickle of byte arrays without running what it says.

A pickle is a program: it names functions and has them called. Here the names that NumPy's byte arrays need stand for
inert replacements below, every other name is refused before anything is called, and the bytes become an array only
after their shape and length have been checked.
"""

from __future__ import annotations

import io
import math
import pickle

import numpy as np

from minires.errors import UserError


class _Refused(Exception):
    """A pickle asked for what a file of byte arrays has no use for."""


def _text(value) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


class _ByteType:
    """Stands for numpy.dtype: knows uint8 alone."""

    def __init__(self, name, *_flags):
        if _text(name) not in ("u1", "|u1", "uint8"):
            raise _Refused(f"an array of type {_text(name)} instead of bytes")

    def __setstate__(self, state):
        pass  # byte order and alignment: a byte has none


class _ByteArray:
    """Stands for numpy.ndarray: keeps the state, from which `to_array` makes an array."""

    def __setstate__(self, state):
        _version, self.shape, _type, self.fortran_order, self.data = state

    def to_array(self) -> np.ndarray:
        shape, data = tuple(self.shape), self.data
        if not isinstance(data, bytes) or math.prod(shape) != len(data):
            raise _Refused(f"an array {shape} without a byte for each element")
        return np.frombuffer(data, np.uint8).reshape(shape, order="F" if self.fortran_order else "C")


def _reconstruct(*_arguments):
    return _ByteArray()


def _encode(text, encoding):
    # How Python 3 writes bytes in an old pickle protocol; any other codec has no business in one.
    if _text(encoding) not in ("latin1", "latin-1"):
        raise _Refused(f"text in the encoding {_text(encoding)}")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # NumPy 1
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # NumPy 2
    ("numpy", "ndarray"): _ByteArray,
    ("numpy", "dtype"): _ByteType,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


def unpickle_arrays(data: bytes, path, expected: str) -> object:
    """What was pickled, its uint8 arrays as numpy arrays where they are values of the outermost dict.

    Raises UserError, naming `path` and saying what was `expected`, for a pickle that names anything but such an array's
    parts (nothing of it is run), and for damaged data.
    """
    try:
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        if isinstance(content, dict):
            arrays = {key: value.to_array() for key, value in content.items() if isinstance(value, _ByteArray)}
            content = content | arrays
    except _Refused as refused:
        raise UserError(
            f"{path} was not read: as a pickle it asks for {refused}, expected {expected}, "
            "made of byte arrays, lists and text alone; get it again"
        ) from refused
    except Exception as error:  # damage can break a pickle anywhere: what it raises then is not a fixed list
        raise UserError(
            f"{path} ({len(data):,} bytes) is truncated or damaged ({type(error).__name__}): "
            f"expected {expected}; get it again"
        ) from error
    return content
