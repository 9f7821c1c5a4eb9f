"""Convolution 3x3, stride 1, by Winograd's F(2x2, 3x3) and F(4x4, 3x3): fewer multiplications for the same sums.

    y = A^T [(G weight G^T) * (B^T x B)] A     for each tile of m x m output pixels, * element by element over (m + 2)^2
                                               points, each point a matrix product over channels (transforms.py derives it)

Loop order. Blocks of a few images outside, shared out among the threads, sized so that what follows stays in the
second-level cache: the padded images; their transforms V (points, tiles, C); the products P (points, tiles, O), a matrix
product a point by the micro-kernel; the outputs. A point's plane is a cache line longer than its data, since planes of a
power of two would fall into the same cache sets.

`unit_gradient` does for a unit's backward what fused.py describes. From the same padded images of x and dz it forms V of x
and A dz A^T, whose products over the tiles are the weight gradient's points, summed over a group of images in a thread's
own scratch; then V of dz and, as forward, the input gradient.

Both transform their weights in a phase before (threads.py), and merge the sums of images and groups in one behind.

Bytes moved: x once, y once, as the direct kernel. Multiplications: (m + 2)^2 / (9 m^2) of the direct kernel's.
"""
from functools import cache, lru_cache

import numpy as np

from minires.backends.cpu import jit
from minires.backends.cpu.arena import aligned_zeros, empty
from minires.backends.cpu.gather import GROUPS, finish
from minires.backends.cpu.geometry import ACCUMULATORS, round_up
from minires.backends.cpu.host import VECTOR_BYTES, lanes_of
from minires.backends.cpu.images import (
    copy_image,
    finish_gradient,
    front_of,
    load_gradient,
    load_normalised,
    moments_room,
    padded_images,
    prologue_of,
    scratch,
    shared_scratch,
    sums_room,
    weight_room,
)
from minires.backends.cpu.microkernel import tile
from minires.backends.cpu.moments import add_channel, add_rows, merge_channel, moments, row_tasks
from minires.backends.cpu.threads import await_tasks, claim, claim_next, enter, launch, leave
from minires.backends.cpu.transforms import input_1d, output_1d, output_adjoint_1d, weight_1d, weight_adjoint_1d

BLOCK_BYTES = 240 << 10  # of V, for a block of images: P is as large, and both with images and weights fit a 1 MiB cache


