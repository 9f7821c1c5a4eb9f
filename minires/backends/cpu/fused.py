"""The fused operators: a training step that stores one image a unit and reads it as few times as it can.

What they compute is `minires.backends.composed`; the derivations are those of the layers. For a block of two units with
tensors of T bytes, forward reads x, writes z1; reads z1, writes z2; reads z2 and x, writes y: 7 T. Backward reads dy, y
and z2, writes g; reads g, z2 and z1, writes the gradient at the first ReLU; reads that, z1, x and g, writes dx: 13 T.
Unfused the same block moves 44 T, since each normalisation, ReLU and addition makes a pass of its own. Where a network drops
the images between blocks (layers/fused.py), forming y again moves 3 T more.

`unit_gradient`, loop order: as the weight gradient in conv.py, but for each image dz is formed in padded scratch, once,
and serves the weight gradient and the input gradient; then the ReLU's mask and the two sums that the normalisation in
front needs are taken from dx while it is in the cache.

Channel counts that no vector divides are computed by the composition of the plain kernels.
"""
from functools import cache

import numpy as np
from numba import njit

from minires.backends import composed
from minires.backends.cpu import conv, elementwise, norm, winograd
from minires.backends.cpu.algorithm import winograd_size
from minires.backends.cpu.arena import aligned, empty
from minires.backends.cpu.conv import flipped, pack_transposed, weight_gradient_image
from minires.backends.cpu.gather import GROUPS, gather_image, run_gather
from minires.backends.cpu.geometry import choose_tiling, forward_gather, input_gradient_gather, round_up, weight_runs
from minires.backends.cpu.host import lanes_of
from minires.backends.cpu.images import copy_image, finish_gradient, load_gradient, load_normalised, scratch
from minires.backends.cpu.moments import merge_moments, sum_partials, totals
from minires.backends.cpu.simd import load, rectify, store, stream, where_positive
from minires.backends.cpu.threads import claim, launch

PLAIN = (1, 1)  # dilation


class _PlainKernels:
    """What `composed` calls when a shape has no fused kernel."""

    conv2d_forward = staticmethod(conv.conv2d_forward)
    conv2d_input_gradient = staticmethod(conv.conv2d_input_gradient)
    conv2d_weight_gradient = staticmethod(conv.conv2d_weight_gradient)
    relu_forward, relu_backward = staticmethod(elementwise.relu_forward), staticmethod(elementwise.relu_backward)
    add, channel_sum = staticmethod(elementwise.add), staticmethod(norm.channel_sum)


def divides(array, *channels):
    """Whether the host's vectors of the array's dtype divide each of the channel counts."""
    return all(count % lanes_of(array.dtype) == 0 for count in channels)


def contiguous(arrays):
    """C-contiguous versions of some arrays (None stays None): what the kernels read as memory."""
    return None if arrays is None else tuple(None if array is None else np.ascontiguousarray(array) for array in arrays)


def conv2d_moments(x, prologue, weight, stride, padding):
    """z = conv(a(x)), its mean and biased variance: see composed."""
    x, prologue = np.ascontiguousarray(x), contiguous(prologue)
    KH, KW, C, O = weight.shape
    if not divides(x, O) or (prologue is not None and not divides(x, C)):
        return composed.conv2d_moments(_PlainKernels, x, prologue, weight, stride, padding)
    N = len(x)
    m = winograd_size(x.shape, x.dtype, O, (KH, KW), stride, padding, PLAIN)
    plan = forward_gather(*x.shape[1:], O, lanes_of(x.dtype), (KH, KW), stride, padding, PLAIN)
    means, squares = np.empty((2, N, O), x.dtype)
    if m:
        z = winograd.forward(m, x, prologue, weight, (means, squares))
    else:
        z = run_gather(plan, x, weight.reshape(-1), O, prologue, (means, squares))
    return z, *merge_moments(means, squares, np.full(N, z.shape[1] * z.shape[2]))


