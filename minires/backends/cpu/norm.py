"""Normalisation over the batch and over the channels of a pixel.

Batch normalisation is two passes either way: one that sums over the pixels, a fixed number of parts each with its own
sums, merged in order and in float64 (the bits do not depend on the number of threads), and one that maps.

Bytes moved: forward x twice and y once; backward dy and x twice and dx once.
"""
from functools import cache

import numpy as np

from minires.backends.cpu import jit
from minires.backends.cpu.arena import empty
from minires.backends.cpu.host import lanes_of
from minires.backends.cpu.moments import add_channel, channel_lanes, merge_channel, moments, put
from minires.backends.cpu.simd import load, prefetch, rectify, store, where_positive
from minires.backends.cpu.threads import await_tasks, claimed, enter, here, launch

PARTS = 64


def rows(array):
    """(..., C) as (M, C), C-contiguous (a view where it is already)."""
    return np.ascontiguousarray(array).reshape(-1, array.shape[-1])


def _vectors(x):
    """(lanes, whole): the vectors that kernels compute channels in, and whether rows are made of whole ones of the host's.

    Else the last vector of a row overlaps the one before, and computes some channels again; as a result may lie where an
    operand lay, they are not stored again.
    """
    C = x.shape[-1]
    return channel_lanes(C, x.dtype), C % lanes_of(x.dtype) == 0


@cache
def _batch_moments_kernel(lanes):
    @jit.kernel
    def batch_moments(tasks, counter, thread, x, means, squares, counts, merged):
        M = x.shape[0]
        for part in claimed(tasks, counter, thread):
            start, end = part * M // PARTS, (part + 1) * M // PARTS
            if part >= PARTS:
                await_tasks(counter, PARTS)
                merge_channel(means, squares, counts, part - PARTS, merged)
            elif start < end:
                moments(lanes, x, start, end, means, squares, part)

    return batch_moments


