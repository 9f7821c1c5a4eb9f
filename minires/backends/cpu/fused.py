"""The fused operators: a training step that stores one image a unit and reads it as few times as it can.

What they compute is `minires.backends.composed`; the derivations are those of the layers. For a block of two units with
tensors of T bytes, forward reads x, writes z1; reads z1, writes z2; reads z2 and x, writes y: 7 T. Backward reads dy, y
and z2, writes g; reads g, z2 and z1, writes the gradient at the first ReLU; reads that, z1, x and g, writes dx: 13 T.
Layer by layer the same block moves 44 T, since each normalisation, ReLU and addition makes a pass of its own. A plan joins
blocks (minires/plan/rewrites.py). Forward the next block then reads z2 and x, and writes y beside its own z1: 6 T. Backward
what writes dx reads the z2 of the block in front as well and writes that block's g: 10 T. Where y is dropped between forward
and backward, forming it again moves 3 T more, of a stage's last one 1 T: the convolution's gradient forms it as it reads.

`unit_gradient`, loop order: as the weight gradient in conv.py, but for each image dz is formed in padded scratch, once,
and serves the weight gradient and the input gradient; dx is formed in scratch too, and the ReLU's mask and the two sums
that the normalisation in front needs are taken on its way to memory. The last phase adds up the groups' weight gradients,
into the parameter's own, and the images' sums.

Channel counts that no vector divides are computed by the composition of the plain kernels.
"""
from functools import cache, lru_cache

import numpy as np

from minires.backends import composed
from minires.backends.cpu import conv, elementwise, jit, norm, winograd
from minires.backends.cpu.algorithm import winograd_size
from minires.backends.cpu.arena import empty
from minires.backends.cpu.conv import pack_transposed, weight_gradient_image
from minires.backends.cpu.gather import GROUPS, gather_image, run_gather
from minires.backends.cpu.geometry import choose_tiling, forward_gather, input_gradient_gather, round_up, weight_runs
from minires.backends.cpu.host import lanes_of
from minires.backends.cpu.images import (
    copy_image,
    finish_gradient,
    front_of,
    load_gradient,
    load_normalised,
    padded_images,
    prologue_of,
    scratch,
    sums_room,
    weight_room,
)
from minires.backends.cpu.moments import add_channel, add_rows, row_tasks
from minires.backends.cpu.simd import load, prefetch, rectify, store, stream, where_positive
from minires.backends.cpu.threads import await_tasks, claim, claim_next, enter, here, launch, leave
from minires.backends.reference import output_size

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
    if not divides(x, weight.shape[3]) or (prologue is not None and not divides(x, weight.shape[2])):
        return here(composed.conv2d_moments, _PlainKernels, x, prologue, weight, stride, padding)
    return _conv2d_moments(x, prologue, weight, stride, padding)


def add_relu_conv2d_moments(z, prologue, residual, weight, stride, padding):
    """y = relu((z - mean) * scale + bias + residual), conv(y), its mean and biased variance: see composed."""
    if not divides(z, *weight.shape[2:]):
        return here(composed.add_relu_conv2d_moments, _PlainKernels, z, prologue, residual, weight, stride, padding)
    (z, residual), y = contiguous((z, residual)), empty(z.shape, z.dtype)
    return y, *_conv2d_moments(z, contiguous(prologue), weight, stride, padding, residual, y)


def _conv2d_moments(x, prologue, weight, stride, padding, shortcut=None, formed=None):
    KH, KW, _, O = weight.shape
    m = winograd_size(x.shape, x.dtype, O, (KH, KW), stride, padding, PLAIN)
    merged = np.empty((2, O), x.dtype)
    if m:
        z = winograd.forward(m, x, prologue, weight, merged, None, shortcut, formed)
    else:
        plan = forward_gather(*x.shape[1:], O, lanes_of(x.dtype), (KH, KW), stride, padding, PLAIN)
        z = run_gather(plan, x, weight.reshape(-1), O, prologue, merged, None, shortcut, formed)
    return z, merged[0], merged[1]


