"""The convolution kernel: forward, and (by other strides) its input gradient.

    y[n, p] = sum over taps t, channels c of image[n, p * stride + t * dilation, c] * weight[t, c]

Loop order. Images outside, shared out among the threads; for each image the output channels in blocks that fit the
registers; then rows and runs of pixels; inside, the micro-kernel sums over kernel rows and over the contiguous run of
taps and channels. The image is read once into padded scratch; the im2col matrix is never formed, because its rows overlap
in memory: they start `stride * C` elements apart. Weights stay in the caches.

Fused, while the image is in the cache: before, the normalisation and ReLU of the layer in front; after, bias, residual
addition and ReLU (inference), and the sums that the batch's mean and variance are made of (training).

Bytes moved: x read once, y written once (in training past the caches, so that its lines are not read before).
Measured on one core of a Zen 5 at AVX-512, 3x3: 16 channels at 32 x 32 pixels 156 GFLOP/s, 32 at 16 x 16 200, 64 at
8 x 8 213 (python -m benchmarks.kernels).
"""
from functools import cache

import numpy as np

from minires.backends.cpu import jit
from minires.backends.cpu.arena import empty
from minires.backends.cpu.elementwise import aligned
from minires.backends.cpu.host import lanes_of
from minires.backends.cpu.images import copy_image, load_normalised, moments_room, padded_images, prologue_of, scratch
from minires.backends.cpu.microkernel import tile
from minires.backends.cpu.moments import merge_channel, moments
from minires.backends.cpu.simd import at_least, load, splat, store
from minires.backends.cpu.threads import await_tasks, claim, claim_next, enter, launch, leave

GROUPS = 16  # parts of the work: a fixed number, whatever the threads, so that every sum has a fixed order


@jit.part
def gather_image(ROWS, ACROSS, VECTORS, LANES, image, weight, y, target, out_channels, o_start, o_end, phases, segments,
                 step_row, step_column):
    """The convolution of one padded image with output channels o_start .. o_end."""
    for o in range(o_start, o_end, VECTORS * LANES):
        for p in range(phases.shape[0]):
            first, end, height, width, offset, row_stride, column_stride = phases[p]
            for h0 in range(0, height, ROWS // ACROSS):
                h = min(h0, height - ROWS // ACROSS)
                for w0 in range(0, width, ACROSS):
                    w = min(w0, width - ACROSS)
                    for s in range(first, end):
                        a0, b0, k_len, r_len, a_slab, b_slab = segments[s]
                        tile(ROWS, ACROSS, VECTORS, LANES,
                             image, a0 + h * step_row + w * step_column, step_column, step_row, 1, a_slab,
                             weight, b0 + o, out_channels, b_slab,
                             y, target + offset + o + h * row_stride + w * column_stride, column_stride, row_stride,
                             k_len, r_len, s - first)


@jit.part
def finish(LANES, image, at, y, target, pixels, channels, bias, residual, least):
    """One image of y, from `target` on: max(image + bias + residual, least)."""
    floor = splat(LANES, least)
    for c in range(0, channels, LANES):
        b = load(LANES, bias, c)
        for i in range(c, c + pixels * channels, channels):
            v = load(LANES, image, at + i) + b
            if residual.size:
                v = v + load(LANES, residual, target + i)
            store(y, target + i, at_least(v, floor))


@cache
def gather_kernel(rows, across, vectors, lanes):
    """The kernel over a batch for one tiling: images are convolved, moments are merged (one task a channel).

    Its empty arrays switch off what they are for.
    """
    block = vectors * lanes

    @jit.kernel
    def gather(tasks, counter, thread, x, prologue, weight, y, merged, bias, residual, least, means, squares, counts, images,
               outs, phases, segments, start, pitch, step_row, step_column, slices):
        enter(counter, thread)
        pixels, out_channels, flat, image = y.shape[1], y.shape[2], y.reshape(-1), images[thread]
        per_slice = -(-(out_channels // block) // slices) * block
        convolved = x.shape[0] * slices
        task = claim(counter)
        while task < convolved:
            n, part = task // slices, task % slices
            target = n * pixels * out_channels
            if prologue[0].size:
                load_normalised(lanes, x, n, prologue, image, start, pitch)
            else:
                copy_image(x, n, image, start, pitch)
            out, at = (outs[thread], 0) if merged.size else (flat, target)
            gather_image(rows, across, vectors, lanes, image, weight, out, at, out_channels, part * per_slice,
                         min((part + 1) * per_slice, out_channels), phases, segments, step_row, step_column)
            if merged.size:
                moments(lanes, True, out, np.int64(0), pixels, means, squares, n, flat, target)
            if bias.size:
                finish(lanes, flat, target, flat, target, pixels, out_channels, bias, residual, least)
            task = claim_next(counter)
        await_tasks(counter, convolved)
        while task < tasks:
            merge_channel(means, squares, counts, task - convolved, merged)
            task = claim_next(counter)
        leave(counter, thread)

    return gather


def run_gather(plan, x, weight, out_channels, prologue=None, merged=None, epilogue=None, shortcut=None, formed=None):
    """Run a Gather on x: (N, H, W, C) with packed weights; -> (N, out rows, out columns, out_channels).

    prologue: (mean, scale, bias), each (C,): read relu((x - mean) * scale + bias) in place of x.
    merged: (2, out_channels), to be filled with mean and biased variance of y's channels.
    epilogue: (bias, residual or None, relu): y = relu(y + bias + residual).
    shortcut: a residual of x's shape in the prologue; formed: an array of x's shape to be filled with what is read for x.
    """
    N, H, W, C = x.shape
    lanes, nothing = lanes_of(x.dtype), np.empty(0, x.dtype)
    pixels = plan.out_size[0] * plan.out_size[1]
    y = empty((N, pixels, out_channels), x.dtype)
    pitch = plan.padded[1] * C
    image = padded_images(plan.low, (H, W), plan.padded, C, x.dtype)
    blocks = out_channels // (plan.tiling.vectors * lanes)
    whole = merged is not None or epilogue is not None  # they want all channels of an image in one task
    slices = 1 if N >= GROUPS or whole else min(blocks, -(-GROUPS // N))
    weight = aligned(weight)
    merged = nothing.reshape(0, 0) if merged is None else merged
    bias, residual, relu = epilogue or (nothing, None, False)
    least = x.dtype.type(0 if relu else -np.inf)
    kernel = gather_kernel(*plan.tiling, lanes)
    launch(kernel, N * slices + merged.shape[1], y.size * weight.size // out_channels, x.reshape(N, H, W * C),
           prologue_of(prologue, shortcut, formed, x.dtype), weight, y, merged, bias,
           nothing if residual is None else residual.reshape(-1), least,
           *moments_room(N if merged.size else 0, pixels, out_channels, x.dtype), image,
           scratch("out", pixels * out_channels if merged.size else 0, x.dtype), plan.phases, plan.segments,
           plan.low[0] * pitch + plan.low[1] * C, pitch, plan.step[0] * pitch, plan.step[1] * C, slices)
    return y.reshape(N, *plan.out_size, out_channels)
