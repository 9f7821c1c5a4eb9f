"""Convolution by the micro-kernel: forward, input gradient and weight gradient.

    y[n, p] = sum over taps t, channels c of image[n, p * stride + t * dilation, c] * weight[t, c]

Loop order. Images outside, shared out among the threads; for each image the output channels in blocks that fit the
registers; then rows and runs of pixels; inside, the micro-kernel sums over kernel rows and over the contiguous
run of taps and channels. The image is copied once into padded scratch (W * C + border floats a row); the im2col matrix
is never formed, because its rows overlap in memory: they start `stride * C` floats apart. Weights stay in the caches.

Bytes moved: x read once, y written once (and read into the cache before, unless the processor elides that).
Weight gradient: x and dy read once; each of a fixed number of groups of images adds into its own copy of the gradient,
and the copies are added in order, so the bits do not depend on the number of threads.

Measured on one core of a Zen 5 at AVX-512, 3x3: 16 channels at 32 x 32 pixels 156 GFLOP/s, 32 at 16 x 16 200, 64 at
8 x 8 213, weight gradients the same (python -m benchmarks.kernels).
"""
from functools import cache, lru_cache

import numpy as np
from numba import config, get_thread_id, njit, prange

from minires.backends.cpu.arena import empty
from minires.backends.cpu.geometry import choose_tiling, forward_gather, input_gradient_gather, round_up, weight_runs
from minires.backends.cpu.host import lanes_of
from minires.backends.cpu.microkernel import tile

GROUPS = 16  # parts of the work, and partial weight gradients: a fixed number, whatever the threads
PARTIAL_BYTES = 1 << 24  # all partial weight gradients of one convolution together stay below this
UNROLL = 2
SLACK = 64  # elements behind the padded image that a last tile of taps may read and ignore


@lru_cache(maxsize=128)
def scratch(layout, size, dtype):
    """Zeroed scratch memory, a row for each thread, one for each `layout` so that its borders stay zero."""
    return np.zeros((config.NUMBA_NUM_THREADS, size + SLACK), dtype)


@njit(cache=True)
def copy_image(x, n, image, start, pitch):
    """Rows of x[n]: (H, W * C) into `image` from element `start` on, `pitch` elements a row."""
    for h in range(x.shape[1]):
        row = start + h * pitch
        for i in range(x.shape[2]):
            image[row + i] = x[n, h, i]


