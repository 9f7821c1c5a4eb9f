"""Pooling and the padded shortcut: each image by one thread, channels innermost because they are contiguous.

Bytes moved: x once, y once (and argmax, 4 bytes an output). The mean over windows and their largest are one kernel; a
window's values stay in registers. Backward each row of dx is zeroed and, while it is in the cache, added to by all windows
that meet it.
"""
import math
from functools import cache

import numpy as np

from minires.backends.cpu import jit
from minires.backends.cpu.arena import empty
from minires.backends.cpu.host import lanes_of
from minires.backends.cpu.moments import channel_lanes, put
from minires.backends.cpu.simd import load, prefetch, splat, store, where_beats, where_equal, whole_numbers
from minires.backends.cpu.threads import claimed, launch
from minires.backends.reference import output_sizes

NOBODY = np.empty((0,) * 4, np.int32)  # argmax where no pixel wins: windows are averaged


@jit.part
def taps_inside(at, size, kernel, dilation):
    """Which taps of a window that begins at pixel `at` meet an image of `size` pixels: the first, and the first behind."""
    return max(0, -(at // dilation)), min(kernel, -((at - size) // dilation))


@cache
def _pool_kernel(lanes):
    @jit.kernel
    def pool(tasks, counter, thread, x, y, argmax, share, kernel, stride, padding, dilation):
        (_, H, W, C), (_, OH, OW, _) = x.shape, y.shape
        for n in claimed(tasks, counter, thread):
            for oh in range(OH):
                top = oh * stride[0] - padding[0]
                i_first, i_end = taps_inside(top, H, kernel[0], dilation[0])
                for ow in range(OW):
                    left, target = ow * stride[1] - padding[1], ((n * OH + oh) * OW + ow) * C
                    j_first, j_end = taps_inside(left, W, kernel[1], dilation[1])
                    first = i_first * kernel[1] + j_first if i_first < i_end and j_first < j_end else 0
                    for c0 in range(0, C, lanes):
                        c = min(c0, C - lanes)
                        best = splat(lanes, x.dtype.type(-np.inf if argmax.size else 0))
                        winner = splat(lanes, x.dtype.type(first))
                        for i in range(i_first, i_end):
                            row = (n * H + top + i * dilation[0]) * W
                            for j in range(j_first, j_end):
                                v = load(lanes, x, (row + left + j * dilation[1]) * C + c)
                                if argmax.size:
                                    # The first of equals wins, and a NaN wins over numbers, as in the reference.
                                    tap = splat(lanes, x.dtype.type(i * kernel[1] + j))
                                    winner = where_beats(v, best, tap, winner)
                                    best = where_beats(v, best, v, best)
                                else:
                                    best = best + v
                        if argmax.size:
                            store(argmax, target + c, whole_numbers(winner))
                        store(y, target + c, best * share)

    return pool


@cache
def _pool_gradient_kernel(lanes):
    @jit.kernel
    def pool_gradient(tasks, counter, thread, dy, argmax, dx, share, kernel, stride, padding, dilation):
        (_, OH, OW, C), (_, H, W, _) = dy.shape, dx.shape
        for n in claimed(tasks, counter, thread):
            for h in range(H):
                row = (n * H + h) * W * C
                for at in range(row, row + W * C, lanes):
                    store(dx, min(at, row + W * C - lanes), splat(lanes, share - share))
                for i in range(kernel[0]):
                    oh, between = divmod(h + padding[0] - i * dilation[0], stride[0])
                    if between or oh < 0 or oh >= OH:
                        continue
                    for ow in range(OW):
                        left, source = ow * stride[1] - padding[1], ((n * OH + oh) * OW + ow) * C
                        j_first, j_end = taps_inside(left, W, kernel[1], dilation[1])
                        for c0 in range(0, C, lanes):
                            c = min(c0, C - lanes)
                            g = load(lanes, dy, source + c) * share
                            for j in range(j_first, j_end):
                                v, target = g, row + (left + j * dilation[1]) * C + c
                                if argmax.size:
                                    v = where_equal(load(lanes, argmax, source + c), i * kernel[1] + j, g)
                                put(False, dx, target, load(lanes, dx, target) + v, c0 - c)

    return pool_gradient


def _pool(x, of_largest, kernel_size, stride, padding, dilation):
    """-> y, argmax; not `of_largest`: the mean of each window, and no argmax."""
    shape = len(x), *output_sizes(x.shape[1:3], kernel_size, stride, padding, dilation), x.shape[3]
    y, argmax = empty(shape, x.dtype), empty(shape, np.int32) if of_largest else NOBODY
    launch(_pool_kernel(channel_lanes(x.shape[3], x.dtype)), len(x), y.size * math.prod(kernel_size),
           np.ascontiguousarray(x), y, argmax, x.dtype.type(1 if of_largest else 1 / math.prod(kernel_size)), kernel_size,
           stride, padding, dilation)
    return y, argmax


def _pool_gradient(dy, argmax, x_shape, kernel_size, stride, padding, dilation):
    dx, share = empty(x_shape, dy.dtype), dy.dtype.type(1 if argmax.size else 1 / math.prod(kernel_size))
    launch(_pool_gradient_kernel(channel_lanes(x_shape[3], dy.dtype)), len(dy), dx.size, np.ascontiguousarray(dy),
           np.ascontiguousarray(argmax), dx, share, kernel_size, stride, padding, dilation)
    return dx


def maxpool2d_forward(x, kernel_size, stride, padding, dilation):
    """-> y: (N, OH, OW, C) and argmax: the winning tap i * KW + j, int32, y's shape; ties go to the first tap.

    A window that lies wholly in the padding gives -inf and tap 0.
    """
    return _pool(x, True, kernel_size, stride, padding, dilation)


def maxpool2d_backward(dy, argmax, x_shape, kernel_size, stride, padding, dilation):
    """dx: (N, H, W, C): each dy goes to the one pixel that won."""
    return _pool_gradient(dy, argmax, x_shape, kernel_size, stride, padding, dilation)


def avgpool2d_forward(x, kernel_size, stride, padding):
    """y: (N, OH, OW, C), the mean over each window; padding counts as zeros."""
    return _pool(x, False, kernel_size, stride, padding, (1, 1))[0]


def avgpool2d_backward(dy, x_shape, kernel_size, stride, padding):
    """dx: (N, H, W, C): each dy is spread evenly over its window."""
    return _pool_gradient(dy, NOBODY, x_shape, kernel_size, stride, padding, (1, 1))


def global_avgpool_forward(x):
    """x: (N, H, W, C) -> y: (N, C)."""
    return avgpool2d_forward(x, x.shape[1:3], (1, 1), (0, 0)).reshape(len(x), x.shape[3])


def global_avgpool_backward(dy, x_shape):
    """dx: (N, H, W, C): dy / (H * W) at every pixel."""
    return avgpool2d_backward(dy[:, None, None], x_shape, x_shape[1:3], (1, 1), (0, 0))


@cache
def _pad_shortcut_kernel(lanes):
    @jit.kernel
    def pad_shortcut(tasks, counter, thread, x, y, before, stride):
        (_, H, W, C), (_, OH, OW, O) = x.shape, y.shape
        zero = splat(lanes, x.dtype.type(0))
        for n in claimed(tasks, counter, thread):
            for oh in range(OH):
                for ow in range(OW):
                    source, target = ((n * H + oh * stride[0]) * W + ow * stride[1]) * C, ((n * OH + oh) * OW + ow) * O
                    prefetch(x, source)
                    for o in range(0, before, lanes):
                        store(y, target + o, zero)
                    for c in range(0, C, lanes):
                        store(y, target + before + c, load(lanes, x, source + c))
                    for o in range(before + C, O, lanes):
                        store(y, target + o, zero)

    return pad_shortcut


@cache
def _pad_shortcut_gradient_kernel(lanes):
    @jit.kernel
    def pad_shortcut_gradient(tasks, counter, thread, dy, dx, before, stride):
        (_, OH, OW, O), (_, H, W, C) = dy.shape, dx.shape
        zero = splat(lanes, dx.dtype.type(0))
        for n in claimed(tasks, counter, thread):
            for h in range(H):
                row = (n * H + h) * W * C
                if h % stride[0]:
                    for i in range(row, row + W * C, lanes):
                        store(dx, i, zero)
                    continue
                for ow in range(OW):
                    source, target = ((n * OH + h // stride[0]) * OW + ow) * O + before, row + ow * stride[1] * C
                    prefetch(dy, source)
                    for c in range(0, C, lanes):
                        store(dx, target + c, load(lanes, dy, source + c))
                    for i in range(target + C, min(target + stride[1] * C, row + W * C), lanes):
                        store(dx, i, zero)

    return pad_shortcut_gradient


MOST_LANES = 8  # of the shortcut's vectors: as quick as wider ones, and one kernel serves every stage


def _lanes_between(before, channels, out_channels, dtype):
    """A width of vectors that divides the zeros before, the channels that are kept, and the zeros behind."""
    return math.gcd(before, channels, out_channels, min(MOST_LANES, lanes_of(dtype)))  # lanes_of: a power of two


def pad_shortcut_forward(x, out_channels, stride):
    """Every stride-th pixel, zero channels added evenly on both sides: (N, H, W, C) -> (N, OH, OW, O)."""
    N, H, W, C = x.shape
    y, before = empty((N, -(-H // stride[0]), -(-W // stride[1]), out_channels), x.dtype), (out_channels - C) // 2
    kernel = _pad_shortcut_kernel(_lanes_between(before, C, out_channels, x.dtype))
    launch(kernel, len(x), x.size, np.ascontiguousarray(x), y, before, stride)
    return y


def pad_shortcut_backward(dy, x_shape, stride):
    """dx: the pixels that were kept take the gradient of their own channels, the others none."""
    dx, before = empty(x_shape, dy.dtype), (dy.shape[3] - x_shape[3]) // 2
    kernel = _pad_shortcut_gradient_kernel(_lanes_between(before, x_shape[3], dy.shape[3], dy.dtype))
    launch(kernel, len(dy), dy.size, np.ascontiguousarray(dy), dx, before, stride)
    return dx