@jit.part
def transform_images(M, LANES, adjoint, image, start, pitch, C, H, W, points, first_tile, plane, temp):
    """V of one padded image, or with `adjoint` A dz A^T: tiles of M x M pixels to (M + 2)^2 planes of `points`."""
    size = M + 2
    for th in range(H // M):
        for tw in range(W // M):
            tile_at = (first_tile + th * (W // M) + tw) * C
            for c in range(0, C, LANES):
                corner = start + th * M * pitch + tw * M * C + c
                if adjoint:
                    for j in range(M):
                        output_adjoint_1d(M, LANES, image, corner + j * C, pitch, temp, j * LANES, size * LANES)
                    for i in range(size):
                        output_adjoint_1d(M, LANES, temp, i * size * LANES, LANES + 0,
                                          points, i * size * plane + tile_at + c, plane)
                else:
                    for j in range(size):
                        input_1d(M, LANES, image, corner + j * C, pitch, temp, j * LANES, size * LANES)
                    for i in range(size):
                        input_1d(M, LANES, temp, i * size * LANES, LANES + 0,
                                 points, i * size * plane + tile_at + c, plane)


@jit.part
def transform_back(M, LANES, points, first_tile, plane, y, start, C, H, W, temp):
    """The outputs of one image from the products of its tiles."""
    size = M + 2
    for th in range(H // M):
        for tw in range(W // M):
            tile_at = (first_tile + th * (W // M) + tw) * C
            for c in range(0, C, LANES):
                for j in range(size):
                    output_1d(M, LANES, points, j * plane + tile_at + c, size * plane, temp, j * LANES,
                              size * LANES)
                for i in range(M):
                    output_1d(M, LANES, temp, i * size * LANES, LANES + 0,
                              y, start + ((th * M + i) * W + tw * M) * C + c, C)


@jit.part
def multiply(M, ROWS, VECTORS, LANES, C, O, v, weight, p, plane, tiles):
    """P = V @ weight for each point. v: (points, tiles, C), weight: (points, C, O), p: (points, tiles, O)."""
    for point in range((M + 2) * (M + 2)):
        for o in range(0, O, VECTORS * LANES):
            for t in range(0, tiles, ROWS):
                tile(ROWS, ROWS, VECTORS, LANES, v, point * plane + t * C, C, 0, 1, 0,
                     weight, point * C * O + o, O, 0, p, point * plane + t * O + o, O, 0, C, 1, 0)


@jit.part
def transform_weight(M, LANES, weight, at, plane, points, target, points_plane, count, temp):
    """G weight G^T of `count` elements of each plane, from `at` on to `target` on. 9 planes to (M + 2)^2."""
    size = M + 2
    for i in range(0, count, LANES):
        for j in range(3):
            weight_1d(M, LANES, weight, at + i + j * plane, 3 * plane, temp, j * LANES, 3 * LANES)
        for k in range(size):
            weight_1d(M, LANES, temp, 3 * k * LANES, LANES + 0, points, target + i + k * size * points_plane, points_plane)


@jit.part
def turn_round(weight, o, row):
    """row (3, 3, C) = the weights of output channel o, taps in reverse: of the input gradient's kernel, input channel o."""
    C = weight.shape[2]
    for tap in range(9):
        for c in range(C):
            row[(8 - tap) * C + c] = weight[tap // 3, tap % 3, c, o]


@cache
def forward_kernel(m, rows, vectors, lanes, C, O):
    """The forward kernel for one shape of weights: its addresses are then constants, which is worth a third.

    Phases: `rows` of the weights are transformed, blocks of images are convolved, moments are merged (one task a channel).
    Its empty arrays switch off what they are for.
    """

    @jit.kernel
    def winograd(tasks, counter, thread, weight, points, rows_to_transform, x, prologue, y, merged, bias, residual, least,
                 means, squares, counts, images, vs, ps, temps, start, pitch, per_block, plane):
        enter(counter, thread)
        N, H, W = y.shape[0], y.shape[1], y.shape[2]
        tiles, flat_y = (H // m) * (W // m), y.reshape(-1)
        image, v, p, temp = images[thread], vs[thread], ps[thread], temps[thread]
        # No constants, for each of which the transforms would be compiled once more.
        channels, out_channels, origin = np.int64(C), np.int64(O), np.int64(0)
        task = claim(counter)
        while task < rows_to_transform:
            transform_weight(m, lanes, weight.reshape(-1), task * out_channels, channels * out_channels,
                             points, task * out_channels, channels * out_channels, out_channels, temp)
            task = claim_next(counter)
        await_tasks(counter, rows_to_transform)
        convolved = rows_to_transform - (-N // per_block)
        while task < convolved:
            first = (task - rows_to_transform) * per_block
            last = min(first + per_block, N)
            for n in range(first, last):
                if prologue[0].size:
                    load_normalised(lanes, x, n, prologue, image, start, pitch)
                else:
                    copy_image(x, n, image, start, pitch)
                transform_images(m, lanes, False, image, origin, pitch, channels, H, W, v, (n - first) * tiles, plane, temp)
            multiply(m, rows, vectors, lanes, C, O, v, points, p, plane, (last - first) * tiles)
            for n in range(first, last):
                target = n * H * W * O
                transform_back(m, lanes, p, (n - first) * tiles, plane, v, origin, out_channels, H, W, temp)
                if merged.size:
                    moments(lanes, True, v, origin, H * W, means, squares, n, flat_y, target)
                else:
                    finish(lanes, v, origin, flat_y, target, H * W, out_channels, bias, residual, least)
            task = claim_next(counter)
        await_tasks(counter, convolved)
        while task < tasks:
            merge_channel(means, squares, counts, task - convolved, merged)
            task = claim_next(counter)
        leave(counter, thread)

    return winograd


@jit.part
def transform_weight_back(M, LANES, C, O, du, dweight, temp):
    """G^T du G: (points, C, O) -> (3, 3, C, O)."""
    size = M + 2
    for at in range(0, C * O, LANES):
        for j in range(size):
            weight_adjoint_1d(M, LANES, du, j * C * O + at, size * C * O, temp, j * LANES, size * LANES)
        for i in range(3):
            weight_adjoint_1d(M, LANES, temp, i * size * LANES, LANES + 0, dweight, 3 * i * C * O + at, C * O)


@cache
def gradient_kernel(m, rows, vectors, lanes, C, O):
    """The backward kernel for one shape of weights: see `unit_gradient`.

    Phases: the weights turned round and transformed, if dx is wanted (one task an output channel); groups of images; sums
    over the groups (row_tasks) and over the images (one task a channel).
    """

    @jit.kernel
    def gradient(tasks, counter, thread, weight, points, g, z, normalisation, x, prologue, residual, front, dx, total,
                 dweight, adds, partial, sums, z_images, z_start, z_pitch, x_images, x_start, x_pitch, vs, ps, dus, temps,
                 per_block, plane):
        enter(counter, thread)
        N, G, H, W = g.shape[0], partial.shape[0], g.shape[1], g.shape[2] // O
        z_size, x_size, tiles = (H + 2) * z_pitch, (H + 2) * x_pitch, (H // m) * (W // m)
        z_image, x_image, v, p = z_images[thread], x_images[thread], vs[thread], ps[thread]
        du, temp = dus[thread], temps[thread]
        channels, out_channels, origin = np.int64(C), np.int64(O), np.int64(0)
        transformed = out_channels if dx.size else 0
        task = claim(counter)
        while task < transformed:
            turn_round(weight, task, v)
            transform_weight(m, lanes, v, origin, channels, points, task * channels, channels * out_channels, channels, temp)
            task = claim_next(counter)
        await_tasks(counter, transformed)
        while task < transformed + G:
            k = task - transformed
            group_first, group_last = k * N // G, (k + 1) * N // G
            for first in range(group_first, group_last, per_block):
                last = min(first + per_block, group_last)
                for n in range(first, last):
                    z_at, x_at = (n - first) * z_size, (n - first) * x_size
                    if normalisation[0].size:
                        load_gradient(lanes, g, z, n, normalisation, z_image, z_at + z_start, z_pitch)
                    else:
                        copy_image(g, n, z_image, z_at + z_start, z_pitch)
                    if prologue[0].size:
                        load_normalised(lanes, x, n, prologue, x_image, x_at + x_start, x_pitch)
                    else:
                        copy_image(x, n, x_image, x_at + x_start, x_pitch)
                    transform_images(m, lanes, False, x_image, x_at, x_pitch, channels, H, W, v, (n - first) * tiles, plane,
                                     temp)
                    transform_images(m, lanes, True, z_image, z_at + z_start, z_pitch, out_channels, H, W, p,
                                     (n - first) * tiles, plane, temp)
                for point in range((m + 2) * (m + 2)):
                    for c in range(0, C, rows):
                        for o in range(0, O, vectors * lanes):
                            tile(rows, rows, vectors, lanes, v, point * plane + c, 1, 0, C, 0, p, point * plane + o, O, 0,
                                 du, point * C * O + c * O + o, O, 0, (last - first) * tiles, 1, first - group_first)
                if dx.size:
                    # The planes of v and p change roles: O channels in, C out.
                    for n in range(first, last):
                        transform_images(m, lanes, False, z_image, (n - first) * z_size, z_pitch, out_channels, H, W, p,
                                         (n - first) * tiles, plane, temp)
                    multiply(m, rows, vectors, lanes, O, C, p, points, v, plane, (last - first) * tiles)
                    for n in range(first, last):
                        target = n * H * W * C
                        transform_back(m, lanes, v, (n - first) * tiles, plane, p, origin, channels, H, W, temp)
                        finish_gradient(lanes, p, dx, target, residual, x_image, (n - first) * x_size + x_start, x_pitch,
                                        front, H, W * channels, channels, sums, n)
            transform_weight_back(m, lanes, C, O, du, partial[k].reshape(-1), temp)
            task = claim_next(counter)
        await_tasks(counter, transformed + G)
        while task < tasks:
            row = task - transformed - G
            if row < row_tasks(dweight.shape[0]):
                add_rows(partial, row, 9 * channels, dweight, adds)
            else:
                add_channel(sums, row - row_tasks(dweight.shape[0]), total)
            task = claim_next(counter)
        leave(counter, thread)

    return gradient


def tiling(m, dtype, H, W, C, O):
    """(rows, vectors) for the micro-kernel, or None where F(m x m, 3x3) does not fit: whole tiles, whole vectors.

    The same for O -> C: the input gradient is that convolution, and who asks for the one computes the other.
    """
    lanes = lanes_of(dtype)
    if H % m or W % m or C % lanes or O % lanes:
        return None
    vectors = 2 if C % (2 * lanes) == 0 and O % (2 * lanes) == 0 else 1
    rows = ACCUMULATORS // vectors
    return None if C % rows or O % rows else (rows, vectors)


def _workspace(m, dtype, rows, H, W, C, O, images):
    """(images a block, plane lengths and scratch of V and P, small scratch); planes serve for C and O alike."""
    tiles, points, line = (H // m) * (W // m), (m + 2) ** 2, VECTOR_BYTES // dtype.itemsize
    widest = max(C, O)
    most = max(1, min(images, BLOCK_BYTES // (points * tiles * widest * dtype.itemsize)))
    per_block = -(-images // -(-images // most))
    plane = round_up(per_block * tiles, rows) * widest + line
    v, p = (scratch((name, points, plane), points * plane, dtype) for name in ("winograd v", "winograd p"))
    return per_block, plane, v, p, scratch(("winograd", line), points * line, dtype)


@lru_cache(maxsize=128)
def _forward_plan(m, dtype, N, H, W, C, O):
    """(kernel, blocks of images, points of the weights, the kernel's last arguments)."""
    rows, vectors = tiling(m, dtype, H, W, C, O)
    per_block, plane, v, p, temp = _workspace(m, dtype, rows, H, W, C, O, -(-N // GROUPS))
    pitch = (W + 2) * C
    image = padded_images((1, 1), (H, W), (H + 2, W + 2), C, dtype)
    kernel = forward_kernel(m, rows, vectors, lanes_of(dtype), C, O)
    places = *moments_room(N, H * W, O, dtype), image, v, p, temp, pitch + C, pitch, per_block, plane
    return kernel, -(-N // per_block), _points(m, dtype, C, O), places


def _points(m, dtype, C, O):
    """Memory for transformed weights, one for all layers: each kernel transforms its weights before it uses them."""
    return shared_scratch("winograd points", ((m + 2) ** 2 * C * O,), dtype)


@cache
def transform_kernel(m, lanes):
    """The first phase of `forward_kernel` by itself, for weights that are used more than once."""
    @jit.kernel
    def transform(tasks, counter, thread, weight, points, temps):
        enter(counter, thread)
        C, O, row = weight.shape[2], weight.shape[3], claim(counter)
        while row < tasks:
            transform_weight(m, lanes, weight.reshape(-1), row * O, C * O, points, row * O, C * O, O, temps[thread])
            row = claim(counter)
        leave(counter, thread)

    return transform


def transformed(m, weight):
    """G weight G^T, ((m + 2)^2 * C * O,): what `forward` takes as `points`."""
    C, O = weight.shape[2:]
    line = VECTOR_BYTES // weight.dtype.itemsize
    points = aligned_zeros(((m + 2) ** 2 * C * O,), weight.dtype)
    launch(transform_kernel(m, lanes_of(weight.dtype)), C, points.size, np.ascontiguousarray(weight), points,
           scratch(("winograd", line), (m + 2) ** 2 * line, weight.dtype))
    return points


def forward(m, x, prologue, weight, merged=None, epilogue=None, shortcut=None, formed=None, points=None):
    """y = conv(a(x)), padding 1: (N, H, W, C) and weight (3, 3, C, O) -> (N, H, W, O). The rest as `run_gather`.

    points: the weights' (see `transformed`), else they are transformed first.
    """
    N, H, W, C = x.shape
    O, dtype, nothing = weight.shape[3], x.dtype, np.empty(0, x.dtype)
    kernel, blocks, shared, places = _forward_plan(m, dtype, N, H, W, C, O)
    y = empty((N, H, W, O), dtype)
    points, rows = (shared, C) if points is None else (points, 0)
    merged = nothing.reshape(0, 0) if merged is None else merged
    bias, residual, relu = epilogue or (np.zeros(0 if merged.size else O, dtype), None, False)
    launch(kernel, rows + blocks + merged.shape[1], y.size * C, np.ascontiguousarray(weight), points, rows,
           x.reshape(N, H, W * C), prologue_of(prologue, shortcut, formed, dtype), y, merged, bias,
           nothing if residual is None else residual.reshape(-1), dtype.type(0 if relu else -np.inf), *places)
    return y


@lru_cache(maxsize=128)
def _gradient_plan(m, dtype, N, H, W, C, O):
    """(kernel, number of groups, points of the weights, the kernel's last arguments)."""
    rows, vectors = tiling(m, dtype, H, W, C, O)
    groups = min(N, GROUPS)
    per_block, plane, v, p, temp = _workspace(m, dtype, rows, H, W, C, O, -(-N // groups))
    z_pitch, x_pitch = (W + 2) * O, (W + 2) * C
    z_image, x_image = (padded_images((1, 1), (H, W), (H + 2, W + 2), channels, dtype, role, per_block)
                        for channels, role in ((O, "z"), (C, "x")))
    du = scratch(("winograd du", (m + 2) ** 2, C, O), (m + 2) ** 2 * C * O, dtype)
    kernel = gradient_kernel(m, rows, vectors, lanes_of(dtype), C, O)
    partial = shared_scratch(("partial", C, O), (groups, 1, 9 * C, O), dtype)
    places = (partial, sums_room(N, C, dtype), z_image, z_pitch + O, z_pitch, x_image, x_pitch + C, x_pitch, v, p, du, temp,
              per_block, plane)
    return kernel, groups, _points(m, dtype, C, O), places


def unit_gradient(m, g, z, normalisation, x, prologue, weight, residual_gradient, front=None, add_to=None, shortcut=None):
    """`composed.conv2d_unit_gradient` for padding 1: -> dx or None, dweight or None, (2, C) sums over dx or None.

    normalisation None: g is dz itself, and z is not read. weight None: no dx. prologue and front None: no sums.
    """
    N, H, W, C = x.shape
    O, dtype, nothing = g.shape[3], x.dtype, np.empty(0, x.dtype)
    kernel, groups, points, places = _gradient_plan(m, dtype, N, H, W, C, O)
    need_dx = weight is not None
    front = front_of(x, prologue, front)
    sums = C if need_dx and front[1].size else 0
    dweight, adds = weight_room((3, 3, C, O), dtype, add_to)
    weight = np.ascontiguousarray(weight) if need_dx else nothing.reshape((0,) * 4)
    dx = empty(x.shape, dtype) if need_dx else nothing
    total = np.empty((2, C), dtype)
    tasks = (O if need_dx else 0) + groups + row_tasks(9 * C) + sums
    launch(kernel, tasks, 2 * g.size * C, weight, points, g.reshape(N, H, W * O),
           (g if z is None else z).reshape(N, H, W * O), normalisation or (nothing,) * 4, x.reshape(N, H, W * C),
           prologue_of(prologue, shortcut, None, dtype),
           nothing if residual_gradient is None else residual_gradient.reshape(-1), front,
           dx.reshape(-1), total, dweight.reshape(9 * C, O), adds, *places)
    return (dx if need_dx else None), None if adds else dweight, total if sums else None
