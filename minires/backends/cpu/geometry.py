"""Which elements a convolution multiplies, written as offsets for the micro-kernel: plain integers, no kernels.

The convolution and its input gradient are one operation, a *gather*: each output pixel is a weighted sum of the pixels
under a window of a zero-padded image. Forward, output pixel (h, w) reads the taps

    image[h * s + i * d, w * s + j * d]                                   of the image padded by `padding`

The input gradient turns that round: x[h] was read by y[oh] through tap i where h + p = oh * s + i * d. The rows with the
same remainder a = h mod s meet the same taps, those with (a + p - i * d) divisible by s, and with h = a + s * t they lie at

    oh = t + e_i,  e_i = (a + p - i * d) / s

a window that moves by one: a stride-1 convolution of dy for each of the s * s remainders ("phases"), each with its own
few taps. At stride 1 there is one phase, and it is the well-known convolution with the flipped kernel.

What is read lies in scratch as images.py says; what a unit (units.py) writes lies there too, (blocks, images, rows, pixels,
BLOCK).
"""
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from minires.backends.cpu import jit
from minires.backends.reference import output_size


class Geometry(NamedTuple):
    """A convolution as it is called: sizes of images (rows, columns), of the kernel, stride, padding, dilation."""

    size: tuple
    out_size: tuple
    kernel: tuple
    stride: tuple
    padding: tuple
    dilation: tuple


def geometry_of(x_shape, kernel, stride, padding, dilation):
    """The Geometry of a convolution of x: (N, H, W, C)."""
    axes = (tuple(x_shape[1:3]), tuple(kernel), tuple(stride), tuple(padding), tuple(dilation))
    return Geometry(axes[0], tuple(output_size(*axis) for axis in zip(*axes, strict=True)), *axes[1:])


class Window(NamedTuple):
    """What a unit loads: from an output row r on rows r * step + first .., `rows` of them for a full unit, from -left on."""

    first: int
    step: int  # rows of what is read, for one of the output
    more: int  # rows that are read = rows of the output * step + more
    left: int
    width: int  # pixels in a row
    narrow: int  # channels that lie together: BLOCK or, of few, all of them


class Gather(NamedTuple):
    """A convolution for the kernels. Offsets count elements of scratch."""

    window: Window
    pixels: np.ndarray  # offsets of the output's pixels in what is read, phase by phase
    places: np.ndarray  # and in what is written
    # (phases, 7): first pixel, remainder of its rows, rows and columns of the output from one to the next, pixels in a row,
    # first slab and behind the last, length of a slab
    phases: np.ndarray
    slabs: np.ndarray  # offsets of runs of taps and channels in what is read
    taps: np.ndarray  # (slabs, 4): number of taps, the first, the step to the next, the first channel


def forward_gather(geometry, channels, block, narrow, whole, tile_rows, units):
    """The convolution itself, of images with `channels`, which if `narrow` and fewer than a block lie as in memory.

    whole: all of the image is read, also what no tap meets.
    """
    (H, W), (OH, OW), (KH, KW), stride, padding, dilation = geometry
    rows = [[(i, i * dilation[0]) for i in range(KH)]]
    columns = [[(j, j * dilation[1]) for j in range(KW)]]
    more, width = (KH - 1) * dilation[0] + 1 - stride[0], (OW - 1) * stride[1] + (KW - 1) * dilation[1] + 1
    if whole:
        more, width = max(more, 0, H + padding[0] - OH * stride[0]), max(width, W + padding[1])
    window = Window(-padding[0], stride[0], more, padding[1], width, min(channels, block) if narrow else block)
    return _gather(window, rows, columns, stride, (1, 1), (OH, OW), KW, channels, block, tile_rows, units)


