"""The activations beside ReLU in NumPy, as their derivations are written: a part of the reference.

x, y, dy, dx: any one shape. Each y depends on its own x alone, so dx = dy * f'(x).
"""
import math

import numpy as np

_erf = np.frompyfunc(math.erf, 1, 1)  # NumPy has none


def normal_cdf(x):
    """Φ(x) = (1 + erf(x / sqrt(2))) / 2, the probability that a standard normal number is below x."""
    return ((1 + _erf(x / math.sqrt(2))) / 2).astype(x.dtype)


def normal_density(x):
    """φ(x) = exp(-x^2 / 2) / sqrt(2 π) = Φ'(x)."""
    return (np.exp(-x * x / 2) / math.sqrt(2 * math.pi)).astype(x.dtype)


def sigmoid(x):
    """σ(x) = 1 / (1 + exp(-x)), written so that no exponential overflows."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def gelu_forward(x):
    """y = x Φ(x)."""
    return x * normal_cdf(x)


def gelu_backward(dy, x):
    """dx = dy (Φ(x) + x φ(x))."""
    return dy * (normal_cdf(x) + x * normal_density(x))


def silu_forward(x):
    """y = x σ(x)."""
    return x * sigmoid(x)


def silu_backward(dy, x):
    """dx = dy σ(x) (1 + x (1 - σ(x)))."""
    s = sigmoid(x)
    return dy * (s * (1 + x * (1 - s)))


def leaky_relu_forward(x, slope):
    """y = x where x > 0, else slope * x; slope >= 0."""
    return np.where(x > 0, x, x.dtype.type(slope) * x)


def leaky_relu_backward(dy, y, slope):
    """dx = dy where y > 0, which is where x > 0, else slope * dy."""
    return np.where(y > 0, dy, dy.dtype.type(slope) * dy)
