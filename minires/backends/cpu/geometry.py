"""Which elements a convolution multiplies, written as strides for the micro-kernel: plain integers, no kernels.

The convolution and its input gradient are one operation, a *gather*: each output pixel is a weighted sum of the pixels
under a window of a zero-padded image. Forward, output pixel (h, w) reads the taps

    image[h * s + i * d, w * s + j * d]                                   of the image padded by `padding`

The input gradient turns that round: x[h] was read by y[oh] through tap i where h + p = oh * s + i * d. The rows with the
same remainder a = h mod s meet the same taps, those with (a + p - i * d) divisible by s, and with h = a + s * t they lie at

    oh = t + e_i,  e_i = (a + p - i * d) / s

a window that moves by one: a stride-1 convolution of dy for each of the s * s remainders ("phases"), each with its own
few taps. At stride 1 there is one phase, and it is the well-known convolution with the flipped kernel.
"""
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from minires.backends.cpu.host import VECTOR_REGISTERS
from minires.backends.reference import output_size

# Accumulators in registers: half of them, so that the vectors of B and the broadcasts find room.
ACCUMULATORS = VECTOR_REGISTERS // 2


class Tiling(NamedTuple):
    """The micro-kernel's compile-time sizes: `rows` pixels, `across` of them in one image row, `vectors` of channels."""

    rows: int
    across: int
    vectors: int


class Gather(NamedTuple):
    """A convolution for the kernels. Offsets and strides count elements of the padded image and of the output."""

    low: tuple  # zero rows above and columns left of the image
    padded: tuple  # rows and columns of the padded image
    out_size: tuple  # rows and columns of the whole output
    step: tuple  # rows and columns from one output pixel of a phase to the next, in the padded image
    phases: np.ndarray  # (phases, 7): first segment, end segment, rows, columns, output offset, row and column strides
    segments: np.ndarray  # (segments, 6): image offset, weight offset, k_len, r_len, image and weight slab strides
    taps: tuple  # per phase: the kernel rows and columns it meets, in the order the weights are packed
    tiling: Tiling


def round_up(size, multiple):
    """The smallest multiple that is at least `size`."""
    return -(-size // multiple) * multiple


def choose_tiling(vectors_of_channels, rows, columns):
    """The tile for an output of `rows` x `columns` pixels: two vectors of channels if they divide, else one.

    Each tiling is compiled when it is first met, so there are few: a full tile; one that covers whole rows of an image
    4 or 8 pixels wide; 4 pixels; 1 pixel.
    """
    vectors = 2 if vectors_of_channels % 2 == 0 else 1
    pixels = ACCUMULATORS // vectors
    if columns in (4, 8) and columns < pixels and rows * columns >= pixels:
        return Tiling(pixels, columns, vectors)
    pixels = next(size for size in (pixels, 4, 1) if size <= columns)
    return Tiling(pixels, pixels, vectors)


@cache
def forward_gather(H, W, channels, out_channels, lanes, kernel_size, stride, padding, dilation):
    """The convolution itself. channels: C; out_channels: O, a multiple of `lanes`."""
    out_size = tuple(output_size(*a) for a in zip((H, W), kernel_size, stride, padding, dilation, strict=True))
    padded = (H + 2 * padding[0], W + 2 * padding[1])
    rows, columns = (tuple((i, i * d) for i in range(k)) for k, d in zip(kernel_size, dilation, strict=True))
    phase = (rows, columns, *out_size, 0, out_size[1] * out_channels, out_channels)
    return _gather([phase], padding, padded, out_size, stride, channels, out_channels, lanes)


@cache
def input_gradient_gather(H, W, channels, out_channels, lanes, kernel_size, stride, padding, dilation):
    """Its adjoint, from dy (O channels) to dx (`channels`: C, a multiple of `lanes`), one phase for each remainder."""
    out_size = tuple(output_size(*a) for a in zip((H, W), kernel_size, stride, padding, dilation, strict=True))
    axes = [[_phase_taps(a, size, k, s, p, d) for a in range(min(s, size))]
            for size, k, s, p, d in zip((H, W), kernel_size, stride, padding, dilation, strict=True)]
    low, padded = [], []
    for axis, size in zip(axes, out_size, strict=True):
        places = [e for taps, count in axis for _, tap in taps for e in (tap, tap + count - 1)]
        low.append(max(0, -min(places, default=0)))
        padded.append(low[-1] + max(size, max(places, default=0) + 1))
    phases = []
    for a, (row_taps, rows) in enumerate(axes[0]):
        for b, (column_taps, columns) in enumerate(axes[1]):
            placed = [tuple((i, e + lowest) for i, e in taps)
                      for taps, lowest in ((row_taps, low[0]), (column_taps, low[1]))]
            phases.append((*placed, rows, columns, (a * W + b) * channels, stride[0] * W * channels, stride[1] * channels))
    return _gather(phases, tuple(low), tuple(padded), (H, W), (1, 1), out_channels, channels, lanes)


def _phase_taps(a, size, kernel, stride, padding, dilation):
    """The (tap, e) of the rows a, a + stride, ... with e ascending, and how many such rows there are."""
    taps = [(i, (a + padding - i * dilation) // stride) for i in range(kernel)
            if (a + padding - i * dilation) % stride == 0]
    return sorted(taps, key=lambda tap: tap[1]), -(-(size - a) // stride)


def _gather(phases, low, padded, out_size, step, channels, out_channels, lanes):
    pitch = padded[1] * channels
    phase_rows, segments, taps, packed = [], [], [], 0
    for row_taps, column_taps, rows, columns, offset, row_stride, column_stride in phases:
        first = len(segments)
        taps.append((tuple(i for i, _ in row_taps), tuple(j for j, _ in column_taps)))
        weight_slab = len(column_taps) * channels * out_channels
        if not row_taps or not column_taps:
            segments.append((0, 0, 0, 1, 0, 0))  # no tap meets these pixels: an empty sum, zeros
        else:
            row_step = row_taps[1][1] - row_taps[0][1] if len(row_taps) > 1 else 0
            together = all(b[1] - a[1] == 1 for a, b in pairwise(column_taps))
            runs = [(column_taps[0][1], 0, len(column_taps))] if together else \
                [(place, index, 1) for index, (_, place) in enumerate(column_taps)]
            for place, index, length in runs:  # adjacent taps are adjacent in memory: one run of length * channels
                segments.append((row_taps[0][1] * pitch + place * channels, packed + index * channels * out_channels,
                                 length * channels, len(row_taps), row_step * pitch, weight_slab))
        packed += len(row_taps) * weight_slab
        phase_rows.append((first, len(segments), rows, columns, offset, row_stride, column_stride))
    smallest = min(phase_rows, key=lambda phase: phase[2] * phase[3])
    tiling = choose_tiling(out_channels // lanes, smallest[2], smallest[3])
    return Gather(tuple(low), tuple(padded), out_size, tuple(step), np.array(phase_rows, np.int64),
                  np.array(segments, np.int64), tuple(taps), tiling)


@cache
def weight_runs(kernel_size, dilation, channels, pitch):
    """The rows of the weight gradient as runs that are contiguous in the padded image: (offsets, length of each).

    At column dilation 1 a kernel row's taps and channels are one run of KW * C; else each tap is a run of C.
    """
    KH, KW = kernel_size
    if dilation[1] == 1 or KW == 1:
        return np.array([i * dilation[0] * pitch for i in range(KH)], np.int64), KW * channels
    return np.array([i * dilation[0] * pitch + j * dilation[1] * channels
                     for i in range(KH) for j in range(KW)], np.int64), channels
