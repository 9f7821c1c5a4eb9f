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

Bytes moved: x once, y once, as the direct kernel. Multiplications: (m + 2)^2 / (9 m^2) of the direct kernel's.
"""
import weakref
from functools import cache, lru_cache

import numpy as np
from numba import njit

from minires.backends.cpu.arena import empty
from minires.backends.cpu.gather import GROUPS, finish
from minires.backends.cpu.geometry import ACCUMULATORS, round_up
from minires.backends.cpu.host import VECTOR_BYTES, lanes_of
from minires.backends.cpu.images import copy_image, finish_gradient, load_gradient, load_normalised, scratch
from minires.backends.cpu.microkernel import tile
from minires.backends.cpu.moments import moments, sum_partials
from minires.backends.cpu.threads import claim, launch
from minires.backends.cpu.transforms import input_1d, output_1d, output_adjoint_1d, weight_1d, weight_adjoint_1d

BLOCK_BYTES = 300 << 10  # of V, for a block of images: P is as large, and both with the weights fill a 1 MiB cache


@njit
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
                        output_adjoint_1d(M, LANES, temp, i * size * LANES, LANES,
                                          points, i * size * plane + tile_at + c, plane)
                else:
                    for j in range(size):
                        input_1d(M, LANES, image, corner + j * C, pitch, temp, j * LANES, size * LANES)
                    for i in range(size):
                        input_1d(M, LANES, temp, i * size * LANES, LANES,
                                 points, i * size * plane + tile_at + c, plane)


@njit
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
                    output_1d(M, LANES, temp, i * size * LANES, LANES,
                              y, start + ((th * M + i) * W + tw * M) * C + c, C)


@njit
def multiply(M, ROWS, VECTORS, LANES, C, O, v, weight, p, plane, tiles):
    """P = V @ weight for each point. v: (points, tiles, C), weight: (points, C, O), p: (points, tiles, O)."""
    for point in range((M + 2) * (M + 2)):
        for o in range(0, O, VECTORS * LANES):
            for t in range(0, tiles, ROWS):
                tile(ROWS, ROWS, VECTORS, LANES, v, point * plane + t * C, C, 0, 1, 0,
                     weight, point * C * O + o, O, 0, p, point * plane + t * O + o, O, 0, C, 1, 0)


@njit
def transform_weight_row(M, LANES, weight, points, start, count, plane, temp):
    """G weight G^T of `count` elements from `start` on, of each of the planes."""
    size = M + 2
    for at in range(start, start + count, LANES):
        for j in range(3):
            weight_1d(M, LANES, weight, at + j * plane, 3 * plane, temp, j * LANES, 3 * LANES)
        for i in range(size):
            weight_1d(M, LANES, temp, 3 * i * LANES, LANES, points, at + i * size * plane, plane)


@cache
def weight_kernel(m, lanes):
    """weight (3, 3, C, O) to its points (m + 2, m + 2, C, O)."""

    @njit(nogil=True, cache=True)
    def transform_weight(tasks, counter, thread, weight, points, temp):
        C, O = weight.shape[2], weight.shape[3]
        c = claim(counter)
        while c < tasks:
            transform_weight_row(m, lanes, weight.reshape(-1), points.reshape(-1), c * O, O, C * O, temp[thread])
            c = claim(counter)

    return transform_weight


def transform_weight(weight, m):
    """G weight G^T: (3, 3, C, O) -> (m + 2, m + 2, C, O); remembered for a read-only weight while it lives."""
    if weight.flags.writeable:
        return _transform_weight(weight, m)
    key = id(weight), m
    if key not in _remembered:
        _remembered[key] = _transform_weight(weight, m)
        weakref.finalize(weight, _remembered.pop, key)
    return _remembered[key]


_remembered = {}


def _transform_weight(weight, m):
    lanes = lanes_of(weight.dtype)
    weight = np.ascontiguousarray(weight)
    points = empty((m + 2, m + 2, *weight.shape[2:]), weight.dtype)
    temp = scratch("winograd weight", 64 * lanes, weight.dtype)
    launch(weight_kernel(m, lanes), weight.shape[2], points.size, weight, points, temp)
    return points


@cache
def forward_kernel(m, rows, vectors, lanes, C, O):
    """The forward kernel for one shape of weights: its addresses are then constants, which is worth a third.

    Its empty arrays switch off what they are for.
    """

    @njit(nogil=True, cache=True)
    def winograd(tasks, counter, thread, x, prologue, weight, y, means, squares, bias, residual, relu,
                 images, vs, ps, temps, start, pitch, per_block, plane):
        N, H, W = y.shape[0], y.shape[1], y.shape[2]
        tiles, flat_y = (H // m) * (W // m), y.reshape(-1)
        image, v, p, temp = images[thread], vs[thread], ps[thread], temps[thread]
        channels, out_channels = np.int64(C), np.int64(O)  # no constants: the transforms are compiled once for all shapes
        block = claim(counter)
        while block < tasks:
            first, last = block * per_block, min((block + 1) * per_block, N)
            for n in range(first, last):
                if prologue[0].size:
                    load_normalised(lanes, x, n, prologue, image, start, pitch)
                else:
                    copy_image(x, n, image, start, pitch)
                transform_images(m, lanes, False, image, 0, pitch, channels, H, W, v, (n - first) * tiles, plane, temp)
            multiply(m, rows, vectors, lanes, C, O, v, weight, p, plane, (last - first) * tiles)
            for n in range(first, last):
                target = n * H * W * O
                transform_back(m, lanes, p, (n - first) * tiles, plane, flat_y, target, out_channels, H, W, temp)
                if means.size:
                    moments(lanes, flat_y.reshape(-1, O), n * H * W, (n + 1) * H * W, means, squares, n)
                if bias.size:
                    finish(lanes, flat_y, target, H * W, out_channels, bias, residual, relu)
            block = claim(counter)

    return winograd


@njit
def transform_weight_back(M, LANES, C, O, du, dweight, temp):
    """G^T du G: (points, C, O) -> (3, 3, C, O)."""
    size = M + 2
    for at in range(0, C * O, LANES):
        for j in range(size):
            weight_adjoint_1d(M, LANES, du, j * C * O + at, size * C * O, temp, j * LANES, size * LANES)
        for i in range(3):
            weight_adjoint_1d(M, LANES, temp, i * size * LANES, LANES, dweight, 3 * i * C * O + at, C * O)


@cache
def gradient_kernel(m, rows, vectors, lanes, C, O):
    """The backward kernel for one shape of weights: see `unit_gradient`."""

    @njit(nogil=True, cache=True)
    def gradient(tasks, counter, t, g, z, normalisation, z_images, z_start, z_pitch, x, prologue, x_images, x_start,
                 x_pitch, weight, residual, dx, sums, vs, ps, dus, temps, per_block, plane, partial):
        N, G, H, W = g.shape[0], partial.shape[0], g.shape[1], g.shape[2] // O
        z_size, x_size, tiles = (H + 2) * z_pitch, (H + 2) * x_pitch, (H // m) * (W // m)
        z_image, x_image, v, p, du, temp = z_images[t], x_images[t], vs[t], ps[t], dus[t], temps[t]
        channels, out_channels = np.int64(C), np.int64(O)
        k = claim(counter)
        while k < tasks:
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
                    multiply(m, rows, vectors, lanes, O, C, p, weight, v, plane, (last - first) * tiles)
                    for n in range(first, last):
                        target = n * H * W * C
                        transform_back(m, lanes, v, (n - first) * tiles, plane, dx, target, channels, H, W, temp)
                        finish_gradient(lanes, dx, target, x_image, (n - first) * x_size + x_start, x_pitch, x, prologue, H,
                                        W * channels, channels, residual, sums, n)
            transform_weight_back(m, lanes, C, O, du, partial[k], temp)
            k = claim(counter)

    return gradient


def tiling(m, dtype, H, W, C, O):
    """(rows, vectors) for the micro-kernel, or None where F(m x m, 3x3) does not fit: whole tiles, whole vectors."""
    lanes = lanes_of(dtype)
    if H % m or W % m or C % lanes or O % lanes:
        return None
    vectors = 2 if C % (2 * lanes) == 0 and O % (2 * lanes) == 0 else 1
    rows = ACCUMULATORS // vectors
    return None if C % rows else (rows, vectors)


def _workspace(m, dtype, rows, H, W, C, O, images):
    """(images a block, plane lengths and scratch of V and P, small scratch); planes serve for C and O alike."""
    tiles, points, line = (H // m) * (W // m), (m + 2) ** 2, VECTOR_BYTES // dtype.itemsize
    widest = max(C, O)
    per_block = max(1, min(images, BLOCK_BYTES // (points * tiles * widest * dtype.itemsize)))
    plane = round_up(per_block * tiles, rows) * widest + line
    v, p = (scratch((name, points, plane), points * plane, dtype) for name in ("winograd v", "winograd p"))
    return per_block, plane, v, p, scratch(("winograd", line), points * line, dtype)


@lru_cache(maxsize=128)
def _forward_plan(m, dtype, N, H, W, C, O):
    """(kernel, its number of tasks, its last arguments)."""
    rows, vectors = tiling(m, dtype, H, W, C, O)
    per_block, plane, v, p, temp = _workspace(m, dtype, rows, H, W, C, O, -(-N // GROUPS))
    pitch = (W + 2) * C
    image = scratch(((1, 1), (H + 2, W + 2), H, W, C), (H + 2) * pitch, dtype)
    kernel = forward_kernel(m, rows, vectors, lanes_of(dtype), C, O)
    return kernel, -(-N // per_block), (image, v, p, temp, pitch + C, pitch, per_block, plane)


def forward(m, x, prologue, weight, moments_out=None, epilogue=None):
    """y = conv(a(x)), padding 1: (N, H, W, C) and weight (3, 3, C, O) -> (N, H, W, O). The rest as `run_gather`."""
    N, H, W, C = x.shape
    O, dtype, nothing = weight.shape[3], x.dtype, np.empty(0, x.dtype)
    kernel, tasks, places = _forward_plan(m, dtype, N, H, W, C, O)
    y = empty((N, H, W, O), dtype)
    bias, residual, relu = epilogue or (nothing, None, False)
    launch(kernel, tasks, y.size * C, x.reshape(N, H, W * C), prologue or (nothing,) * 3,
           transform_weight(weight, m).reshape(-1), y, *(moments_out or (nothing.reshape(0, 0),) * 2), bias,
           nothing if residual is None else residual.reshape(-1), relu, *places)
    return y


@lru_cache(maxsize=128)
def _gradient_plan(m, dtype, N, H, W, C, O):
    """(kernel, number of groups, scratch for padded images of z and x, of v, p, du and small, images a block, plane)."""
    rows, vectors = tiling(m, dtype, H, W, C, O)
    groups = min(N, GROUPS)
    per_block, plane, v, p, temp = _workspace(m, dtype, rows, H, W, C, O, -(-N // groups))
    z_image = scratch(("z", per_block, H, W, O), per_block * (H + 2) * (W + 2) * O, dtype)
    x_image = scratch(("x", per_block, H, W, C), per_block * (H + 2) * (W + 2) * C, dtype)
    du = scratch(("winograd du", (m + 2) ** 2, C, O), (m + 2) ** 2 * C * O, dtype)
    kernel = gradient_kernel(m, rows, vectors, lanes_of(dtype), C, O)
    return kernel, groups, z_image, x_image, (v, p, du, temp, per_block, plane)


def unit_gradient(m, g, z, normalisation, x, prologue, weight, residual_gradient, need_dx):
    """`composed.conv2d_unit_gradient` for padding 1: -> dx or None, dweight, (N, 2, C) sums of each image's dx.

    weight: already flipped, (3, 3, O, C); normalisation None: g is dz itself, and z is not read.
    """
    N, H, W, C = x.shape
    O, dtype, nothing = g.shape[3], x.dtype, np.empty(0, x.dtype)
    kernel, groups, z_image, x_image, places = _gradient_plan(m, dtype, N, H, W, C, O)
    z_pitch, x_pitch = (W + 2) * O, (W + 2) * C
    partial, dweight = empty((groups, 9 * C * O), dtype), empty((3, 3, C, O), dtype)
    dx, sums = (empty((N, H, W, C), dtype) if need_dx else nothing), np.empty((N, 2, C), dtype)
    launch(kernel, groups, 2 * g.size * C, g.reshape(N, H, W * O), (g if z is None else z).reshape(N, H, W * O),
           normalisation or (nothing,) * 4, z_image, z_pitch + O, z_pitch,
           x.reshape(N, H, W * C), prologue or (nothing,) * 3, x_image, x_pitch + C, x_pitch,
           transform_weight(weight, m).reshape(-1) if need_dx else nothing,
           nothing if residual_gradient is None else residual_gradient.reshape(-1), dx.reshape(-1), sums, *places, partial)
    launch(sum_partials, 9 * C, partial.size, partial.reshape(groups, 1, 9 * C, O), 9 * C, dweight.reshape(9 * C, O))
    return (dx if need_dx else None), dweight, sums
