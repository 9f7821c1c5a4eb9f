"""Padded images: how kernels read an image into scratch, and what they do to it on the way.

A kernel works on one image at a time, copied into scratch memory with its zero border, where it stays in the second-level
cache while every tap reads it. What is done to a pixel on the way in costs no memory traffic: the normalisation and ReLU
that stand before a convolution (so their output is never stored), or the gradient of the normalisation behind it.

The functions are inlined into the kernels that call them; LANES, the vector width, must divide the channels.
"""
import math
from functools import lru_cache
from weakref import WeakValueDictionary

import numpy as np

from minires.backends.cpu import jit, threads
from minires.backends.cpu.arena import aligned_zeros, empty
from minires.backends.cpu.simd import load, prefetch, rectify, store, stream, where_positive
from minires.backends.cpu.threads import MOST_THREADS

SLACK = 64  # elements behind the padded image that a last tile of taps may read and ignore


@lru_cache(maxsize=128)
def scratch(layout, size, dtype, rows=MOST_THREADS):
    """Zeroed scratch memory, a row for each thread, one for each `layout` so that its borders stay zero."""
    row = -(-(size + SLACK) // SLACK) * SLACK
    # Kept for good, so not from the arena, whose gaps it would part; its zero pages cost nothing until written.
    memory = aligned_zeros((rows, row), dtype)
    _made[memory.ctypes.data] = memory
    return memory


_made = WeakValueDictionary()  # address: scratch memory


def poison_scratch(on=True):
    """From now on each launch turns to NaN what it leaves in its scratch, unless it is zero. Off by default; for tests.

    So the results of a later one are NaN where it reads what it has not written itself: a border that another wrote to, or
    that it wrote to itself the time before; a sum that was not begun at zero.
    """
    threads.pool.after_launch = _poison if on else None


def _poison(arguments):
    for argument in arguments:
        memory = _made.get(argument.ctypes.data) if isinstance(argument, np.ndarray) else None
        if memory is not None:
            np.copyto(memory, np.nan, where=memory != 0)


def padded_images(low, size, padded, channels, dtype, role="x", images=1):
    """Scratch for images of `size`, from pixel `low` on in `padded` pixels, zero around them; all three (rows, columns).

    A kernel writes those pixels and no others, so what says where they are is what tells one such memory from another. role:
    of several that one kernel uses.
    """
    return scratch((role, low, size, padded, channels), images * math.prod(padded) * channels, dtype)


def shared_scratch(layout, shape, dtype):
    """Scratch memory that all threads write to."""
    size = math.prod(shape)
    return scratch(layout, size, dtype, rows=1)[0, :size].reshape(shape)


def moments_room(N, pixels, channels, dtype):
    """Where a kernel keeps the mean, the sum of squares about it, and the count of each image: (N, C), (N, C), (N,).

    One for all layers of a size, as what follows: a kernel merges them before it ends.
    """
    return *shared_scratch("moments", (2, N, channels), dtype), np.full(N, pixels)


def sums_room(N, channels, dtype):
    """Where a kernel keeps the two sums of each image, (N, 2, C)."""
    return shared_scratch("sums", (N, 2, channels), dtype)


def weight_room(shape, dtype, add_to):
    """Where a kernel puts a weight's gradient, and whether it adds to what is there."""
    return (empty(shape, dtype), False) if add_to is None else (add_to, True)


@jit.part
def copy_image(x, n, image, start, pitch):
    """Rows of x[n]: (H, W * C) into `image` from element `start` on, `pitch` elements a row."""
    for h in range(x.shape[1]):
        source, target = x[n, h], image[start + h * pitch:start + h * pitch + x.shape[2]]
        for i in range(source.size):
            target[i] = source[i]


def prologue_of(prologue, residual, formed, dtype):
    """What `load_normalised` takes: empty arrays for what is not there; without a prologue kernels read x as it is."""
    if prologue is None:
        return _no_prologue(dtype)
    nothing = _no_prologue(dtype)[0]
    return (*prologue, nothing if residual is None else residual.reshape(-1),
            nothing if formed is None else formed.reshape(-1))


@lru_cache
def _no_prologue(dtype):
    return (np.empty(0, dtype),) * 5


@jit.part
def load_normalised(LANES, x, n, prologue, image, start, pitch):
    """image = relu((x[n] - mean) * scale + bias + residual), channel by channel.

    prologue: mean, scale and bias, each (C,); residual and the array that is to keep what is formed, as x, flat, or empty.
    """
    mean, scale, bias, residual, formed = prologue
    H, WC, C = x.shape[1], x.shape[2], mean.size
    for c in range(0, C, LANES):
        m, s, b = load(LANES, mean, c), load(LANES, scale, c), load(LANES, bias, c)
        for h in range(H):
            source, target = (n * H + h) * WC + c, start + h * pitch + c
            for i in range(0, WC, C):
                prefetch(x, source + i)
                v = (load(LANES, x, source + i) - m) * s + b
                if residual.size:
                    prefetch(residual, source + i)
                    v = v + load(LANES, residual, source + i)
                v = rectify(v)
                if formed.size:
                    stream(formed, source + i, v)
                store(image, target + i, v)


@jit.part
def load_gradient(LANES, g, z, n, normalisation, image, start, pitch):
    """image = from_dy * g[n] + from_x * (z[n] - mean) + constant, normalisation: those four (mean first), each (C,)."""
    mean, from_dy, from_x, constant = normalisation
    H, WC, C = g.shape[1], g.shape[2], mean.size
    for c in range(0, C, LANES):
        m, a = load(LANES, mean, c), load(LANES, from_dy, c)
        b, d = load(LANES, from_x, c), load(LANES, constant, c)
        for h in range(H):
            source, target = (n * H + h) * WC + c, start + h * pitch + c
            for i in range(0, WC, C):
                prefetch(z, source + i)
                prefetch(g, source + i)
                centred = load(LANES, z, source + i) - m
                store(image, target + i, load(LANES, g, source + i) * a + (centred * b + d))


@jit.part
def mask_and_sum(LANES, image, dx, start, residual, a, a_start, a_pitch, z, mean, height, row, C, sums, part):
    """dx = image + residual where a > 0, sum(dx) and sum(dx * (z - mean)), of `height` rows of `row` elements."""
    for c in range(0, C, LANES):
        m = load(LANES, mean, c)
        total, product = m - m, m - m
        for h in range(height):
            for i in range(c, row, C):
                at = start + h * row + i
                prefetch(z, at)
                v = load(LANES, image, h * row + i)
                if residual.size:
                    prefetch(residual, at)
                    v = v + load(LANES, residual, at)
                v = where_positive(load(LANES, a, a_start + h * a_pitch + i), v)
                stream(dx, at, v)
                total = total + v
                product = product + v * (load(LANES, z, at) - m)
        store(sums, 2 * part * C + c, total)
        store(sums, (2 * part + 1) * C + c, product)


def front_of(x, prologue, front):
    """(z, mean) of the normalisation in front of a convolution, empty arrays where its gradient is not asked for."""
    if prologue is not None:
        return x, prologue[0]
    return front or (x[:0], np.empty(0, x.dtype))


@jit.part
def finish_gradient(LANES, image, dx, start, residual, a, a_start, a_pitch, front, height, row, C, sums, part):
    """From scratch to memory, one image's dx: with a front (z, mean) `mask_and_sum`, else plus residual, if there is one."""
    z, mean = front
    if mean.size:
        mask_and_sum(LANES, image, dx, start, residual, a, a_start, a_pitch, z, mean, height, row, C, sums, part)
    else:
        for i in range(0, height * row, LANES):
            v = load(LANES, image, i)
            if residual.size:
                v = v + load(LANES, residual, start + i)
            stream(dx, start + i, v)