def prepare(weight, x_shape, stride, padding):
    """Winograd's points of the weights, or the weights where the kernels read them best."""
    m = winograd_size(x_shape, weight.dtype, weight.shape[3], weight.shape[:2], stride, padding, PLAIN)
    return winograd.transformed(m, weight) if m else elementwise.aligned(weight)


def conv2d_bias_relu(x, weight, bias, residual, relu, stride, padding, prepared=None):
    """y = relu(conv(x) + bias + residual): see composed."""
    x, (bias, residual) = np.ascontiguousarray(x), contiguous((bias, residual))
    KH, KW, C, O = weight.shape
    if not divides(x, O):
        return here(composed.conv2d_bias_relu, _PlainKernels, x, weight, bias, residual, relu, stride, padding)
    m = winograd_size(x.shape, x.dtype, O, (KH, KW), stride, padding, PLAIN)
    if m:
        return winograd.forward(m, x, None, weight, epilogue=(bias, residual, relu), points=prepared)
    plan = forward_gather(*x.shape[1:], O, lanes_of(x.dtype), (KH, KW), stride, padding, PLAIN)
    return run_gather(plan, x, (weight if prepared is None else prepared).reshape(-1), O, epilogue=(bias, residual, relu))


@cache
def _normalise_add_relu_kernel(lanes):
    @jit.kernel
    def normalise_add_relu(tasks, counter, thread, z, mean, scale, bias, residual, y):
        enter(counter, thread)
        M, C = z.shape
        part = claim(counter)
        while part < tasks:
            start, end = part * M // norm.PARTS, (part + 1) * M // norm.PARTS
            for c in range(0, C, lanes):
                m, s, b = load(lanes, mean, c), load(lanes, scale, c), load(lanes, bias, c)
                for i in range(start * C + c, end * C + c, C):
                    prefetch(z, i)
                    v = (load(lanes, z, i) - m) * s + b
                    if residual.size:
                        prefetch(residual, i)
                        v = v + load(lanes, residual, i)
                    stream(y, i, rectify(v))
            part = claim(counter)
        leave(counter, thread)

    return normalise_add_relu


def normalise_add_relu(z, prologue, residual):
    """y = relu((z - mean) * scale + bias + residual): see composed."""
    if not divides(z, z.shape[3]):
        return here(composed.normalise_add_relu, _PlainKernels, z, prologue, residual)
    y, prologue = empty(z.shape, z.dtype), contiguous(prologue)
    residual = np.empty((0, 0), z.dtype) if residual is None else norm.rows(residual)
    launch(_normalise_add_relu_kernel(lanes_of(z.dtype)), norm.PARTS, z.size, norm.rows(z), *prologue, residual,
           norm.rows(y))
    return y


@cache
def _add_relu_gradient_kernel(lanes):
    @jit.kernel
    def add_relu_gradient(tasks, counter, thread, dy, y, z, mean, scale, bias, residual, g, sums, total):
        enter(counter, thread)
        M, C = z.shape
        part = claim(counter)
        while part < norm.PARTS:
            start, end = part * M // norm.PARTS, (part + 1) * M // norm.PARTS
            for c in range(0, C, lanes):
                m = load(lanes, mean, c)
                s, b = (load(lanes, scale, c), load(lanes, bias, c)) if scale.size else (m, m)
                added, product = m - m, m - m
                for i in range(start * C + c, end * C + c, C):
                    centred = load(lanes, z, i) - m
                    if scale.size:
                        a = centred * s + b
                        if residual.size:
                            a = a + load(lanes, residual, i)
                    else:
                        a = load(lanes, y, i)
                    v = where_positive(a, load(lanes, dy, i))
                    stream(g, i, v)
                    added = added + v
                    product = product + v * centred
                store(sums, 2 * part * C + c, added)
                store(sums, (2 * part + 1) * C + c, product)
            part = claim_next(counter)
        await_tasks(counter, norm.PARTS)
        while part < tasks:
            add_channel(sums, part - norm.PARTS, total)
            part = claim_next(counter)
        leave(counter, thread)

    return add_relu_gradient