@cache
def gather_kernel(rows, across, vectors, lanes):
    """The kernel for one tiling, compiled when first called."""
    block, down = vectors * lanes, rows // across

    @njit(parallel=True, cache=True)
    def gather(x, weight, y, image, phases, segments, start, pitch, step_row, step_column, slices):
        N = x.shape[0]
        out_channels = y.shape[2]
        per_slice = -(-(out_channels // block) // slices) * block
        flat = y.reshape(-1)
        for task in prange(N * slices):
            n, part = task // slices, task % slices
            base = get_thread_id() * image.shape[1]
            scratch = image.reshape(-1)
            copy_image(x, n, scratch, base + start, pitch)
            for o in range(part * per_slice, min((part + 1) * per_slice, out_channels), block):
                for p in range(phases.shape[0]):
                    first, end, height, width, offset, row_stride, column_stride = phases[p]
                    offset += n * y.shape[1] * out_channels + o
                    for h0 in range(0, height, down):
                        h = min(h0, height - down)
                        for w0 in range(0, width, across):
                            w = min(w0, width - across)
                            for s in range(first, end):
                                a0, b0, k_len, r_len, a_slab, b_slab = segments[s]
                                tile(rows, across, vectors, lanes, UNROLL,
                                     scratch, base + a0 + h * step_row + w * step_column,
                                     step_column, step_row, 1, a_slab,
                                     weight, b0 + o, out_channels, b_slab,
                                     flat, offset + h * row_stride + w * column_stride, column_stride, row_stride,
                                     k_len, r_len, s - first)

    return gather


def run_gather(plan, x, weight, out_channels):
    """Run a Gather on x: (N, H, W, C) with packed weights; -> (N, out rows, out columns, out_channels)."""
    N, H, W, C = x.shape
    lanes = lanes_of(x.dtype)
    y = empty((N, plan.out_size[0] * plan.out_size[1], out_channels), x.dtype)
    pitch = plan.padded[1] * C
    image = scratch((plan.low, plan.padded, H, W, C), plan.padded[0] * pitch, x.dtype)
    blocks = out_channels // (plan.tiling.vectors * lanes)
    slices = 1 if N >= GROUPS else min(blocks, -(-GROUPS // N))
    kernel = gather_kernel(*plan.tiling, lanes)
    kernel(x.reshape(N, H, W * C), weight, y, image, plan.phases, plan.segments,
           plan.low[0] * pitch + plan.low[1] * C, pitch, plan.step[0] * pitch, plan.step[1] * C, slices)
    return y.reshape(N, *plan.out_size, out_channels)


def conv2d_forward(x, weight, bias, stride, padding, dilation):
    """x: (N, H, W, C), weight: (KH, KW, C, O), bias: (O,) or None -> y: (N, OH, OW, O)."""
    x = np.ascontiguousarray(x)
    KH, KW, _, O = weight.shape
    lanes = lanes_of(x.dtype)
    wide = round_up(O, lanes)
    plan = forward_gather(*x.shape[1:], wide, lanes, (KH, KW), stride, padding, dilation)
    y = _narrow(run_gather(plan, x, _widen(weight, wide).reshape(-1), wide), O)
    if bias is not None:
        y += bias
    return y


def conv2d_input_gradient(dy, weight, x_shape, stride, padding, dilation):
    """dy: (N, OH, OW, O) -> dx: (N, H, W, C), a gather from dy with the weights of each phase turned round."""
    dy = np.ascontiguousarray(dy)
    KH, KW, C, _ = weight.shape
    O = dy.shape[3]
    lanes = lanes_of(dy.dtype)
    wide = round_up(C, lanes)
    plan = input_gradient_gather(*x_shape[1:3], wide, O, lanes, (KH, KW), stride, padding, dilation)
    return _narrow(run_gather(plan, dy, pack_transposed(weight, plan.taps, wide), wide), C)


@cache
def weight_gradient_kernel(rows, vectors, lanes):
    """The kernel for one tiling: rows are taps, the sum runs over the pixels of the images of a group."""
    block = vectors * lanes

    @njit(parallel=True, cache=True)
    def weight_gradient(dy, x, partial, dweight, image, runs, run, start, pitch, step_row, step_column, slices):
        N, OH, OW, O = dy.shape
        G = partial.shape[0]
        per_slice = -(-(O // block) // slices) * block
        run_stride = partial.shape[2] * O
        group_stride = partial.shape[1] * run_stride
        flat_dy, flat_partial, scratch = dy.reshape(-1), partial.reshape(-1), image.reshape(-1)
        for task in prange(G * slices):
            g, part = task // slices, task % slices
            base = get_thread_id() * image.shape[1]
            o_start, o_end = part * per_slice, min((part + 1) * per_slice, O)
            partial[g, :, :, o_start:o_end] = 0
            for n in range(g * N // G, (g + 1) * N // G):
                copy_image(x, n, scratch, base + start, pitch)
                for r in range(runs.shape[0]):
                    for k in range(0, run, rows):
                        for o in range(o_start, o_end, block):
                            tile(rows, rows, vectors, lanes, UNROLL,
                                 scratch, base + runs[r] + k, 1, 0, step_column, step_row,
                                 flat_dy, n * OH * OW * O + o, O, OW * O,
                                 flat_partial, g * group_stride + r * run_stride + k * O + o, O, 0, OW, OH, 1)
        for k in prange(runs.shape[0] * run):
            dweight[k] = 0
            for g in range(G):
                for o in range(O):
                    dweight[k, o] += partial[g, k // run, k % run, o]

    return weight_gradient


def conv2d_weight_gradient(dy, x, kernel_size, stride, padding, dilation):
    """dy: (N, OH, OW, O), x: (N, H, W, C) -> dweight: (KH, KW, C, O)."""
    N, H, W, C = x.shape
    KH, KW = kernel_size
    O = dy.shape[3]
    lanes = lanes_of(x.dtype)
    wide = round_up(O, lanes)
    x, dy = np.ascontiguousarray(x), _widen(dy, wide)
    tiling = choose_tiling(wide // lanes, 1, C * KW)
    pitch = (W + 2 * padding[1]) * C
    runs, run = weight_runs(kernel_size, dilation, C, pitch)
    image = scratch((padding, padding, H, W, C), (H + 2 * padding[0]) * pitch, x.dtype)
    dweight = empty((KH * KW * C, wide), x.dtype)
    groups = max(1, min(N, GROUPS, PARTIAL_BYTES // dweight.nbytes))
    slices = min(wide // (tiling.vectors * lanes), -(-GROUPS // groups))
    partial = empty((groups, len(runs), round_up(run, tiling.rows), wide), x.dtype)
    kernel = weight_gradient_kernel(tiling.rows, tiling.vectors, lanes)
    kernel(dy, x.reshape(N, H, W * C), partial, dweight, image, runs, run, padding[0] * pitch + padding[1] * C,
           pitch, stride[0] * pitch, stride[1] * C, slices)
    return _narrow(dweight, O).reshape(KH, KW, C, O)


def pack_transposed(weight, taps, wide):
    """The weights of each phase one after another, each (rows, columns, O, wide), the channels C padded to `wide`."""
    turned = _widen(weight.transpose(0, 1, 3, 2), wide)
    return np.concatenate([turned[np.ix_(*phase)].reshape(-1) for phase in taps])


def _widen(array, wide):
    """The array with zeros appended to its last axis up to `wide` entries, C-contiguous."""
    if array.shape[-1] == wide:
        return np.ascontiguousarray(array)
    wider = np.zeros((*array.shape[:-1], wide), array.dtype)
    wider[..., :array.shape[-1]] = array
    return wider


def _narrow(array, channels):
    return array if array.shape[-1] == channels else np.ascontiguousarray(array[..., :channels])
