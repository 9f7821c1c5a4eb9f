"""A list of operators to read: of each step of a trace, what it reads and writes, and what that costs.

    print(text(rows(tracer.steps)))

FLOP are those of convolutions and linear layers by the direct formula, 2 for a multiply-add, whatever a kernel does to get
there. Bytes are what must move at least: what a step reads and writes, once; what a formula must read twice, twice.
"""
import importlib
import math
from collections import Counter
from typing import NamedTuple

from minires.backends import host_backend
from minires.backends.reference import output_size
from minires.backends.trace import WRITES, Array, arrays_in

# A convolution's images, weights, (stride, padding, dilation) and how many products of them an operator computes.
CONVOLUTIONS = {
    "conv2d_forward": lambda x, weight, bias, *geometry: (x.shape, weight.shape, geometry, 1),
    "conv2d_input_gradient": lambda dy, weight, x_shape, *geometry: (x_shape, weight.shape, geometry, 1),
    "conv2d_weight_gradient": lambda dy, x, kernel_size, *geometry: (
        x.shape, (*kernel_size, x.shape[3], dy.shape[3]), geometry, 1),
    "conv2d_moments": lambda x, prologue, weight, *geometry: (x.shape, weight.shape, geometry, 1),
    "add_relu_conv2d_moments": lambda z, prologue, residual, weight, *geometry: (z.shape, weight.shape, geometry, 1),
    "conv2d_bias_relu": lambda x, weight, bias, residual, relu, *rest: (x.shape, weight.shape, rest[:2], 1),
    "conv2d_unit_gradient": lambda g, z, normalisation, x, prologue, weight, stride, padding, residual, need_dx, *_: (
        x.shape, weight.shape, (stride, padding), 1 + need_dx)}
LINEAR = {"linear_forward": lambda x, weight, bias: 2 * x.shape[0] * weight.size,
          "linear_backward": lambda dy, x, weight: 4 * x.shape[0] * weight.size}
TWICE = {"batchnorm_forward": 1, "batchnorm_backward": 2}  # arguments whose sums come before the first result
FORWARD = {"normalise_add_relu", "conv2d_forward", "relu_forward", "add", "pad_shortcut_forward"}  # made again in a backward
IMAGES = {"conv2d_forward": "z", "conv2d_moments": "z", "add_relu_conv2d_moments": "yz"}  # letters of results; else y


class Row(NamedTuple):
    """A step to read. mark: "<" in the backward pass, "~" where a forward operator is done again there, else ""."""

    operator: str
    mark: str
    layer: str
    reads: str
    writes: str
    shape: str
    flops: int
    bytes: int
    kernel: str

    def cells(self):
        """What stands in a table, as text."""
        return (*self[:6], f"{self.flops / 1e9:.3f}" if self.flops else "",
                f"{self.bytes / 1e6:.2f}" if self.bytes >= 5000 else "", self.kernel)


def rows(steps, inputs=()):
    """A Row for each step. Values have their `names`; w is a weight, +n are n vectors of a channel's numbers."""
    found, (known, marks) = [], names(steps, inputs)
    for step, mark in zip(steps, marks, strict=True):
        into = _written_arguments(step)
        reads = [array for array in _arrays(step.arguments) if not any(array is other for other in into)]
        besides = [] if not into else ["running"] if step.operator == "update_running" else ["grad"]
        shape = next((array.shape for array in step.results if array is not None), ())
        operator = f"numpy.{step.arguments[0].__name__}" if step.operator == "numpy" else step.operator
        found.append(Row(operator, mark, step.layer, _named(reads, known),
                         " ".join(filter(None, [_named(step.results, known), *besides])), "x".join(map(str, shape)),
                         flops(step), moved_bytes(step), kernel(step)))
    return found


