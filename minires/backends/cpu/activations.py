"""The activations beside ReLU: maps over flat memory in chunks, as in elementwise. Formulas: minires.backends.activations.

Bytes moved: each operand once. GELU and SiLU are bound by their exponentials, one element at a time from the C library.
"""
import math

import numpy as np

from minires.backends.cpu import jit
from minires.backends.cpu.arena import empty
from minires.backends.cpu.elementwise import CHUNK, flat, share
from minires.backends.cpu.threads import claimed


@jit.kernel
def _gelu(tasks, counter, thread, x, y, half, root):
    for chunk in claimed(tasks, counter, thread):
        start, end = chunk * CHUNK, (chunk + 1) * CHUNK
        x_, y_ = x[start:end], y[start:end]
        for i in range(y_.size):
            y_[i] = x_[i] * (half + half * math.erf(x_[i] * root))


@jit.kernel
def _gelu_gradient(tasks, counter, thread, dy, x, dx, half, root, density):
    for chunk in claimed(tasks, counter, thread):
        start, end = chunk * CHUNK, (chunk + 1) * CHUNK
        dy_, x_, dx_ = dy[start:end], x[start:end], dx[start:end]
        for i in range(dx_.size):
            slope = half + half * math.erf(x_[i] * root) + x_[i] * density * math.exp(-half * x_[i] * x_[i])
            dx_[i] = dy_[i] * slope


@jit.kernel
def _silu(tasks, counter, thread, x, y, one):
    for chunk in claimed(tasks, counter, thread):
        start, end = chunk * CHUNK, (chunk + 1) * CHUNK
        x_, y_ = x[start:end], y[start:end]
        for i in range(y_.size):
            e = math.exp(-abs(x_[i]))
            y_[i] = x_[i] * ((one if x_[i] >= 0 else e) / (one + e))


@jit.kernel
def _silu_gradient(tasks, counter, thread, dy, x, dx, one):
    for chunk in claimed(tasks, counter, thread):
        start, end = chunk * CHUNK, (chunk + 1) * CHUNK
        dy_, x_, dx_ = dy[start:end], x[start:end], dx[start:end]
        for i in range(dx_.size):
            e = math.exp(-abs(x_[i]))
            s = (one if x_[i] >= 0 else e) / (one + e)
            dx_[i] = dy_[i] * (s * (one + x_[i] * (one - s)))


@jit.kernel
def _leaky(tasks, counter, thread, x, sign, slope, y):
    for chunk in claimed(tasks, counter, thread):
        start, end = chunk * CHUNK, (chunk + 1) * CHUNK
        x_, sign_, y_ = x[start:end], sign[start:end], y[start:end]
        for i in range(y_.size):
            y_[i] = x_[i] if sign_[i] > 0 else slope * x_[i]


def _map(kernel, *arrays, numbers=()):
    """A new array like the first, computed by a kernel that takes (arrays, result, numbers of the arrays' dtype)."""
    result = empty(arrays[0].shape, arrays[0].dtype)
    share(kernel, result.size, *map(flat, arrays), flat(result), *map(result.dtype.type, numbers))
    return result


def gelu_forward(x):
    """See minires.backends.activations."""
    return _map(_gelu, x, numbers=(0.5, np.sqrt(0.5)))


def gelu_backward(dy, x):
    """See minires.backends.activations."""
    return _map(_gelu_gradient, dy, x, numbers=(0.5, np.sqrt(0.5), 1 / np.sqrt(2 * np.pi)))


def silu_forward(x):
    """See minires.backends.activations."""
    return _map(_silu, x, numbers=(1,))


def silu_backward(dy, x):
    """See minires.backends.activations."""
    return _map(_silu_gradient, dy, x, numbers=(1,))


def leaky_relu_forward(x, slope):
    """See minires.backends.activations."""
    return leaky_relu_backward(x, x, slope)


def leaky_relu_backward(dy, y, slope):
    """See minires.backends.activations; forward is the same map, with x in the place of both."""
    dx = empty(dy.shape, dy.dtype)
    share(_leaky, dy.size, flat(dy), flat(y), dy.dtype.type(slope), flat(dx))
    return dx