def conv2d_bias_relu(x, weight, bias, residual, relu, stride, padding):
    """y = relu(conv(x) + bias + residual): see composed."""
    x, (bias, residual) = np.ascontiguousarray(x), contiguous((bias, residual))
    KH, KW, C, O = weight.shape
    if not divides(x, O):
        return composed.conv2d_bias_relu(_PlainKernels, x, weight, bias, residual, relu, stride, padding)
    m = winograd_size(x.shape, x.dtype, O, (KH, KW), stride, padding, PLAIN)
    if m:
        return winograd.forward(m, x, None, weight, epilogue=(bias, residual, relu))
    plan = forward_gather(*x.shape[1:], O, lanes_of(x.dtype), (KH, KW), stride, padding, PLAIN)
    return run_gather(plan, x, weight.reshape(-1), O, epilogue=(bias, residual, relu))


@cache
def _normalise_add_relu_kernel(lanes):
    @njit(nogil=True, cache=True)
    def normalise_add_relu(tasks, counter, thread, z, mean, scale, bias, residual, y):
        M, C = z.shape
        part = claim(counter)
        while part < tasks:
            start, end = part * M // norm.PARTS, (part + 1) * M // norm.PARTS
            for c in range(0, C, lanes):
                m, s, b = load(lanes, mean, c), load(lanes, scale, c), load(lanes, bias, c)
                for i in range(start * C + c, end * C + c, C):
                    v = (load(lanes, z, i) - m) * s + b
                    if residual.size:
                        v = v + load(lanes, residual, i)
                    stream(y, i, rectify(v))
            part = claim(counter)

    return normalise_add_relu


def normalise_add_relu(z, prologue, residual):
    """y = relu((z - mean) * scale + bias + residual): see composed."""
    if not divides(z, z.shape[3]):
        return composed.normalise_add_relu(_PlainKernels, z, prologue, residual)
    y, prologue = empty(z.shape, z.dtype), contiguous(prologue)
    residual = np.empty((0, 0), z.dtype) if residual is None else norm.rows(residual)
    launch(_normalise_add_relu_kernel(lanes_of(z.dtype)), norm.PARTS, z.size, norm.rows(z), *prologue, residual,
           norm.rows(y))
    return y


@cache
def _add_relu_gradient_kernel(lanes):
    @njit(nogil=True, cache=True)
    def add_relu_gradient(tasks, counter, thread, dy, y, z, mean, g, sums):
        M, C = z.shape
        part = claim(counter)
        while part < tasks:
            start, end = part * M // norm.PARTS, (part + 1) * M // norm.PARTS
            for c in range(0, C, lanes):
                m = load(lanes, mean, c)
                total, product = m - m, m - m
                for i in range(start * C + c, end * C + c, C):
                    v = where_positive(load(lanes, y, i), load(lanes, dy, i))
                    stream(g, i, v)
                    total = total + v
                    product = product + v * (load(lanes, z, i) - m)
                store(sums, 2 * part * C + c, total)
                store(sums, (2 * part + 1) * C + c, product)
            part = claim(counter)

    return add_relu_gradient


def add_relu_gradient(dy, y, z, mean):
    """g = dy where y > 0, sum(g), sum(g * (z - mean)): see composed."""
    C = z.shape[3]
    if not divides(z, C):
        return composed.add_relu_gradient(_PlainKernels, dy, y, z, mean)
    g, sums = empty(dy.shape, dy.dtype), np.empty((norm.PARTS, 2, C), dy.dtype)
    launch(_add_relu_gradient_kernel(lanes_of(z.dtype)), norm.PARTS, z.size, norm.rows(dy), norm.rows(y), norm.rows(z),
           np.ascontiguousarray(mean), norm.rows(g), sums)
    return g, *totals(sums)


