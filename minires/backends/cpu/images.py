"""Images in scratch: how kernels read them, in blocks of channels with a zero border, and how results leave.

A kernel works on a *unit* at a time, a few images or a band of rows of one, copied into scratch memory, where it stays in
the second-level cache while every tap reads it. In memory a pixel's C channels are neighbours; in scratch BLOCK of them
are, a cache line, and after a line comes the pixel to its right:

    memory   (N, H, W, C)               scratch   (blocks of channels, images, rows, pixels, BLOCK)

Channels that do not fill the last block are zeros. What is done to a pixel on the way in costs no memory traffic: the
normalisation and ReLU that stand before a convolution (so their output is never stored), or the gradient of the
normalisation behind it; nor what is done on the way out: bias, residual, ReLU, the sums that mean and variance are made of,
or the ReLU's mask and the two sums that the gradient of the normalisation in front needs.

The functions are inlined into the kernels that call them. BLOCK and RAGGED, whether the last block is not full, are
compile-time constants.
"""
import math
from functools import lru_cache
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from minires.backends.cpu import jit, threads
from minires.backends.cpu.arena import aligned_zeros
from minires.backends.cpu.host import block_of
from minires.backends.cpu.simd import (
    at_least,
    load,
    load_first,
    prefetch,
    rectify,
    splat,
    store,
    store_first,
    stream,
    where_positive,
)
from minires.backends.cpu.threads import MOST_THREADS

SLACK = 64  # elements behind what scratch is asked for: a last tile of taps may read there, and ignores it


class Input(NamedTuple):
    """What a convolution reads: x, or with a mean relu((x - mean) * scale + bias + residual), which `formed` keeps.

    All are flat; of those that are not there the size is 0. x, residual, formed: (N * H * W * C,); the others (C,).
    """

    x: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    residual: np.ndarray
    formed: np.ndarray


class Gradient(NamedTuple):
    """A convolution's output gradient: g, or with a mean from_dy * g + from_x * (z - mean) + constant. As `Input`."""

    g: np.ndarray
    z: np.ndarray
    mean: np.ndarray
    from_dy: np.ndarray
    from_x: np.ndarray
    constant: np.ndarray


class Output(NamedTuple):
    """Where a convolution writes: y; and means and squares, (parts, O), of y, or max(y + bias + residual, least) for y."""

    y: np.ndarray
    means: np.ndarray
    squares: np.ndarray
    bias: np.ndarray
    residual: np.ndarray
    least: np.generic


class InputGradient(NamedTuple):
    """Where its gradient goes: dx + residual, which is masked, and summed in `sums`, (parts, 2, C), if those are there.

    The mask is that of the ReLU in x's `Input`, or with z and mean (C,) where x itself is above 0; the sums are those over
    dx and over dx times (z - mean), z being x in the former case.
    """

    dx: np.ndarray
    residual: np.ndarray
    z: np.ndarray
    mean: np.ndarray
    sums: np.ndarray


def scratch(size, dtype, rows=MOST_THREADS, role=""):
    """Scratch memory, a row for each thread, whoever asks: what a kernel left there is there no longer.

    role: of several that one kernel has at once.
    """
    larger = 1 << max(10, (size + SLACK - 1).bit_length())  # few sizes, of which each serves many kernels
    row = larger * 3 // 4 if size + SLACK <= larger * 3 // 4 else larger
    return _scratch(row + SLACK, dtype, rows, role)  # rows a power of two apart would fall into the same cache sets


@lru_cache(maxsize=128)
def _scratch(row, dtype, rows, role):
    # Kept for good, so not from the arena, whose gaps it would part; its zero pages cost nothing until written.
    memory = aligned_zeros((rows, row), dtype)
    _made[memory.ctypes.data] = memory
    return memory


_made = WeakValueDictionary()  # address: scratch memory


