"""Stands in for the slice of CuPy that minires.backends.cuda uses, so that its Python runs, as it stands, without a GPU.

Arrays live in host memory but cannot be mixed with NumPy's. Kernels are the back end's own .cu files, compiled for the
host through cuda_on_host.h. What CuPy itself would compute on the device (sums, products, copies) NumPy computes.
"""
import numpy as np
from numpy import bool_, float32, float64, int8, int32, int64, newaxis, uint8, uint64  # noqa: F401

from cupy import cuda  # noqa: F401
from cupy._array import changed, computed, counters, host, ndarray, no_library, wrap  # noqa: F401
from cupy._memory import check_guards, pool  # noqa: F401
from cupy._module import RawKernel, RawModule  # noqa: F401

__version__ = "14.0.0"


def get_default_memory_pool():
    return pool


def get_array_module(*arrays):
    import cupy
    return cupy if any(isinstance(array, ndarray) for array in arrays) else np


def empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype, order=order)


def full(shape, fill_value, dtype=None):
    array = ndarray(shape, np.asarray(fill_value).dtype if dtype is None else dtype)
    array.fill(fill_value)
    return array


def zeros(shape, dtype=float):
    return full(shape, 0, dtype)


def ones(shape, dtype=float):
    return full(shape, 1, dtype)


def empty_like(array, dtype=None):
    return empty(array.shape, array.dtype if dtype is None else dtype)


def zeros_like(array, dtype=None):
    return zeros(array.shape, array.dtype if dtype is None else dtype)


def ones_like(array, dtype=None):
    return ones(array.shape, array.dtype if dtype is None else dtype)


def arange(*arguments, dtype=None):
    return wrap(np.arange(*arguments, dtype=dtype))


def array(values, dtype=None, copy=True, order="K"):
    """Of a device array or of anything NumPy can read: the latter is the way to the device."""
    inner = values._a if isinstance(values, ndarray) else np.asarray(values)
    return computed(lambda: np.array(inner, dtype, copy=True, order=order))


def asarray(values, dtype=None, order=None, *, blocking=False):
    if isinstance(values, ndarray) and dtype in (None, values.dtype):
        return values
    return array(values, dtype)


def ascontiguousarray(values, dtype=None):
    values = asarray(values, dtype)
    return values if values.flags.c_contiguous else computed(lambda: np.ascontiguousarray(values._a))


def asnumpy(values, stream=None, order="C", out=None, *, blocking=True):
    return values.get() if isinstance(values, ndarray) else np.asarray(values)


def concatenate(arrays, axis=0):
    return computed(lambda: np.concatenate([host(each) for each in arrays], axis))


def stack(arrays, axis=0):
    return computed(lambda: np.stack([host(each) for each in arrays], axis))


def where(condition, x, y):
    return computed(lambda: np.where(host(condition), host(x), host(y)))


def broadcast_to(array, shape):
    return array._view(np.broadcast_to(array._a, shape))


def matmul(a, b, out=None):
    if out is None:
        return a @ b
    no_library()
    np.matmul(host(a), host(b), out=out._a)
    return out


def copyto(destination, source):
    destination[...] = source


def may_share_memory(a, b):
    return np.may_share_memory(a._a, b._a)


def _function(name):
    ufunc = getattr(np, name)

    def call(*inputs, out=None):
        return ndarray.__array_ufunc__(None, ufunc, "__call__", *inputs, out=None if out is None else (out,))

    call.__name__ = name
    return call


for _name in ("add", "subtract", "multiply", "divide", "sqrt", "exp", "log", "maximum", "minimum", "abs", "isfinite",
              "isnan", "square", "power", "negative"):
    globals()[_name] = _function(_name)
