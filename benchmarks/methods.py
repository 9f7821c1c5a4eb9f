"""Ways to convolve, side by side: each the three products of a convolution on one interface.

    forward(x, weight, stride, padding) -> y         x: (N, H, W, C), weight: (KH, KW, C, O), y, dy: (N, OH, OW, O)
    input_gradient(dy, weight, x_shape, stride, padding) -> dx
    weight_gradient(dy, x, kernel_size, stride, padding) -> dweight

stride, padding: pairs. Another way joins the comparison by a line in METHODS. "direct", "winograd2" and "winograd4" are the
kernels of minires, F(2x2, 3x3) and F(4x4, 3x3) where they fit, each asked for by name.
"""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit, prange

from minires.backends import cpu
from minires.backends.cpu.algorithm import use_convolution, winograd_size


class Method(NamedTuple):
    """The three products; fits(x, weight, stride, padding) says whether the method can do them."""

    forward: Callable
    input_gradient: Callable
    weight_gradient: Callable
    fits: Callable = lambda x, weight, stride, padding: True


@njit(parallel=True, fastmath=True, cache=True)
def _naive_forward(x, weight, y, stride, padding):
    for n in prange(y.shape[0]):
        for oh in range(y.shape[1]):
            for ow in range(y.shape[2]):
                for o in range(y.shape[3]):
                    total = x[0, 0, 0, 0] - x[0, 0, 0, 0]
                    for i in range(weight.shape[0]):
                        for j in range(weight.shape[1]):
                            h, w = oh * stride[0] + i - padding[0], ow * stride[1] + j - padding[1]
                            if 0 <= h < x.shape[1] and 0 <= w < x.shape[2]:
                                for c in range(x.shape[3]):
                                    total += x[n, h, w, c] * weight[i, j, c, o]
                    y[n, oh, ow, o] = total


@njit(parallel=True, fastmath=True, cache=True)
def _naive_input_gradient(dy, weight, dx, stride, padding):
    for n in prange(dy.shape[0]):
        dx[n] = 0
        for oh in range(dy.shape[1]):
            for ow in range(dy.shape[2]):
                for i in range(weight.shape[0]):
                    for j in range(weight.shape[1]):
                        h, w = oh * stride[0] + i - padding[0], ow * stride[1] + j - padding[1]
                        if 0 <= h < dx.shape[1] and 0 <= w < dx.shape[2]:
                            for c in range(dx.shape[3]):
                                for o in range(dy.shape[3]):
                                    dx[n, h, w, c] += dy[n, oh, ow, o] * weight[i, j, c, o]


@njit(parallel=True, fastmath=True, cache=True)
def _naive_weight_gradient(dy, x, dweight, stride, padding):
    KH, KW = dweight.shape[:2]
    for tap in prange(KH * KW):
        i, j = tap // KW, tap % KW
        dweight[i, j] = 0
        for n in range(dy.shape[0]):
            for oh in range(dy.shape[1]):
                for ow in range(dy.shape[2]):
                    h, w = oh * stride[0] + i - padding[0], ow * stride[1] + j - padding[1]
                    if 0 <= h < x.shape[1] and 0 <= w < x.shape[2]:
                        for c in range(x.shape[3]):
                            for o in range(dy.shape[3]):
                                dweight[i, j, c, o] += x[n, h, w, c] * dy[n, oh, ow, o]


def _out_size(x_shape, kernel_size, stride, padding):
    return tuple((size + 2 * p - k) // s + 1
                 for size, k, s, p in zip(x_shape[1:3], kernel_size, stride, padding, strict=True))


def _naive_y(x, weight, stride, padding):
    y = np.empty((len(x), *_out_size(x.shape, weight.shape[:2], stride, padding), weight.shape[3]), x.dtype)
    _naive_forward(x, weight, y, stride, padding)
    return y


def _naive_dx(dy, weight, x_shape, stride, padding):
    dx = np.empty(x_shape, dy.dtype)
    _naive_input_gradient(dy, weight, dx, stride, padding)
    return dx


def _naive_dweight(dy, x, kernel_size, stride, padding):
    dweight = np.empty((*kernel_size, x.shape[3], dy.shape[3]), x.dtype)
    _naive_weight_gradient(dy, x, dweight, stride, padding)
    return dweight


def _patches(x, kernel_size, stride, padding):
    """The im2col matrix, (N * OH * OW, KH * KW * C)."""
    padded = np.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel_size, (1, 2))[:, ::stride[0], ::stride[1]]
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, kernel_size[0] * kernel_size[1] * x.shape[3])


def _im2col_y(x, weight, stride, padding):
    KH, KW, C, O = weight.shape
    y = _patches(x, (KH, KW), stride, padding) @ weight.reshape(-1, O)
    return y.reshape(len(x), *_out_size(x.shape, (KH, KW), stride, padding), O)


def _im2col_dx(dy, weight, x_shape, stride, padding):
    (KH, KW, C, O), (N, H, W, _), (_, OH, OW, _) = weight.shape, x_shape, dy.shape
    dpatches = (dy.reshape(-1, O) @ weight.reshape(-1, O).T).reshape(N, OH, OW, KH, KW, C)
    dx = np.zeros((N, H + 2 * padding[0], W + 2 * padding[1], C), dy.dtype)
    for i in range(KH):
        for j in range(KW):
            dx[:, i:i + OH * stride[0]:stride[0], j:j + OW * stride[1]:stride[1]] += dpatches[:, :, :, i, j]
    return dx[:, padding[0]:padding[0] + H, padding[1]:padding[1] + W]


def _im2col_dweight(dy, x, kernel_size, stride, padding):
    return (_patches(x, kernel_size, stride, padding).T @ dy.reshape(-1, dy.shape[3])).reshape(
        *kernel_size, x.shape[3], dy.shape[3])


PLAIN = (1, 1)  # dilation


def _ours(name):
    """The kernels of minires by the algorithm `name`."""
    def asked(function):
        def compute(*arguments):
            with use_convolution(name):
                return function(*arguments)

        return compute

    def fits(x, weight, stride, padding):
        size = winograd_size(x.shape, x.dtype, weight.shape[3], weight.shape[:2], stride, padding, PLAIN)
        return name == f"winograd{size}"

    return Method(
        asked(lambda x, weight, stride, padding: cpu.conv2d_forward(x, weight, None, stride, padding, PLAIN)),
        asked(lambda dy, weight, x_shape, stride, padding: cpu.conv2d_input_gradient(dy, weight, x_shape, stride, padding,
                                                                                      PLAIN)),
        asked(lambda dy, x, size, stride, padding: cpu.conv2d_weight_gradient(dy, x, size, stride, padding, PLAIN)),
        Method._field_defaults["fits"] if name == "direct" else asked(fits))


METHODS = {
    "naive": Method(_naive_y, _naive_dx, _naive_dweight),
    "im2col": Method(_im2col_y, _im2col_dx, _im2col_dweight),
    "direct": _ours("direct"),
    "winograd2": _ours("winograd2"),
    "winograd4": _ours("winograd4"),
}