def input_gradient_gather(geometry, channels, block, tile_rows, units):
    """Its adjoint, from dy with `channels` to dx, one phase for each remainder."""
    (H, W), _, (KH, KW), stride, padding, dilation = geometry
    rows, columns = ([_phase_taps(a, k, s, p, d) for a in range(min(s, size))]
                     for size, k, s, p, d in zip((H, W), (KH, KW), stride, padding, dilation, strict=True))
    # All of dy is read, since the weight's gradient reads it too.
    low, high = _reach(rows, geometry.out_size[0] - -(-H // stride[0]))
    left, right = _reach(columns, geometry.out_size[1] - -(-W // stride[1]))
    rows, columns = ([[(i, e - least) for i, e in taps] for taps in axis] for axis, least in ((rows, low), (columns, left)))
    window = Window(low, -stride[0], high - low, -left, -(-W // stride[1]) + right - left, block)
    return _gather(window, rows, columns, (1, 1), stride, (H, W), KW, channels, block, tile_rows, units)


def _phase_taps(a, kernel, stride, padding, dilation):
    """The (tap, e) of the rows a, a + stride, ... with e ascending."""
    taps = [(i, (a + padding - i * dilation) // stride) for i in range(kernel)
            if (a + padding - i * dilation) % stride == 0]
    return sorted(taps, key=lambda tap: tap[1])


def _reach(axis, more):
    places = [0, more, *(place for taps in axis for _, place in taps)]
    return min(0, *places), max(places)


@jit.part
def rows_read(window, rows):
    """Rows of scratch that a unit of so many output rows reads. A negative step: so many rows are written for one read."""
    return (rows * window.step if window.step > 0 else -(-rows // -window.step)) + window.more


def elements(window, units):
    """Of a block of a unit's images, in scratch."""
    return units.images * rows_read(window, units.rows) * window.width * window.narrow


def nothing_gathered(width, block):
    """A Gather of nothing from images that are read as they are."""
    none = np.empty(0, np.int64)
    return Gather(Window(0, 1, 0, 0, width, block), none, none, none.reshape(0, 7), none, none.reshape(0, 4))


def _gather(window, rows, columns, step, spread, size, KW, channels, block, tile_rows, units):
    """rows, columns: per remainder, the (tap, place) that it meets; step: pixels of what is read, and spread: of what is
    written, from one of a phase's pixels to the next."""
    narrow = window.narrow
    pitch = window.width * narrow
    image, whole = rows_read(window, units.rows) * pitch, units.rows * size[1]  # elements of an image read, pixels written
    blocks = -(-channels // block)
    pixels, places, phases, slabs, taps = [], [], [], [], []
    for a, row_taps in enumerate(rows):
        for b, column_taps in enumerate(columns):
            height, width = -(-(units.rows - a) // spread[0]), -(-(size[1] - b) // spread[1])
            first, begin = len(slabs), len(pixels)
            together = all(after[1] - before[1] == 1 for before, after in pairwise(column_taps))
            runs = [column_taps] if together and column_taps else [[tap] for tap in column_taps]
            for tap, place in row_taps:
                for c in range(blocks):
                    for run in runs:
                        slabs.append(c * units.images * image + place * pitch + run[0][1] * narrow)
                        step_of_taps = run[1][0] - run[0][0] if len(run) > 1 else 0
                        taps.append((len(run), tap * KW + run[0][0], step_of_taps, c * block))
            for n in range(units.images):
                for h in range(height):
                    for w in range(width):
                        pixels.append(n * image + h * step[0] * pitch + w * step[1] * narrow)
                        places.append((n * whole + (a + h * spread[0]) * size[1] + b + w * spread[1]) * block)
            rounding = -(len(pixels) - begin) % tile_rows if len(pixels) > begin else 0
            pixels += pixels[-1:] * rounding
            places += places[-1:] * rounding
            length = taps[-1][0] * narrow if len(taps) > first else 0
            phases.append((begin, a, spread[0], width, first, len(slabs), length))
    return Gather(window, *(np.array(part, np.int64) for part in (pixels, places, phases, slabs)),
                  np.array(taps, np.int64).reshape(-1, 4))