def names(steps, inputs=()):
    """({Array: a short name}, [the mark of each step]).

    inputs: Arrays that no step makes, called x and target, or {Array: name}. z is what a convolution writes, y another
    activation, g a gradient by a value, d one by a weight; each is numbered in the order of the steps.
    """
    known = dict(inputs if isinstance(inputs, dict) else zip(inputs, ("x", "target"), strict=False))
    marks, counts = [], Counter()
    for step in steps:
        # A forward operator in the backward pass is done again, unless what it adds are gradients.
        again = step.operator in FORWARD and not any(known.get(array, "").startswith(("g", "d")) for array in step.reads)
        marks.append("" if not step.backward else "~" if again else "<")
        for place, array in enumerate(step.results):
            if array is not None and array.ndim != 1:
                letter = _letter(step, marks[-1], place, array)
                counts[letter] += 1
                known[array] = known.get(array.base) or (letter if letter == "loss" else f"{letter}{counts[letter]}")
    return known, marks


def flops(step):
    """Additions and multiplications of the direct formula."""
    if step.operator in LINEAR:
        return LINEAR[step.operator](*step.arguments)
    if step.operator not in CONVOLUTIONS:
        return 0
    (N, *size, _), weight, geometry, products = CONVOLUTIONS[step.operator](*step.arguments)
    axes = zip(size, weight[:2], *_with_dilation(geometry), strict=True)
    return 2 * products * N * math.prod(output_size(*axis) for axis in axes) * math.prod(weight)


def moved_bytes(step):
    """Bytes read and written."""
    if step.operator == "reshape":
        return 0
    into = _written_arguments(step)
    reads = [] if step.operator == "zero" else [*_arrays(step.arguments)]
    again = step.arguments[:TWICE.get(step.operator, 0)]
    once = {id(array): array for array in reads}.values()
    return sum(array.nbytes for arrays in (once, again, _arrays(step.results), into) for array in arrays)


def convolution_of(operator, arguments):
    """(x's shape, dtype, output channels, kernel size, stride, padding, dilation) of a convolution; None of what is none."""
    if operator not in CONVOLUTIONS:
        return None
    x_shape, (*size, _, out_channels), geometry, _ = CONVOLUTIONS[operator](*arguments)
    return tuple(x_shape), arguments[0].dtype, out_channels, tuple(size), *map(tuple, _with_dilation(geometry))


def kernel(step):
    """The kernel that the back end at hand chooses for a convolution, or ""."""
    convolution = convolution_of(step.operator, step.arguments)
    array = next(arrays_in(step.arguments), None)
    if convolution is None or array is None or array.device != "cpu":
        return ""
    choice = getattr(importlib.import_module(f"minires.backends.{host_backend()}"), "kernel_name", None)
    return choice(*convolution) if choice else ""


def text(found):
    """Rows as lines of text, numbered, under a line of headings."""
    lines = [("", "operator", "", "layer", "reads", "writes", "shape", "GFLOP", "MB", "kernel")]
    lines += [(str(number), *row.cells()) for number, row in enumerate(found, 1)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = {0, 6, 7, 8}
    return "\n".join("  ".join(f"{cell:>{width}}" if place in right else f"{cell:{width}}" for place, (cell, width)
                               in enumerate(zip(line, widths, strict=True))).rstrip() for line in lines)


def _letter(step, mark, place, array):
    if array.ndim == 0:
        return "loss"
    if mark == "<" or step.operator.endswith("_backward"):
        return "g" if place == 0 and step.operator != "conv2d_weight_gradient" else "d"
    return IMAGES.get(step.operator, "")[place:place + 1] or "y"


def _written_arguments(step):
    return list(_arrays(step.arguments[place] for place in WRITES.get(step.operator, ()) if place < len(step.arguments)))


def _with_dilation(geometry):
    return (*geometry, (1, 1))[:3]


def _named(arrays, known):
    arrays = [array for array in arrays if array is not None]
    large = [known.get(array, "w") if isinstance(array, Array) else "w" for array in arrays if array.ndim != 1]
    small = sum(array.ndim == 1 for array in arrays)
    return " ".join([*dict.fromkeys(large), *([f"+{small}"] if small else [])])


def _arrays(values):
    """The arrays in nested tuples, the program's and the model's."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from _arrays(value)
        elif hasattr(value, "nbytes") and hasattr(value, "ndim"):
            yield value
