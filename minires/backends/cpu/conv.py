"""Convolution, input gradient (both gathers) and weight gradient (the kernel below).

    dweight[t, c, o] = sum over images n, pixels p of image[n, p * stride + t * dilation, c] * dy[n, p, o]

Loop order. A fixed number of groups of images outside, shared out among the threads, each adding into its own copy of the
gradient; the copies are added in order at the end, so the bits do not depend on the number of threads. For each image, in
padded scratch, the taps and channels in runs that fit the registers, the output channels in blocks; inside, the
micro-kernel sums over the rows and columns of pixels.

Bytes moved: x and dy read once, the copies written once an image (they stay in the cache).
Measured as the forward pass, in gather.py: 158, 196 and 207 GFLOP/s a core.
"""
import math
from functools import cache, lru_cache

import numpy as np

from minires.backends.cpu import jit, winograd
from minires.backends.cpu.algorithm import winograd_size
from minires.backends.cpu.arena import empty
from minires.backends.cpu.elementwise import take
from minires.backends.cpu.gather import GROUPS, run_gather
from minires.backends.cpu.geometry import choose_tiling, forward_gather, input_gradient_gather, round_up, weight_runs
from minires.backends.cpu.host import lanes_of
from minires.backends.cpu.images import copy_image, padded_images
from minires.backends.cpu.microkernel import tile
from minires.backends.cpu.moments import add_rows, row_tasks
from minires.backends.cpu.threads import await_tasks, claim, claim_next, enter, here, launch, leave

PARTIAL_BYTES = 1 << 24  # all partial weight gradients of one convolution together stay below this


def conv2d_forward(x, weight, bias, stride, padding, dilation):
    """x: (N, H, W, C), weight: (KH, KW, C, O), bias: (O,) or None -> y: (N, OH, OW, O)."""
    x = np.ascontiguousarray(x)
    KH, KW, _, O = weight.shape
    m = winograd_size(x.shape, x.dtype, O, (KH, KW), stride, padding, dilation)
    if m:
        epilogue = None if bias is None else (np.ascontiguousarray(bias), None, False)
        return winograd.forward(m, x, None, weight, epilogue=epilogue)
    lanes = lanes_of(x.dtype)
    wide = round_up(O, lanes)
    plan = forward_gather(*x.shape[1:], wide, lanes, (KH, KW), stride, padding, dilation)
    y = narrow(run_gather(plan, x, widen(weight, wide).reshape(-1), wide), O)
    if bias is not None:
        here(np.add, y, bias, y)
    return y


def conv2d_input_gradient(dy, weight, x_shape, stride, padding, dilation):
    """dy: (N, OH, OW, O) -> dx: (N, H, W, C), a gather from dy with the weights of each phase turned round."""
    dy = np.ascontiguousarray(dy)
    KH, KW, C, _ = weight.shape
    O = dy.shape[3]
    m = winograd_size(x_shape, dy.dtype, O, (KH, KW), stride, padding, dilation)
    if m:
        return winograd.forward(m, dy, None, here(flipped, weight))
    lanes = lanes_of(dy.dtype)
    wide = round_up(C, lanes)
    plan = input_gradient_gather(*x_shape[1:3], wide, O, lanes, (KH, KW), stride, padding, dilation)
    return narrow(run_gather(plan, dy, pack_transposed(weight, plan.taps, wide), wide), C)


@jit.part
def weight_gradient_image(ROWS, VECTORS, LANES, image, dy, dy_start, dy_pitch, partial, O, o_start, o_end, OH, OW,
                          runs, run, step_row, step_column):
    """One image's share of the weight gradient, added to `partial`: (runs, padded run, O)."""
    flat, run_stride = partial.reshape(-1), partial.shape[1] * O
    for r in range(runs.shape[0]):
        for k in range(0, run, ROWS):
            for o in range(o_start, o_end, VECTORS * LANES):
                tile(ROWS, ROWS, VECTORS, LANES,
                     image, runs[r] + k, 1, 0, step_column, step_row,
                     dy, dy_start + o, O, dy_pitch,
                     flat, r * run_stride + k * O + o, O, 0, OW, OH, 1)


