"""From a kernel's name to something that can be launched: compiled when it is first asked for, once a device.

    kernel("norm.cu", "normalise", x.dtype)(grid, block, args)

Each .cu file holds templates over T, which is float or double. Those whose only parameter is T are compiled together, the
first time one of a file is asked for in a dtype; one with further whole numbers as parameters is compiled by itself.
"""
import re
from functools import cache
from pathlib import Path

import cupy
import numpy as np

from minires.errors import UserError

KERNELS = Path(__file__).with_name("kernels")
OPTIONS = ("-std=c++17",)
MOST_BLOCKS = 1 << 13  # of a one-dimensional launch; its kernels step by the whole grid, so more threads gain nothing
_ONE_PARAMETER = re.compile(r"template\s*<\s*typename\s+T\s*>\s*__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)")
_C_NAMES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}


@cache
def source(file):
    """The text of a .cu file with the headers it includes put in, so that a compiler needs no path to them."""
    text = (KERNELS / file).read_text(encoding="utf-8")
    return re.sub(r'^#include "(\w+\.cuh)"$', lambda match: source(match[1]), text, flags=re.M).replace("#pragma once\n", "")


def names_in(file):
    """The names of a file's kernels whose one template parameter is T, in the order of the file."""
    return _ONE_PARAMETER.findall(source(file))


@cache
def _module(device, file, expressions):
    return cupy.RawModule(code=source(file), options=OPTIONS, name_expressions=list(expressions))


@cache
def _function(device, file, name, dtype, integers):
    c_name = _C_NAMES[dtype]
    if integers:
        expressions = (f"{name}<{', '.join([c_name, *map(str, integers)])}>",)
        chosen = expressions[0]
    else:
        expressions, chosen = tuple(f"{each}<{c_name}>" for each in names_in(file)), f"{name}<{c_name}>"
    return _module(device, file, expressions).get_function(chosen)


def kernel(file, name, dtype, *template_ints):
    """launch(grid, block, args) of a kernel for a dtype, float32 or float64, on the current device.

    grid, block: tuples of 1 to 3 ints. args: CuPy arrays, None for a null pointer, NumPy scalars of the kernel's own
    width; of Python's numbers an int becomes a long long, a float a T, a bool a bool. Nothing waits for the device.
    UserError for an array of the other float: a device would read its bytes as what they are not, and say nothing.
    """
    dtype = np.dtype(dtype)
    function = _function(cupy.cuda.Device().id, file, name, dtype, template_ints)

    def launch(grid, block, args):
        function(grid, block, tuple(_argument(value, dtype) for value in args))

    return launch


def _argument(value, dtype):
    if isinstance(value, cupy.ndarray):
        if value.dtype is not dtype and value.dtype.kind == "f" and value.dtype != dtype:
            raise UserError(f"the device computes in {dtype} here and got an array of {value.dtype}: convert it with astype")
        return value
    if value is None:
        return np.uint64(0)  # a null pointer by value: CuPy's own None was no argument at all for long
    if isinstance(value, np.generic):
        return value
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int):
        return np.int64(value)
    return dtype.type(value) if isinstance(value, float) else value


def launch_over(count, kernel, args, block=256):
    """Launch a kernel that steps by the whole grid over `count` elements, one a thread where the device is large enough."""
    if count:
        kernel((min(-(-count // block), MOST_BLOCKS),), (block,), args)
