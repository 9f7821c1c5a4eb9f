"""The fused operators on the device; what they mean is `minires.backends.composed`.

With tensors of T bytes, a unit's forward reads x and writes z, its moments gathered from the tiles while they are in
registers: 2 T. Its backward forms dz once (3 T), and the two gradients of its convolution read it and x (3 T for
dx, 2 T for dweight). Wide images make a pass of their own for the moments and for the gate.
"""
import cupy
import numpy as np

from minires.backends import composed
from minires.backends.cuda import conv
from minires.backends.cuda.compiler import kernel, launch_over
from minires.backends.cuda.conv import geometry_of
from minires.backends.cuda.norm import WARP, Columns

_FILE, _PLAIN = "fused.cu", (1, 1)  # dilation


def _moments(z):
    """The mean and the biased variance of z: (..., C) over all but the channels, each (C,)."""
    columns = Columns(z)
    parts = cupy.empty((2, columns.C, columns.parts), z.dtype)
    columns.launch("moments", z.dtype, (z, *parts))
    return _merged(parts, columns.rows, columns.span)


def _merged(parts, rows, span):
    """Mean and variance from those of parts of `span` rows each, (2, C, parts)."""
    _, C, count = parts.shape
    mean, var = cupy.empty((2, C), parts.dtype)
    launch_over(WARP * C, kernel("norm.cu", "finish_moments", parts.dtype),
                (*parts, mean, var, rows, C, np.int32(count), span))
    return mean, var


def _summed(parts):
    """The sums of (2, C, parts) over the parts: two arrays (C,)."""
    _, C, count = parts.shape
    sums = cupy.empty((2, C), parts.dtype)
    launch_over(WARP * C, kernel("norm.cu", "finish_sums", parts.dtype),
                (*parts, None, *sums, 0.0, C, np.int32(count)))
    return tuple(sums)


def conv2d_moments(x, prologue, weight, stride, padding):
    """See composed.conv2d_moments."""
    geometry = geometry_of(x.shape, weight.shape[:2], weight.shape[3], stride, padding, _PLAIN)
    z, parts, span = conv.product(x, prologue, weight, geometry, with_moments=True)
    return z, *(_moments(z) if parts is None else _merged(parts, geometry.rows, span))


def add_relu_conv2d_moments(z, prologue, residual, weight, stride, padding):
    """See composed.add_relu_conv2d_moments."""
    y = normalise_add_relu(z, prologue, residual)
    return y, *conv2d_moments(y, None, weight, stride, padding)


def conv2d_bias_relu(x, weight, bias, residual, relu, stride, padding, prepared=None):
    """See composed.conv2d_bias_relu."""
    geometry = geometry_of(x.shape, weight.shape[:2], weight.shape[3], stride, padding, _PLAIN)
    y, _, _ = conv.product(x, None, weight, geometry)
    return conv.add_bias_relu(y, bias, residual, relu)


def folded(weight, bias, bn_weight, bn_bias, mean, var, eps):
    """See composed.folded."""
    return tuple(map(cupy.ascontiguousarray, composed.folded(weight, bias, bn_weight, bn_bias, mean, var, eps)))


def normalise(z, prologue):
    """See composed.normalise."""
    return _affine(z, prologue, None, False)


def normalise_add_relu(z, prologue, residual):
    """See composed.normalise_add_relu."""
    return _affine(z, prologue, residual, True)


def _affine(z, prologue, residual, relu):
    z, y = cupy.ascontiguousarray(z), cupy.empty(z.shape, z.dtype)
    other = None if residual is None else cupy.ascontiguousarray(residual)
    launch_over(z.size, kernel(_FILE, "normalise_add_relu", z.dtype),
                (z, *map(cupy.ascontiguousarray, prologue), other, y, np.int64(z.size), np.int32(z.shape[-1]), bool(relu)))
    return y


def _gate_and_sums(dy, y, z, statistics, g):
    """g = dy where y > 0, or where y is None where the relu behind `statistics` is open; sum(g) and sum(g * (z - mean))."""
    columns = Columns(z)
    parts = cupy.empty((2, columns.C, columns.parts), z.dtype)
    columns.launch("gate_and_sums", z.dtype, (dy, y, z, *statistics, g, *parts), _FILE)
    return g, *_summed(parts)


def add_relu_gradient(dy, y, z, mean, prologue=None, residual=None):
    """See composed.add_relu_gradient."""
    y = normalise_add_relu(z, prologue, residual) if y is None else y
    dy, y, z, mean = map(cupy.ascontiguousarray, (dy, y, z, mean))
    return _gate_and_sums(dy, y, z, (mean, None, None), cupy.empty(dy.shape, dy.dtype))


def normalise_gradient(g, z, normalisation):
    """dz = from_dy * g + from_x * (z - mean) + constant."""
    g, z, dz = cupy.ascontiguousarray(g), cupy.ascontiguousarray(z), cupy.empty(g.shape, g.dtype)
    launch_over(g.size, kernel(_FILE, "normalisation_gradient", g.dtype),
                (g, z, *map(cupy.ascontiguousarray, normalisation), dz, np.int64(g.size), np.int32(g.shape[-1])))
    return dz


def conv2d_unit_gradient(g, z, normalisation, x, prologue, weight, stride, padding, residual_gradient, need_dx,
                         front=None, add_to=None, shortcut=None, fresh=False):
    """See composed.conv2d_unit_gradient."""
    if shortcut is not None:
        x, prologue, front = normalise_add_relu(x, prologue, shortcut), None, (x, prologue[0])
    geometry = geometry_of(x.shape, weight.shape[:2], weight.shape[3], stride, padding, _PLAIN)
    dz = g if normalisation is None else normalise_gradient(g, z, normalisation)
    dweight = composed.added(add_to, conv.weight_gradient(dz, x, prologue, geometry), fresh)
    if not need_dx:
        return None, dweight, None, None
    if prologue is not None and geometry.narrow:
        dx, parts = conv.input_gradient(dz, weight, geometry, residual_gradient, x, prologue)
        return dx, dweight, *_summed(parts)
    dx, _ = conv.input_gradient(dz, weight, geometry, residual_gradient)
    if prologue is not None:
        x, *statistics = map(cupy.ascontiguousarray, (x, *prologue))
        dx, sum_dx, sum_dxx = _gate_and_sums(dx, None, x, statistics, dx)
    elif front is not None:
        dx, sum_dx, sum_dxx = add_relu_gradient(dx, x, *front)
    else:
        sum_dx = sum_dxx = None
    return dx, dweight, sum_dx, sum_dxx


def batchnorm_coefficients(sum_g, sum_gx, var, weight, eps, count, add_to=(None, None)):
    """See composed.batchnorm_coefficients."""
    arguments, C = tuple(map(cupy.ascontiguousarray, (sum_g, sum_gx, var, weight))), len(var)
    results = cupy.empty((5, C), var.dtype)
    launch_over(C, kernel(_FILE, "batchnorm_coefficients", var.dtype),
                (*arguments, np.float64(eps), np.float64(0 if count is None else 1 / count), *results, np.int32(C)))
    *factors, dweight, dbias = results
    return *factors, composed.added(add_to[0], dweight), composed.added(add_to[1], dbias)