def batch_moments(x):
    """The mean and the biased variance of each channel: x: (..., C) -> (C,), (C,)."""
    flat = rows(x)
    M, C = flat.shape
    (means, squares), merged = np.zeros((2, PARTS, C), x.dtype), np.empty((2, C), x.dtype)
    launch(_batch_moments_kernel(channel_lanes(C, x.dtype)), PARTS + C, x.size, flat, means, squares,
           np.diff(np.arange(PARTS + 1) * M // PARTS), merged)
    return merged[0], merged[1]


@cache
def _affine_kernel(lanes, whole):
    @jit.kernel
    def affine(tasks, counter, thread, z, mean, scale, bias, residual, relu, y):
        M, C = z.shape
        for part in claimed(tasks, counter, thread):
            for row in range(part * M // PARTS, (part + 1) * M // PARTS):
                for c0 in range(0, C, lanes):
                    c = min(c0, C - lanes)
                    i = row * C + c
                    prefetch(z, i)
                    v = (load(lanes, z, i) - load(lanes, mean, c)) * load(lanes, scale, c) + load(lanes, bias, c)
                    if residual.size:
                        prefetch(residual, i)
                        v = v + load(lanes, residual, i)
                    if relu:
                        v = rectify(v)
                    put(whole, y, i, v, c0 - c)

    return affine


def _affine(z, prologue, residual, relu):
    y = empty(z.shape, z.dtype)
    residual = np.empty((0, 0), z.dtype) if residual is None else rows(residual)
    launch(_affine_kernel(*_vectors(z)), PARTS, z.size, rows(z), *map(np.ascontiguousarray, prologue), residual, relu,
           rows(y))
    return y


def normalise(z, prologue):
    """y = (z - mean) * scale + bias, prologue: those three, each (C,)."""
    return _affine(z, prologue, None, False)


def normalise_add_relu(z, prologue, residual):
    """y = relu((z - mean) * scale + bias + residual): see composed."""
    return _affine(z, prologue, residual, True)


@cache
def _sums_kernel(lanes, whole):
    @jit.kernel
    def sums(tasks, counter, thread, dy, y, z, mean, scale, bias, residual, g, sums, total):
        M, C = z.shape
        for part in claimed(tasks, counter, thread):
            if part >= PARTS:
                await_tasks(counter, PARTS)
                add_channel(sums, part - PARTS, total)
                continue
            for c0 in range(0, C, lanes):
                c = min(c0, C - lanes)
                m = load(lanes, mean, c)
                s, b = (load(lanes, scale, c), load(lanes, bias, c)) if scale.size else (m, m)
                added, product = m - m, m - m
                for i in range(part * M // PARTS * C + c, (part + 1) * M // PARTS * C + c, C):
                    v, centred = load(lanes, dy, i), load(lanes, z, i) - m
                    if g.size:
                        if scale.size:
                            a = centred * s + b
                            if residual.size:
                                a = a + load(lanes, residual, i)
                        else:
                            a = load(lanes, y, i)
                        v = where_positive(a, v)
                        put(whole, g, i, v, 0)  # again where vectors overlap, which changes nothing, in place neither
                    added = added + v
                    product = product + v * centred
                store(sums, 2 * part * C + c, added)
                store(sums, (2 * part + 1) * C + c, product)

    return sums


def _sums(dy, y, z, mean, prologue, residual, g):
    """What `add_relu_gradient` gives, whose g is written to `g`; None: g is dy as it is."""
    C, none, nothing = z.shape[-1], np.empty(0, z.dtype), np.empty((0, 0), z.dtype)
    y, residual, g = (nothing if array is None else rows(array) for array in (y, residual, g))
    _, scale, bias = (mean, none, none) if prologue is None else map(np.ascontiguousarray, prologue)
    sums, total = np.empty((PARTS, 2, C), z.dtype), np.empty((2, C), z.dtype)
    launch(_sums_kernel(*_vectors(z)), PARTS + C, z.size, rows(dy), y, rows(z), np.ascontiguousarray(mean), scale, bias,
           residual, g, sums, total)
    return total[0], total[1]


def gradient_sums(g, z, mean):
    """sum(g) and sum(g * (z - mean)) over all but the channels, each (C,)."""
    return _sums(g, None, z, mean, None, None, None)


def channel_sum(dy):
    """The gradient of a bias: dy: (..., C) -> (C,)."""
    return gradient_sums(dy, dy, np.zeros(dy.shape[-1], dy.dtype))[0]


def add_relu_gradient(dy, y, z, mean, prologue=None, residual=None):
    """g = dy where y > 0, sum(g), sum(g * (z - mean)): see composed."""
    g = empty(dy.shape, dy.dtype)
    return g, *_sums(dy, y, z, mean, prologue if y is None else None, residual, g)


@cache
def _gradient_kernel(lanes, whole):
    @jit.kernel
    def gradient(tasks, counter, thread, g, z, mean, from_dy, from_x, constant, dz):
        M, C = z.shape
        for part in claimed(tasks, counter, thread):
            for row in range(part * M // PARTS, (part + 1) * M // PARTS):
                for c0 in range(0, C, lanes):
                    c = min(c0, C - lanes)
                    i = row * C + c
                    v = (load(lanes, z, i) - load(lanes, mean, c)) * load(lanes, from_x, c) + load(lanes, constant, c)
                    v = load(lanes, g, i) * load(lanes, from_dy, c) + v
                    put(whole, dz, i, v, c0 - c)

    return gradient


def normalise_gradient(g, z, normalisation):
    """dz = from_dy * g + from_x * (z - mean) + constant, normalisation: (mean, from_dy, from_x, constant), each (C,)."""
    dz = empty(g.shape, g.dtype)
    launch(_gradient_kernel(*_vectors(z)), PARTS, z.size, rows(g), rows(z), *map(np.ascontiguousarray, normalisation),
           rows(dz))
    return dz


def batchnorm_forward(x, weight, bias, eps):
    """x: (..., C) -> y: (..., C) and the batch's mean and (biased) var: (C,)."""
    mean, var = batch_moments(x)
    return batchnorm_apply(x, mean, var, weight, bias, eps), mean, var


def batchnorm_apply(x, mean, var, weight, bias, eps):
    """y = weight * (x - mean) / sqrt(var + eps) + bias, in one pass."""
    return normalise(x, (mean, normalisation_scale(weight, var, eps), bias))


def batchnorm_backward(dy, x, mean, var, weight, eps, batch_statistics):
    """-> dx: (..., C), dweight: (C,), dbias: (C,)."""
    count = x.size // x.shape[-1] if batch_statistics else None
    *factors, dweight, dbias = batchnorm_coefficients(*gradient_sums(dy, x, mean), var, weight, eps, count)
    return normalise_gradient(dy, x, (mean, *factors)), dweight, dbias


def batchnorm_coefficients(sum_g, sum_gx, var, weight, eps, count, add_to=(None, None)):
    """(from_dy, from_x, constant), dweight and dbias: see composed."""
    gradients = [np.zeros_like(var) if gradient is None else gradient for gradient in add_to]
    factors = np.empty((3, len(var)), var.dtype)
    launch(_coefficients, 1, len(var), sum_g, sum_gx, var, weight, eps, 0.0 if count is None else 1 / count, factors,
           *gradients)
    return *factors, *(value if gradient is None else None for value, gradient in zip(gradients, add_to, strict=True))


@jit.kernel
def _coefficients(tasks, counter, thread, sum_g, sum_gx, var, weight, eps, part, factors, weight_gradient, bias_gradient):
    """In one call what NumPy does in twenty, each of them slower than all of this (see threads.py)."""
    enter(counter, thread)
    for c in range(var.size):
        inv_std = 1 / np.sqrt(np.float64(var[c]) + eps)
        from_dy, dweight = weight[c] * inv_std, sum_gx[c] * inv_std
        factors[0, c] = from_dy
        factors[1, c] = -from_dy * inv_std * dweight * part
        factors[2, c] = -from_dy * sum_g[c] * part
        weight_gradient[c] += dweight
        bias_gradient[c] += sum_g[c]


@jit.kernel
def _scale(tasks, counter, thread, weight, var, eps, scale):
    enter(counter, thread)
    for c in range(scale.size):
        scale[c] = weight[c] / np.sqrt(var[c] + eps)


def normalisation_scale(weight, var, eps):
    """weight / sqrt(var + eps): (C,)."""
    scale = np.empty(var.shape, var.dtype)
    launch(_scale, 1, var.size, weight, var, var.dtype.type(eps), scale)
    return scale


@jit.kernel
def _follow(tasks, counter, thread, running_mean, running_var, mean, var, keep, take, unbias):
    enter(counter, thread)
    for c in range(running_mean.size):
        running_mean[c] = keep * running_mean[c] + take * mean[c]
        running_var[c] = keep * running_var[c] + take * var[c] * unbias


def update_running(running_mean, running_var, mean, var, momentum, m):
    """Let running statistics follow those of a batch of m values a channel, in place: see composed."""
    numbers = map(running_var.dtype.type, (1 - momentum, momentum, m / (m - 1)))
    launch(_follow, 1, mean.size, running_mean, running_var, mean, var, *numbers)


@jit.kernel
def _layernorm(tasks, counter, thread, x, weight, bias, eps, y, mean, var):
    M, C = x.shape
    for part in claimed(tasks, counter, thread):
        for row in range(part * M // PARTS, (part + 1) * M // PARTS):
            total = x[row, 0] - x[row, 0]
            for c in range(C):
                total += x[row, c]
            mean[row] = total / C
            square = total - total
            for c in range(C):
                square += (x[row, c] - mean[row]) ** 2
            var[row] = square / C
            inv_std = 1 / np.sqrt(var[row] + eps)
            for c in range(C):
                y[row, c] = weight[c] * ((x[row, c] - mean[row]) * inv_std) + bias[c]


@jit.kernel
def _layernorm_gradient(tasks, counter, thread, dy, x, mean, var, weight, eps, dx, dweight, dbias):
    M, C = x.shape
    for part in claimed(tasks, counter, thread):
        dweight[part] = 0
        dbias[part] = 0
        for row in range(part * M // PARTS, (part + 1) * M // PARTS):
            inv_std = 1 / np.sqrt(var[row] + eps)
            g_sum = dy[row, 0] - dy[row, 0]
            g_x_sum = g_sum
            for c in range(C):
                x_hat = (x[row, c] - mean[row]) * inv_std
                dweight[part, c] += dy[row, c] * x_hat
                dbias[part, c] += dy[row, c]
                g_sum += weight[c] * dy[row, c]
                g_x_sum += weight[c] * dy[row, c] * x_hat
            for c in range(C):
                x_hat = (x[row, c] - mean[row]) * inv_std
                dx[row, c] = inv_std * (weight[c] * dy[row, c] - g_sum / C - x_hat * g_x_sum / C)


def layernorm_forward(x, weight, bias, eps):
    """x: (..., C) -> y: (..., C), mean and var over the channels: (..., 1)."""
    y = empty(x.shape, x.dtype)
    mean, var = (np.empty((*x.shape[:-1], 1), x.dtype) for _ in range(2))
    launch(_layernorm, PARTS, x.size, rows(x), weight, bias, x.dtype.type(eps), rows(y),
           mean.reshape(-1), var.reshape(-1))
    return y, mean, var


def layernorm_backward(dy, x, mean, var, weight, eps):
    """-> dx: (..., C), dweight: (C,), dbias: (C,)."""
    dx = empty(x.shape, x.dtype)
    parts = np.empty((2, PARTS, x.shape[-1]), x.dtype)
    launch(_layernorm_gradient, PARTS, x.size, rows(dy), rows(x), mean.reshape(-1), var.reshape(-1), weight,
           x.dtype.type(eps), rows(dx), *parts)
    return dx, *here(np.sum, parts, 1)
