"""The activations beside ReLU: maps over flat memory in chunks, as in elementwise. Formulas: minires.backends.activations.

Bytes moved: each operand once. SiLU, and GELU in float64, are bound by their exponentials, one element at a time from the C
library. GELU in float32 has none: Φ(x) - 1/2 and the slope Φ(x) + x φ(x) - 1/2 are odd, x P(x^2) / Q(x^2) to float32's
rounding between -limit and limit, and ±1/2 to it outside. P and Q were fitted here, by least squares with weights raised
where the error is largest (Lawson's method), and a loop of products, selections and one division vectorises
(np.divide does; Python's / tests each element for zero).
"""
import math

import numpy as np

from minires.backends.cpu import jit
from minires.backends.cpu.arena import empty
from minires.backends.cpu.elementwise import CHUNK, flat, share
from minires.backends.cpu.threads import claimed

# (limit, P, Q), lowest power first. The largest error before rounding is 4e-9 of Φ and 2e-9 of the slope.
CDF = (5.3, (0.398942262, 0.0329357833, 0.00462799473, 0.000160334661, 6.3790726e-06, 2.40503493e-08),
       (1.0, 0.249223992, 0.0281388275, 0.00183657242, 7.13524278e-05, 1.23717064e-06))
SLOPE = (5.8, (0.797884524, -0.0260044672, 0.0140004167, 0.000137175506, 3.40738334e-05, 7.50226775e-07, 1.58296309e-08),
         (1.0, 0.300741345, 0.0427947044, 0.00378507515, 0.000228988618, 9.45283591e-06, 2.92454729e-07, 1.28648592e-09))


@jit.kernel
def _gelu32(tasks, counter, thread, x, y, zero, half, one, limit, p, q):
    for chunk in claimed(tasks, counter, thread):
        start, end = chunk * CHUNK, (chunk + 1) * CHUNK
        x_, y_ = x[start:end], y[start:end]
        for i in range(y_.size):
            c = x_[i]
            t = c * c
            above = ((((p[5] * t + p[4]) * t + p[3]) * t + p[2]) * t + p[1]) * t + p[0]
            below = ((((q[5] * t + q[4]) * t + q[3]) * t + q[2]) * t + q[1]) * t + q[0]
            cdf = half + c * np.divide(above, below)
            cdf = one if c > limit else cdf
            y_[i] = c * (zero if c < -limit else cdf)


@jit.kernel
def _gelu32_gradient(tasks, counter, thread, dy, x, dx, zero, half, one, limit, p, q):
    for chunk in claimed(tasks, counter, thread):
        start, end = chunk * CHUNK, (chunk + 1) * CHUNK
        dy_, x_, dx_ = dy[start:end], x[start:end], dx[start:end]
        for i in range(dx_.size):
            c = x_[i]
            t = c * c
            above = (((((p[6] * t + p[5]) * t + p[4]) * t + p[3]) * t + p[2]) * t + p[1]) * t + p[0]
            below = ((((((q[7] * t + q[6]) * t + q[5]) * t + q[4]) * t + q[3]) * t + q[2]) * t + q[1]) * t + q[0]
            slope = half + c * np.divide(above, below)
            slope = one if c > limit else slope
            dx_[i] = dy_[i] * (zero if c < -limit else slope)


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


def _rational(kernel, fit, *arrays):
    result, number = empty(arrays[0].shape, np.float32), np.float32
    share(kernel, result.size, *map(flat, arrays), flat(result), number(0), number(0.5), number(1), number(fit[0]),
          *(tuple(map(number, powers)) for powers in fit[1:]))
    return result


def gelu_forward(x):
    """See minires.backends.activations. In float32 Φ is off by at most 3e-7."""
    if x.dtype == np.float32:
        return _rational(_gelu32, CDF, x)
    return _map(_gelu, x, numbers=(0.5, np.sqrt(0.5)))


def gelu_backward(dy, x):
    """See minires.backends.activations. In float32 the slope is off by at most 4e-7."""
    if x.dtype == np.float32:
        return _rational(_gelu32_gradient, SLOPE, dy, x)
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