def places_of(block, *sizes):
    """Where parts of so many elements begin that lie one after another, each at a block, and behind the last."""
    places = [0]
    for size in sizes:
        places.append(places[-1] + -(-size // block) * block)
    return places


def shared_scratch(shape, dtype, role):
    """Scratch memory that all threads write to."""
    size = math.prod(shape)
    return scratch(size, dtype, 1, role)[0, :size].reshape(shape)


def poison_scratch(on=True):
    """From now on each launch turns to NaN what it leaves in scratch. Off by default; for tests.

    So the results of a later one are NaN where it reads what it has not written itself: a border, a sum that was not begun
    at zero.
    """
    threads.pool.after_launch = _poison if on else None


def _poison(arguments):
    for argument in arguments:
        if isinstance(argument, tuple):
            _poison(argument)
        elif isinstance(argument, np.ndarray) and argument.dtype.kind == "f":
            memory = _made.get(argument.ctypes.data)
            if memory is not None:
                memory.fill(np.nan)


def blocks_of(channels, dtype):
    """Blocks that hold `channels`."""
    return -(-channels // block_of(dtype))


@jit.part
def get(BLOCK, RAGGED, array, at, count):
    """A block of an array from `at` on; if RAGGED its first `count` elements, and zeros."""
    if RAGGED:
        return load_first(BLOCK, array, at, count)
    return load(BLOCK, array, at)


@jit.part
def put(RAGGED, past, array, at, count, v):
    """Write a block, or its first `count` elements; past the caches, if it is a whole one and said so."""
    if RAGGED:
        store_first(array, at, count, v)
    elif past:
        stream(array, at, v)
    else:
        store(array, at, v)


@jit.part
def goes_past(BLOCK, channels):
    """Whether blocks of so many channels are written past the caches.

    The processor then need not read the lines that it will overwrite, and keeps those that it reads again: a training step
    of narrow layers takes 3 to 5 % less. Of wide ones the lines of a block lie too far apart for memory: twice the time.
    """
    return channels <= 8 * BLOCK


@jit.part
def clear_border(BLOCK, image, at, first, rows, left, width, H, W):
    """Zeros in the pixels of a band that lie outside an image: rows first .. first + rows, pixels -left .. width - left."""
    zero = splat(BLOCK, image.dtype.type(0))
    for r in range(rows):
        inside = 0 <= first + r < H
        for w in range(min(left, width) if inside else width):
            store(image, at + (r * width + w) * BLOCK, zero)
        for w in range(left + W if inside else width, width):
            store(image, at + (r * width + w) * BLOCK, zero)


@jit.part
def load_input(BLOCK, RAGGED, source, n, first, rows, left, width, H, W, C, c, keeps, image, at):
    """A block of channels from c on of a band of image n, as `clear_border` describes it, into scratch from `at` on."""
    clear_border(BLOCK, image, at, first, rows, left, width, H, W)
    count, columns = min(BLOCK, C - c), min(W, width - left)
    for r in range(max(0, -first), min(rows, H - first)):
        start, target = ((n * H + first + r) * W) * C + c, at + (r * width + left) * BLOCK
        if source.mean.size:
            m, s = get(BLOCK, RAGGED, source.mean, c, count), get(BLOCK, RAGGED, source.scale, c, count)
            b = get(BLOCK, RAGGED, source.bias, c, count)
            for w in range(columns):
                i = start + w * C
                prefetch(source.x, i)
                v = (get(BLOCK, RAGGED, source.x, i, count) - m) * s + b
                if source.residual.size:
                    prefetch(source.residual, i)
                    v = v + get(BLOCK, RAGGED, source.residual, i, count)
                v = rectify(v)
                if keeps and source.formed.size:
                    put(RAGGED, goes_past(BLOCK, C), source.formed, i, count, v)
                store(image, target + w * BLOCK, v)
        else:
            for w in range(columns):
                prefetch(source.x, start + w * C)
                store(image, target + w * BLOCK, get(BLOCK, RAGGED, source.x, start + w * C, count))


@jit.part
def load_narrow(x, n, first, rows, left, width, H, W, C, image, at):
    """As `load_input` for fewer channels than a block, of x itself: scratch has them as memory has, none added."""
    for r in range(rows):
        target, pixels = at + r * width * C, width * C
        for i in range(pixels):
            image[target + i] = 0
        if 0 <= first + r < H:
            start = ((n * H + first + r) * W) * C
            for i in range(min(W, width - left) * C):
                image[target + left * C + i] = x[start + i]


@jit.part
def load_gradient(BLOCK, RAGGED, source, n, first, rows, left, width, H, W, C, c, image, at):
    """As `load_input`, of an output gradient."""
    clear_border(BLOCK, image, at, first, rows, left, width, H, W)
    count, columns = min(BLOCK, C - c), min(W, width - left)
    for r in range(max(0, -first), min(rows, H - first)):
        start, target = ((n * H + first + r) * W) * C + c, at + (r * width + left) * BLOCK
        if source.mean.size:
            m, a = get(BLOCK, RAGGED, source.mean, c, count), get(BLOCK, RAGGED, source.from_dy, c, count)
            b, d = get(BLOCK, RAGGED, source.from_x, c, count), get(BLOCK, RAGGED, source.constant, c, count)
            for w in range(columns):
                i = start + w * C
                prefetch(source.z, i)
                prefetch(source.g, i)
                centred = get(BLOCK, RAGGED, source.z, i, count) - m
                store(image, target + w * BLOCK, get(BLOCK, RAGGED, source.g, i, count) * a + (centred * b + d))
        else:
            for w in range(columns):
                prefetch(source.g, start + w * C)
                store(image, target + w * BLOCK, get(BLOCK, RAGGED, source.g, start + w * C, count))


@jit.part
def finish(BLOCK, RAGGED, image, at, pitch, rows, W, output, start, O, o, part):
    """A block of output channels from o on leaves scratch: `rows` of W pixels, to y from `start` on."""
    count, past = min(BLOCK, O - o), goes_past(BLOCK, O)
    if output.means.size:
        pivot = load(BLOCK, image, at)
        total, square = pivot - pivot, pivot - pivot
        for r in range(rows):
            for w in range(W):
                v = load(BLOCK, image, at + r * pitch + w * BLOCK)
                put(RAGGED, past, output.y, start + (r * W + w) * O + o, count, v)
                v = v - pivot
                total, square = total + v, square + v * v
        mean = total * splat(BLOCK, image.dtype.type(1 / (rows * W)))
        store(output.means, part * output.means.shape[1] + o, pivot + mean)
        store(output.squares, part * output.means.shape[1] + o, square - mean * total)
    else:
        bias, floor = splat(BLOCK, image.dtype.type(0)), splat(BLOCK, output.least)
        if output.bias.size:
            bias = get(BLOCK, RAGGED, output.bias, o, count)
        for r in range(rows):
            for w in range(W):
                i = start + (r * W + w) * O + o
                v = load(BLOCK, image, at + r * pitch + w * BLOCK) + bias
                if output.residual.size:
                    prefetch(output.residual, i)
                    v = v + get(BLOCK, RAGGED, output.residual, i, count)
                put(RAGGED, past, output.y, i, count, at_least(v, floor))


@jit.part
def finish_gradient(BLOCK, RAGGED, image, at, pitch, rows, W, source, output, start, C, c, part):
    """A block of input channels' gradient leaves scratch, as `finish`; source: the convolution's Input."""
    count, past = min(BLOCK, C - c), goes_past(BLOCK, C)
    total = splat(BLOCK, image.dtype.type(0))
    product, m, s, b = total, total, total, total
    summed, normalised = output.sums.size > 0, source.mean.size > 0
    if normalised:
        m, s = get(BLOCK, RAGGED, source.mean, c, count), get(BLOCK, RAGGED, source.scale, c, count)
        b = get(BLOCK, RAGGED, source.bias, c, count)
    elif summed:
        m = get(BLOCK, RAGGED, output.mean, c, count)
    for r in range(rows):
        for w in range(W):
            i = start + (r * W + w) * C + c
            v = load(BLOCK, image, at + r * pitch + w * BLOCK)
            if output.residual.size:
                prefetch(output.residual, i)
                v = v + get(BLOCK, RAGGED, output.residual, i, count)
            if summed:
                prefetch(source.x, i)
                a = get(BLOCK, RAGGED, source.x, i, count)
                if normalised:
                    centred = a - m
                    a = centred * s + b
                    if source.residual.size:
                        a = a + get(BLOCK, RAGGED, source.residual, i, count)
                else:
                    prefetch(output.z, i)
                    centred = get(BLOCK, RAGGED, output.z, i, count) - m
                v = where_positive(a, v)
                total, product = total + v, product + v * centred
            put(RAGGED, past, output.dx, i, count, v)
    if summed:
        store(output.sums, 2 * part * output.sums.shape[2] + c, total)
        store(output.sums, (2 * part + 1) * output.sums.shape[2] + c, product)
