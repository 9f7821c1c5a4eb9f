"""Normalisation over the batch and over channels, and sums over all but the channels: kernels/norm.cu.

Over groups it is CuPy's, by `minires.backends.groupnorm`.
"""
import math

import cupy

from minires.backends import groupnorm
from minires.backends.cuda.compiler import kernel, launch_over

BLOCK, WARP = 256, 32  # as in kernels/common.cuh
ROWS_OF_A_THREAD = 16  # that a thread adds up, unless there are too many for MOST_PARTS blocks
MOST_PARTS = 512  # blocks, each with a partial result, that share a channel


class Columns:
    """How blocks share (rows, C): see Columns in kernels/common.cuh.

    width: channels a block, a power of two; span: rows a block; grid, tail: for launches whose arguments end in (rows, C,
    width, span); parts: blocks, and so partial results, a channel.
    """

    def __init__(self, x, span=None):
        self.C = x.shape[-1]
        self.rows = x.size // self.C
        self.width = min(WARP, 1 << (self.C - 1).bit_length())
        least = ROWS_OF_A_THREAD * (BLOCK // self.width)
        self.span = span or max(least, math.ceil(self.rows / MOST_PARTS))
        self.parts = math.ceil(self.rows / self.span)
        self.grid = math.ceil(self.C / self.width), self.parts
        self.tail = self.rows, self.C, self._int(self.width), self.span

    @staticmethod
    def _int(value):
        return cupy.int32(value)

    def launch(self, name, dtype, arguments, file="norm.cu"):
        """Launch a kernel that walks over rows."""
        kernel(file, name, dtype)(self.grid, (BLOCK,), (*arguments, *self.tail))

    def finish(self, name, dtype, arguments):
        """Launch a kernel that takes a warp a channel."""
        launch_over(self.C * WARP, kernel("norm.cu", name, dtype), arguments)


def _contiguous(*arrays):
    return [cupy.ascontiguousarray(array) for array in arrays]


def _vector(columns, dtype):
    return cupy.empty(columns.C, dtype)


def _parts(columns, dtype):
    return cupy.empty((columns.C, columns.parts), dtype)


def channel_sum(dy):
    (dy,) = _contiguous(dy)
    columns, dtype = Columns(dy), dy.dtype
    parts, total = _parts(columns, dtype), _vector(columns, dtype)
    columns.launch("gradient_sums", dtype, (dy, None, None, parts, None))
    columns.finish("finish_sums", dtype, (parts, None, None, total, None, 0.0, columns.C, cupy.int32(columns.parts)))
    return total


def batch_moments(x):
    (x,) = _contiguous(x)
    columns, dtype = Columns(x), x.dtype
    means, squares = _parts(columns, dtype), _parts(columns, dtype)
    mean, var = _vector(columns, dtype), _vector(columns, dtype)
    columns.launch("moments", dtype, (x, means, squares))
    columns.finish("finish_moments", dtype, (means, squares, mean, var, columns.rows, columns.C, cupy.int32(columns.parts),
                                             columns.span))
    return mean, var


def batchnorm_forward(x, weight, bias, eps):
    mean, var = batch_moments(x)
    return batchnorm_apply(x, mean, var, weight, bias, eps), mean, var


def batchnorm_apply(x, mean, var, weight, bias, eps):
    x, *statistics = _contiguous(x, mean, var, weight, bias)
    y = cupy.empty(x.shape, x.dtype)
    Columns(x).launch("normalise", x.dtype, (x, *statistics, y, float(eps)))
    return y


def gradient_sums(g, z, mean):
    g, z, mean = _contiguous(g, z, mean)
    columns, dtype = Columns(z), z.dtype
    sums, sums_x = _parts(columns, dtype), _parts(columns, dtype)
    sum_g, sum_gx = _vector(columns, dtype), _vector(columns, dtype)
    columns.launch("gradient_sums", dtype, (g, z, mean, sums, sums_x))
    columns.finish("finish_sums", dtype, (sums, sums_x, None, sum_g, sum_gx, 0.0, columns.C, cupy.int32(columns.parts)))
    return sum_g, sum_gx


def batchnorm_backward(dy, x, mean, var, weight, eps, batch_statistics):
    dy, x, mean, var, weight = _contiguous(dy, x, mean, var, weight)
    columns, dtype = Columns(x), x.dtype
    sums, sums_x = _parts(columns, dtype), _parts(columns, dtype)
    dweight, dbias, dx = _vector(columns, dtype), _vector(columns, dtype), cupy.empty(x.shape, dtype)
    columns.launch("gradient_sums", dtype, (dy, x, mean, sums, sums_x))
    columns.finish("finish_sums", dtype, (sums, sums_x, var, dbias, dweight, float(eps), columns.C,
                                          cupy.int32(columns.parts)))
    columns.launch("normalise_backward", dtype, (dy, x, mean, var, weight, dweight, dbias, dx, float(eps),
                                                 bool(batch_statistics)))
    return dx, dweight, dbias


def layernorm_forward(x, weight, bias, eps):
    x, weight, bias = _contiguous(x, weight, bias)
    y = cupy.empty(x.shape, x.dtype)
    mean, var = (cupy.empty((*x.shape[:-1], 1), x.dtype) for _ in range(2))
    launch_over(mean.size * WARP, kernel("norm.cu", "layernorm_forward", x.dtype),
                (x, weight, bias, y, mean, var, float(eps), mean.size, x.shape[-1]))
    return y, mean, var


def layernorm_backward(dy, x, mean, var, weight, eps):
    dy, x, mean, var, weight = _contiguous(dy, x, mean, var, weight)
    columns, dtype, dx = Columns(x), x.dtype, cupy.empty(x.shape, x.dtype)
    launch_over(mean.size * WARP, kernel("norm.cu", "layernorm_backward", dtype),
                (dy, x, mean, var, weight, dx, float(eps), mean.size, x.shape[-1]))
    sums, sums_x = _parts(columns, dtype), _parts(columns, dtype)
    dweight, dbias = _vector(columns, dtype), _vector(columns, dtype)
    columns.launch("layernorm_sums", dtype, (dy, x, mean, var, sums, sums_x, float(eps)))
    columns.finish("finish_sums", dtype, (sums, sums_x, None, dbias, dweight, 0.0, columns.C, cupy.int32(columns.parts)))
    return dx, dweight, dbias


def groupnorm_forward(x, weight, bias, groups, eps):
    return groupnorm.groupnorm_forward(*_contiguous(x, weight, bias), groups, eps)


def groupnorm_backward(dy, x, mean, var, weight, eps):
    return groupnorm.groupnorm_backward(*_contiguous(dy, x, mean, var, weight), eps)


def normalisation_scale(weight, var, eps):
    weight, var, scale = *_contiguous(weight, var), cupy.empty(var.shape, var.dtype)
    launch_over(var.size, kernel("norm.cu", "normalisation_scale", var.dtype), (weight, var, scale, float(eps), var.size))
    return scale


def update_running(running_mean, running_var, mean, var, momentum, m):
    for running, batch, factor in ((running_mean, mean, 1.0), (running_var, var, m / (m - 1))):
        own, batch = _contiguous(running, batch)
        launch_over(own.size, kernel("norm.cu", "follow", own.dtype),
                    (own, batch, float(1 - momentum), float(momentum), factor, own.size))
        if own is not running:
            running[...] = own