def add_relu_gradient(dy, y, z, mean, prologue=None, residual=None):
    """g = dy where y > 0, sum(g), sum(g * (z - mean)): see composed."""
    C, nothing = z.shape[3], np.empty(0, z.dtype)
    if not divides(z, C):
        return here(composed.add_relu_gradient, _PlainKernels, dy, y, z, mean, prologue, residual)
    _, scale, bias = (mean, nothing, nothing) if y is not None else contiguous(prologue)
    g, sums, total = empty(dy.shape, dy.dtype), np.empty((norm.PARTS, 2, C), dy.dtype), np.empty((2, C), dy.dtype)
    y, residual = (nothing.reshape(0, 0) if array is None else norm.rows(array) for array in (y, residual))
    launch(_add_relu_gradient_kernel(lanes_of(z.dtype)), norm.PARTS + C, z.size, norm.rows(dy), y, norm.rows(z),
           np.ascontiguousarray(mean), scale, bias, residual, norm.rows(g), sums, total)
    return g, total[0], total[1]


@cache
def _unit_gradient_kernel(rows, across, vectors, weight_rows, weight_vectors, lanes):
    @jit.kernel
    def unit_gradient(tasks, counter, thread, g, z, normalisation, x, prologue, weight, residual, front, dx, total,
                      dweight, adds, partial, sums, z_images, z_start, z_pitch, x_images, x_start, x_pitch, dx_images,
                      phases, segments, runs, run, step_row, step_column):
        enter(counter, thread)
        N, G, OH, O, H, WC, C = (g.shape[0], partial.shape[0], g.shape[1], dweight.shape[1], x.shape[1], x.shape[2],
                                 weight.shape[1])
        z_image, x_image, dx_image = z_images[thread], x_images[thread], dx_images[thread]
        origin = np.int64(0)  # no constant, for which the functions below would be compiled once more
        k = claim(counter)
        while k < G:
            partial[k] = 0
            for n in range(k * N // G, (k + 1) * N // G):
                if normalisation[0].size:
                    load_gradient(lanes, g, z, n, normalisation, z_image, z_start, z_pitch)
                else:
                    copy_image(g, n, z_image, z_start, z_pitch)
                if prologue[0].size:
                    load_normalised(lanes, x, n, prologue, x_image, x_start, x_pitch)
                else:
                    copy_image(x, n, x_image, x_start, x_pitch)
                weight_gradient_image(weight_rows, weight_vectors, lanes, x_image, z_image, z_start, z_pitch, partial[k], O,
                                      origin, O, OH, g.shape[2] // O, runs, run, step_row, step_column)
                if dx.size:
                    gather_image(rows, across, vectors, lanes, z_image, weight.reshape(-1), dx_image, origin, C, origin, C,
                                 phases, segments, z_pitch, O)
                    finish_gradient(lanes, dx_image, dx, n * H * WC, residual, x_image, x_start, x_pitch, front, H, WC, C,
                                    sums, n)
            k = claim_next(counter)
        await_tasks(counter, G)
        while k < tasks:
            if k - G < row_tasks(dweight.shape[0]):
                add_rows(partial, k - G, run, dweight, adds)
            else:
                add_channel(sums, k - G - row_tasks(dweight.shape[0]), total)
            k = claim_next(counter)
        leave(counter, thread)

    return unit_gradient


@lru_cache(maxsize=128)
def _unit_plan(shape, dtype, weight_shape, stride, padding, need_dx):
    """(kernel, shape of partial gradients, taps in the order of the packed weights, the kernel's last arguments), or None.

    None: no kernel computes this.
    """
    (N, H, W, C), (KH, KW, _, O), lanes = shape, weight_shape, lanes_of(dtype)
    groups = min(N, GROUPS)
    if O % lanes or (need_dx and C % lanes) or groups * KH * KW * C * O * dtype.itemsize > conv.PARTIAL_BYTES:
        return None
    plan = input_gradient_gather(H, W, round_up(C, lanes), O, lanes, (KH, KW), stride, padding, PLAIN)
    size = tuple(output_size(*axis, 1) for axis in zip((H, W), (KH, KW), stride, padding, strict=True))
    z_image = padded_images(plan.low, size, plan.padded, O, dtype, "z")
    x_image = padded_images(padding, (H, W), (H + 2 * padding[0], W + 2 * padding[1]), C, dtype)
    z_pitch, x_pitch = plan.padded[1] * O, (W + 2 * padding[1]) * C
    tiling = choose_tiling(O // lanes, 1, C * KW)
    runs, run = weight_runs((KH, KW), PLAIN, C, x_pitch)
    kernel = _unit_gradient_kernel(*plan.tiling, tiling.rows, tiling.vectors, lanes)
    places = (sums_room(N, C, dtype), z_image, plan.low[0] * z_pitch + plan.low[1] * O, z_pitch,
              x_image, padding[0] * x_pitch + padding[1] * C, x_pitch, scratch("dx", H * W * C, dtype), plan.phases,
              plan.segments, runs, run, stride[0] * x_pitch, stride[1] * C)
    return kernel, (groups, len(runs), round_up(run, tiling.rows), O), plan.taps, places


def conv2d_unit_gradient(g, z, normalisation, x, prologue, weight, stride, padding, residual_gradient, need_dx, front=None,
                         add_to=None, shortcut=None):
    """-> dx, dweight, sum(dx), sum(dx * (x - mean)): see composed."""
    if add_to is not None and not add_to.flags.c_contiguous:
        dx, dweight, *sums = conv2d_unit_gradient(g, z, normalisation, x, prologue, weight, stride, padding,
                                                  residual_gradient, need_dx, front, None, shortcut)
        return dx, here(composed.added, add_to, dweight), *sums
    g, z, x, residual_gradient, shortcut = contiguous((g, z, x, residual_gradient, shortcut))
    normalisation, prologue, front = contiguous(normalisation), contiguous(prologue), contiguous(front)
    (N, H, _, C), (KH, KW, _, O) = x.shape, weight.shape
    m = winograd_size(x.shape, x.dtype, O, (KH, KW), stride, padding, PLAIN)
    if m:
        dx, dweight, total = winograd.unit_gradient(m, g, z, normalisation, x, prologue, weight if need_dx else None,
                                                    residual_gradient, front, add_to, shortcut)
        return dx, dweight, *((None, None) if total is None else total)
    plan = _unit_plan(x.shape, x.dtype, weight.shape, stride, padding, need_dx)
    if plan is None or (prologue is not None and not divides(x, C)):
        return here(composed.conv2d_unit_gradient, _PlainKernels, g, z, normalisation, x, prologue, weight, stride, padding,
                                             residual_gradient, need_dx, front, add_to, shortcut)
    kernel, partial, taps, places = plan
    nothing, front = np.empty(0, x.dtype), front_of(x, prologue, front)
    with_sums = need_dx and front[1].size > 0
    dx = empty(x.shape, x.dtype) if need_dx else nothing
    dweight, adds = weight_room(weight.shape, x.dtype, add_to)
    total = np.empty((2, C), x.dtype)
    packed = pack_transposed(weight, taps, C) if need_dx else np.empty((0, C), x.dtype)
    launch(kernel, partial[0] + row_tasks(KH * KW * C) + (C if with_sums else 0), 2 * g.size * KH * KW * C,
           g.reshape(N, g.shape[1], -1), (g if z is None else z).reshape(N, g.shape[1], -1),
           normalisation or (nothing,) * 4, x.reshape(N, H, -1),
           prologue_of(prologue, shortcut, None, x.dtype), packed,
           nothing if residual_gradient is None else residual_gradient.reshape(-1),
           front, dx.reshape(-1), total, dweight.reshape(-1, O), adds, empty(partial, x.dtype), *places)
    return (dx if need_dx else None), None if adds else dweight, *(total if with_sums else (None, None))