@cache
def weight_gradient_kernel(rows, vectors, lanes):
    """The kernel over a batch for one tiling: groups of images, then sums over the groups."""
    block = vectors * lanes

    @jit.kernel
    def weight_gradient(tasks, counter, thread, dy, x, partial, dweight, image, runs, run, start, pitch, step_row,
                        step_column, slices):
        enter(counter, thread)
        N, OH, OW, O = dy.shape
        G = partial.shape[0]
        per_slice = -(-(O // block) // slices) * block
        task = claim(counter)
        while task < G * slices:
            g, part = task // slices, task % slices
            o_start, o_end = part * per_slice, min((part + 1) * per_slice, O)
            partial[g, :, :, o_start:o_end] = 0
            for n in range(g * N // G, (g + 1) * N // G):
                copy_image(x, n, image[thread], start, pitch)
                weight_gradient_image(rows, vectors, lanes, image[thread], dy.reshape(-1), n * OH * OW * O, OW * O,
                                      partial[g], O, o_start, o_end, OH, OW, runs, run, step_row, step_column)
            task = claim_next(counter)
        await_tasks(counter, G * slices)
        while task < tasks:
            add_rows(partial, task - G * slices, run, dweight, False)
            task = claim_next(counter)
        leave(counter, thread)

    return weight_gradient


def conv2d_weight_gradient(dy, x, kernel_size, stride, padding, dilation):
    """dy: (N, OH, OW, O), x: (N, H, W, C) -> dweight: (KH, KW, C, O)."""
    N, H, W, C = x.shape
    KH, KW = kernel_size
    O = dy.shape[3]
    m = winograd_size(x.shape, x.dtype, O, kernel_size, stride, padding, dilation)
    if m:
        dy, x = np.ascontiguousarray(dy), np.ascontiguousarray(x)
        return winograd.unit_gradient(m, dy, None, None, x, None, None, None)[1]
    lanes = lanes_of(x.dtype)
    wide = round_up(O, lanes)
    x, dy = np.ascontiguousarray(x), widen(dy, wide)
    tiling = choose_tiling(wide // lanes, 1, C * KW)
    pitch = (W + 2 * padding[1]) * C
    runs, run = weight_runs(kernel_size, dilation, C, pitch)
    image = padded_images(padding, (H, W), (H + 2 * padding[0], W + 2 * padding[1]), C, x.dtype)
    dweight = empty((KH * KW * C, wide), x.dtype)
    groups = max(1, min(N, GROUPS, PARTIAL_BYTES // dweight.nbytes))
    slices = min(wide // (tiling.vectors * lanes), -(-GROUPS // groups))
    partial = empty((groups, len(runs), round_up(run, tiling.rows), wide), x.dtype)
    kernel = weight_gradient_kernel(tiling.rows, tiling.vectors, lanes)
    launch(kernel, groups * slices + row_tasks(len(dweight)), dy.size * len(dweight), dy, x.reshape(N, H, W * C), partial,
           dweight, image, runs, run, padding[0] * pitch + padding[1] * C, pitch, stride[0] * pitch, stride[1] * C, slices)
    return narrow(dweight, O).reshape(KH, KW, C, O)


def flipped(weight):
    """The kernel of a stride-1 convolution's input gradient: turned round, channels exchanged. -> (KH, KW, O, C)."""
    return np.ascontiguousarray(weight[::-1, ::-1].transpose(0, 1, 3, 2))


def pack_transposed(weight, taps, wide):
    """The weights of each phase one after another, each (rows, columns, O, wide), the channels C padded to `wide`."""
    rows = sum(len(rows) * len(columns) for rows, columns in taps) * weight.shape[3]
    return take(weight, _packing(weight.shape, taps, wide), (rows, wide))


@lru_cache(maxsize=128)
def _packing(shape, taps, wide):
    """Where each of the packed weights lies in the flat weights (KH, KW, C, O); -1 for what only widens them."""
    KH, KW, C, O = shape
    places = np.full((KH, KW, O, wide), -1)
    places[..., :C] = np.arange(math.prod(shape)).reshape(shape).transpose(0, 1, 3, 2)
    return np.concatenate([places[np.ix_(*phase)].reshape(-1) for phase in taps])


def widen(array, wide):
    """The array with zeros appended to its last axis up to `wide` entries, C-contiguous."""
    return np.ascontiguousarray(array) if array.shape[-1] == wide else here(_widened, array, wide)


def _widened(array, wide):
    wider = np.zeros((*array.shape[:-1], wide), array.dtype)
    wider[..., :array.shape[-1]] = array
    return wider


def narrow(array, channels):
    return array if array.shape[-1] == channels else here(np.ascontiguousarray, array[..., :channels])