@cache
def _unit_gradient_kernel(rows, across, vectors, weight_rows, weight_vectors, lanes):
    @njit(nogil=True, cache=True)
    def unit_gradient(tasks, counter, t, g, z, normalisation, z_images, z_start, z_pitch, x, prologue, x_images, x_start,
                      x_pitch, weight, phases, segments, residual, dx, sums, runs, run, step_row, step_column, partial):
        N, G, OH, O, H, WC, C = (g.shape[0], partial.shape[0], g.shape[1], normalisation[0].size, x.shape[1], x.shape[2],
                                 weight.shape[1])
        z_image, x_image = z_images[t], x_images[t]
        k = claim(counter)
        while k < tasks:
            partial[k] = 0
            for n in range(k * N // G, (k + 1) * N // G):
                load_gradient(lanes, g, z, n, normalisation, z_image, z_start, z_pitch)
                if prologue[0].size:
                    load_normalised(lanes, x, n, prologue, x_image, x_start, x_pitch)
                else:
                    copy_image(x, n, x_image, x_start, x_pitch)
                weight_gradient_image(weight_rows, weight_vectors, lanes, x_image, z_image, z_start, z_pitch, partial[k], O,
                                      0, O, OH, g.shape[2] // O, runs, run, step_row, step_column)
                if dx.size:
                    gather_image(rows, across, vectors, lanes, z_image, weight.reshape(-1), dx, n * H * WC, C, 0, C, phases,
                                 segments, z_pitch, O)
                    finish_gradient(lanes, dx, n * H * WC, x_image, x_start, x_pitch, x, prologue, H, WC, C, residual, sums,
                                    n)
            k = claim(counter)

    return unit_gradient


def conv2d_unit_gradient(g, z, normalisation, x, prologue, weight, stride, padding, residual_gradient, need_dx):
    """-> dx, dweight, sum(dx), sum(dx * (x - mean)): see composed."""
    g, z, x, residual_gradient = contiguous((g, z, x, residual_gradient))
    normalisation, prologue = contiguous(normalisation), contiguous(prologue)
    KH, KW, C, O = weight.shape
    N, H, W, _ = x.shape
    lanes = lanes_of(x.dtype)
    m = winograd_size(x.shape, x.dtype, O, (KH, KW), stride, padding, PLAIN)
    if m:
        dx, dweight, sums = winograd.unit_gradient(m, g, z, normalisation, x, prologue, flipped(weight), residual_gradient,
                                                   need_dx)
        return dx, dweight, *(totals(sums) if need_dx and prologue is not None else (None, None))
    dweight = empty((KH * KW * C, O), x.dtype)
    groups = min(N, GROUPS)
    if not divides(x, O) or (need_dx and not divides(x, C)) or groups * dweight.nbytes > conv.PARTIAL_BYTES:
        return composed.conv2d_unit_gradient(_PlainKernels, g, z, normalisation, x, prologue, weight, stride, padding,
                                             residual_gradient, need_dx)
    nothing = np.empty(0, x.dtype)
    plan = input_gradient_gather(H, W, round_up(C, lanes), O, lanes, (KH, KW), stride, padding, PLAIN)
    z_pitch, x_pitch = plan.padded[1] * O, (W + 2 * padding[1]) * C
    z_image = scratch((plan.low, plan.padded, *g.shape[1:]), plan.padded[0] * z_pitch, x.dtype)
    x_image = scratch((padding, padding, H, W, C, "x"), (H + 2 * padding[0]) * x_pitch, x.dtype)
    tiling = choose_tiling(O // lanes, 1, C * KW)
    runs, run = weight_runs((KH, KW), PLAIN, C, x_pitch)
    partial = empty((groups, len(runs), round_up(run, tiling.rows), O), x.dtype)
    dx = empty((N, H, W, C), x.dtype) if need_dx else nothing
    sums = np.empty((N, 2, C), x.dtype)
    packed = aligned(pack_transposed(weight, plan.taps, C)).reshape(-1, C) if need_dx else np.empty((0, C), x.dtype)
    kernel = _unit_gradient_kernel(*plan.tiling, tiling.rows, tiling.vectors, lanes)
    launch(kernel, groups, 2 * g.size * len(dweight), g.reshape(N, g.shape[1], -1), z.reshape(N, g.shape[1], -1),
           normalisation,
           z_image, plan.low[0] * z_pitch + plan.low[1] * O, z_pitch,
           x.reshape(N, H, -1), prologue or (nothing,) * 3,
           x_image, padding[0] * x_pitch + padding[1] * C, x_pitch,
           packed, plan.phases, plan.segments,
           nothing if residual_gradient is None else residual_gradient.reshape(-1), dx.reshape(-1), sums,
           runs, run, stride[0] * x_pitch, stride[1] * C, partial)
    launch(sum_partials, len(dweight), partial.size, partial, run, dweight)
    both = totals(sums) if need_dx and prologue is not None else (None, None)
    return (dx if need_dx else None), dweight.reshape(KH, KW, C, O), *both


batchnorm_coefficients = composed.batchnorm_coefficients
