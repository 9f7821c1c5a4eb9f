"""Pooling and the padded shortcut: each image by one thread, channels innermost because they are contiguous.

Bytes moved: x once, y once (and argmax, 4 bytes an output). The backward passes gather nothing: each image's dx is
zeroed and added to while it is in the cache.
"""
import math
from functools import cache

import numpy as np

from minires.backends.cpu import jit
from minires.backends.cpu.arena import empty
from minires.backends.cpu.host import lanes_of
from minires.backends.cpu.simd import load, prefetch, splat, store
from minires.backends.cpu.threads import claimed, launch
from minires.backends.reference import output_size


@jit.kernel
def _maxpool(tasks, counter, thread, x, y, argmax, kernel, stride, padding, dilation):
    N, H, W, C = x.shape
    for n in claimed(tasks, counter, thread):
        for oh in range(y.shape[1]):
            for ow in range(y.shape[2]):
                y[n, oh, ow] = -np.inf
                argmax[n, oh, ow] = -1
                for i in range(kernel[0]):
                    h = oh * stride[0] - padding[0] + i * dilation[0]
                    if h < 0 or h >= H:
                        continue
                    for j in range(kernel[1]):
                        w = ow * stride[1] - padding[1] + j * dilation[1]
                        if w < 0 or w >= W:
                            continue
                        for c in range(C):
                            v, best = x[n, h, w, c], y[n, oh, ow, c]
                            # The first of equals wins, and a NaN wins over numbers, as in the reference.
                            if argmax[n, oh, ow, c] < 0 or v > best or (v != v and best == best):
                                y[n, oh, ow, c] = v
                                argmax[n, oh, ow, c] = i * kernel[1] + j


@jit.kernel
def _maxpool_gradient(tasks, counter, thread, dy, argmax, dx, kernel, stride, padding, dilation):
    N, OH, OW, C = dy.shape
    for n in claimed(tasks, counter, thread):
        dx[n] = 0
        for oh in range(OH):
            for ow in range(OW):
                for c in range(C):
                    i, j = divmod(argmax[n, oh, ow, c], kernel[1])
                    dx[n, oh * stride[0] - padding[0] + i * dilation[0],
                       ow * stride[1] - padding[1] + j * dilation[1], c] += dy[n, oh, ow, c]


@jit.kernel
def _avgpool(tasks, counter, thread, x, y, kernel, stride, padding):
    N, H, W, C = x.shape
    for n in claimed(tasks, counter, thread):
        for oh in range(y.shape[1]):
            for ow in range(y.shape[2]):
                y[n, oh, ow] = 0
                for h in range(max(0, oh * stride[0] - padding[0]), min(H, oh * stride[0] - padding[0] + kernel[0])):
                    for w in range(max(0, ow * stride[1] - padding[1]), min(W, ow * stride[1] - padding[1] + kernel[1])):
                        for c in range(C):
                            y[n, oh, ow, c] += x[n, h, w, c]
                for c in range(C):
                    y[n, oh, ow, c] /= kernel[0] * kernel[1]


@jit.kernel
def _avgpool_gradient(tasks, counter, thread, dy, dx, kernel, stride, padding):
    N, H, W, C = dx.shape
    for n in claimed(tasks, counter, thread):
        dx[n] = 0
        for oh in range(dy.shape[1]):
            for ow in range(dy.shape[2]):
                for h in range(max(0, oh * stride[0] - padding[0]), min(H, oh * stride[0] - padding[0] + kernel[0])):
                    for w in range(max(0, ow * stride[1] - padding[1]), min(W, ow * stride[1] - padding[1] + kernel[1])):
                        for c in range(C):
                            dx[n, h, w, c] += dy[n, oh, ow, c] / (kernel[0] * kernel[1])


def _out_shape(x, kernel_size, stride, padding, dilation):
    N, H, W, C = x.shape
    return (N, *(output_size(*a) for a in zip((H, W), kernel_size, stride, padding, dilation, strict=True)), C)


def maxpool2d_forward(x, kernel_size, stride, padding, dilation):
    """-> y: (N, OH, OW, C) and argmax: the winning tap i * KW + j, int32, y's shape; ties go to the first tap.

    A window that lies wholly in the padding gives -inf and tap 0.
    """
    shape = _out_shape(x, kernel_size, stride, padding, dilation)
    y, argmax = empty(shape, x.dtype), empty(shape, np.int32)
    launch(_maxpool, len(x), x.size, np.ascontiguousarray(x), y, argmax, kernel_size, stride, padding, dilation)
    return y, argmax


def maxpool2d_backward(dy, argmax, x_shape, kernel_size, stride, padding, dilation):
    """dx: (N, H, W, C): each dy goes to the one pixel that won."""
    dx = empty(x_shape, dy.dtype)
    launch(_maxpool_gradient, len(dy), dy.size, np.ascontiguousarray(dy), argmax, dx, kernel_size, stride, padding, dilation)
    return dx


def avgpool2d_forward(x, kernel_size, stride, padding):
    """y: (N, OH, OW, C), the mean over each window; padding counts as zeros."""
    y = empty(_out_shape(x, kernel_size, stride, padding, (1, 1)), x.dtype)
    launch(_avgpool, len(x), x.size, np.ascontiguousarray(x), y, kernel_size, stride, padding)
    return y


def avgpool2d_backward(dy, x_shape, kernel_size, stride, padding):
    """dx: (N, H, W, C): each dy is spread evenly over its window."""
    dx = empty(x_shape, dy.dtype)
    launch(_avgpool_gradient, len(dy), dy.size, np.ascontiguousarray(dy), dx, kernel_size, stride, padding)
    return dx


@jit.kernel
def _global_mean(tasks, counter, thread, x, y):
    N, P, C = x.shape
    for n in claimed(tasks, counter, thread):
        y[n] = 0
        for p in range(P):
            for c in range(C):
                y[n, c] += x[n, p, c]
        for c in range(C):
            y[n, c] /= P


@jit.kernel
def _spread(tasks, counter, thread, dy, dx):
    N, P, C = dx.shape
    for n in claimed(tasks, counter, thread):
        for p in range(P):
            for c in range(C):
                dx[n, p, c] = dy[n, c] / P


def global_avgpool_forward(x):
    """x: (N, H, W, C) -> y: (N, C)."""
    N, H, W, C = x.shape
    y = np.empty((N, C), x.dtype)
    launch(_global_mean, len(x), x.size, np.ascontiguousarray(x).reshape(N, H * W, C), y)
    return y


def global_avgpool_backward(dy, x_shape):
    """dx: (N, H, W, C): dy / (H * W) at every pixel."""
    N, H, W, C = x_shape
    dx = empty(x_shape, dy.dtype)
    launch(_spread, len(dy), dy.size, np.ascontiguousarray(dy), dx.reshape(N, H * W, C))
    return dx


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
