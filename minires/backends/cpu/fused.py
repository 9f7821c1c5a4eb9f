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
from functools import cache

import numpy as np

from minires.backends import composed
from minires.backends.cpu import elementwise, jit, norm
from minires.backends.cpu.arena import empty
from minires.backends.cpu.host import lanes_of
from minires.backends.cpu.moments import add_channel
from minires.backends.cpu.simd import load, prefetch, rectify, store, stream, where_positive
from minires.backends.cpu.threads import await_tasks, claim, claim_next, enter, here, launch, leave


class _PlainKernels:
    """What `composed` calls when a shape has no fused kernel."""

    relu_forward, relu_backward = staticmethod(elementwise.relu_forward), staticmethod(elementwise.relu_backward)
    add, channel_sum = staticmethod(elementwise.add), staticmethod(norm.channel_sum)


def divides(array, *channels):
    """Whether the host's vectors of the array's dtype divide each of the channel counts."""
    return all(count % lanes_of(array.dtype) == 0 for count in channels)


def contiguous(arrays):
    """C-contiguous versions of some arrays (None stays None): what the kernels read as memory."""
    return None if arrays is None else tuple(None if array is None else np.ascontiguousarray(array) for array in arrays)


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
