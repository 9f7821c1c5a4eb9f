"""The CUDA back end for NumPy arguments: they are carried to the device in the memory layout they have, and results back.

So the tests of all back ends run on `cuda` as they stand. What a device array can tell and its copy on the host cannot is
checked here: results are C-contiguous, in memory of their own, and inputs that are read-only here stay as they were there.
"""
import functools
import types

import cupy
import numpy as np

from minires.backends import cuda, reference


def to_layout(array):
    """The array on the device, contiguous, transposed, reversed or with gaps as it is on the host."""
    if array.flags.c_contiguous:
        return cupy.asarray(array)
    if array.flags.f_contiguous:
        return cupy.asarray(np.ascontiguousarray(array.T)).T
    if min(array.strides) < 0:
        flip = tuple(slice(None, None, -1 if stride < 0 else 1) for stride in array.strides)
        return to_layout(array[flip])[flip]
    apart = 2 if array.strides[-1] > array.itemsize else 1
    within = cupy.zeros((*(size + 2 for size in array.shape[:-1]), apart * (array.shape[-1] + 2)), array.dtype)
    view = within[(*(slice(1, size + 1) for size in array.shape[:-1]), slice(apart, apart * (array.shape[-1] + 1), apart))]
    view[...] = cupy.asarray(np.ascontiguousarray(array))
    return view


def change(function, values):
    """`values` with `function` of every array in it, those inside tuples too."""
    if isinstance(values, (tuple, list)):
        return tuple(change(function, value) for value in values)
    return function(values) if isinstance(values, (np.ndarray, cupy.ndarray)) else values


def arrays_in(values):
    """Every array in `values`, those inside tuples too."""
    found = []
    change(found.append, tuple(values))
    return found


def synchronisations():
    """How often the host has waited for the device so far, as the stand-in counts; 0 on a device."""
    return cupy.counters.synchronisations if hasattr(cupy, "counters") else 0


def carried(function):
    """The operator on NumPy arrays."""

    @functools.wraps(function)
    def call(*arguments):
        there = change(to_layout, arguments)
        waits = synchronisations()
        results = function(*there)
        assert synchronisations() == waits, f"{function.__name__} waits for the device"
        inputs = arrays_in(there)
        for result in arrays_in((results,)):
            assert isinstance(result, cupy.ndarray), f"{function.__name__} gives a {type(result).__name__}"
            assert result.flags.c_contiguous, f"{function.__name__} gives an array that is not C-contiguous"
            assert not any(cupy.may_share_memory(result, each) for each in inputs), f"{function.__name__} gives its input"
        for own, device in zip(arrays_in(arguments), inputs, strict=True):
            if own.flags.writeable:
                own[...] = device.get()
            else:
                assert np.array_equal(own, device.get(), equal_nan=True), f"{function.__name__} wrote to a read-only input"
        return change(lambda result: result.get()[()], (results,))[0]  # a loss becomes a NumPy scalar

    return call


module = types.ModuleType("minires.backends.cuda")
for _name in reference.OPERATORS:
    setattr(module, _name, carried(getattr(cuda, _name)))
