"""Convolution 3x3, stride 1, by Winograd's F(2x2, 3x3) and F(4x4, 3x3): fewer multiplications for the same sums.

    y = A^T [(G weight G^T) * (B^T x B)] A     for each tile of m x m output pixels, * element by element over (m + 2)^2
                                               points, each point a matrix product over channels (transforms.py derives it)

Loop order. Tasks are units times slices of output channels (units.py). For a unit: block by block of input channels, an
image is read into scratch and transformed to V (points, blocks, tiles, BLOCK); the products P (points, blocks, tiles,
BLOCK), a matrix product a point by the micro-kernel; block by block of output channels, P is transformed back and leaves.
A unit has so many tiles that the weights, read once a unit, are used often enough, and no more: V and P stay in the caches.

`gradient`: from the same unit of x and dz it forms V of x and A dz A^T, whose products over the tiles are, block by block of
both channels, the points of the weight gradient, transformed back at once and added to a group's; then V of dz and, as
forward, the input gradient. Tasks are groups of units times slices of input channels.

Both transform their weights in a phase before (threads.py), and merge the sums of units and groups in one behind.

Bytes moved: x once, y once, as the direct kernel. Multiplications: (m + 2)^2 / (9 m^2) of the direct kernel's.
"""
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from minires.backends.cpu import jit
from minires.backends.cpu.arena import aligned_zeros
from minires.backends.cpu.host import CACHE_BYTES, block_of, lanes_of
from minires.backends.cpu.images import (
    blocks_of,
    finish,
    finish_gradient,
    load_gradient,
    load_input,
    scratch,
    shared_scratch,
)
from minires.backends.cpu.microkernel import tile
from minires.backends.cpu.moments import add_channel, merge_channel
from minires.backends.cpu.threads import await_tasks, claimed, launch
from minires.backends.cpu.transforms import (
    add_weights_back,
    transform_back,
    transform_gradients,
    transform_tiles,
    transform_weights,
)
from minires.backends.cpu.units import (
    Units,
    add_groups,
    group_tasks,
    groups_of,
    slices_of,
    tiling_of,
    unit_of,
    units_of,
)

MOST_TILES = 64  # of a unit, unless more fit the cache: then reading its weights takes no time beside multiplying by them


@jit.part
def multiply(ROWS, BLOCKS, BLOCK, count, v, v_at, v_plane, tiles, blocks, u, u_plane, p, p_at, p_plane, used, first, end):
    """A matrix product a point: P = V u, for the blocks first .. end of the products' channels."""
    for point in range(count):
        for o in range(first, end, BLOCKS):
            for t in range(0, used, ROWS):
                tile(ROWS, BLOCKS, BLOCK, t, v, v_at + point * v_plane, BLOCK, tiles * BLOCK, 1,
                     u, point * u_plane + o * blocks * BLOCK * BLOCK, BLOCK * BLOCK, blocks * BLOCK * BLOCK,
                     p, p_at + point * p_plane + (o - first) * tiles * BLOCK, BLOCK, tiles * BLOCK, 0, blocks, BLOCK, 0)


class Plan(NamedTuple):
    """The numbers of a convolution, or of what turns it round, for the kernels."""

    H: int
    W: int
    C: int
    O: int
    columns: int  # tiles in a row of an image
    units: Units
    tiles: int  # rows of a plane's matrix: a unit's tiles, rounded up
    slices: int  # of output channels; in the gradient's kernel of input channels
    groups: int
    turned: bool  # as `transform_weights`


@cache
def forward_kernel(m, tiling, lanes, block, ragged):
    """The kernel of y = conv(x), or if turned of dx = conv(dy) with the weights turned round.

    Phases: blocks of the weights' rows are transformed (if their points are not given), units are convolved, moments are
    merged (one task a channel). C are the channels of what is read, O of what is written.
    """
    size, rows_, blocks_ = (m + 2) ** 2, tiling.rows, tiling.blocks

    @jit.kernel
    def winograd(tasks, counter, thread, plan, weight, points, to_transform, source, output, counts, merged, works):
        work, H, W, C, O, columns, units = works[thread], plan.H, plan.W, plan.C, plan.O, plan.columns, plan.units
        ins, outs, tiles = -(-C // block), -(-O // block), plan.tiles
        wide = -(-outs // blocks_) * blocks_
        per_slice = -(-(wide // blocks_) // plan.slices) * blocks_
        u_plane, v_plane = ins * wide * block * block + block, ins * tiles * block + block
        p_plane = per_slice * tiles * block + block
        v, left = np.int64(0), np.int64(1)  # no constants, for which what is called would be compiled once more
        p = size * v_plane
        image = p + size * p_plane
        convolved = to_transform + units.count * plan.slices
        for task in claimed(tasks, counter, thread):
            if task < to_transform:
                transform_weights(m, lanes, block, plan.turned, weight, C, O, task, points, wide, u_plane, work)
                continue
            await_tasks(counter, to_transform)
            if task >= convolved:
                await_tasks(counter, convolved)
                merge_channel(output.means, output.squares, counts, task - convolved, merged)
                continue
            unit, part = (task - to_transform) // plan.slices, (task - to_transform) % plan.slices
            first, end = part * per_slice, min((part + 1) * per_slice, wide)
            n0, n1, row, rows = unit_of(units, unit)
            width = columns * m + 2
            temp = work[image + (rows * m + 2) * width * block:]
            for n in range(n0, n1):
                for c in range(ins):
                    load_input(block, ragged, source, n, row * m - 1, rows * m + 2, left, width, H, W, C, c * block,
                               part == 0, work, image)
                    transform_tiles(m, lanes, block, work, image, width, rows, columns, work,
                                    v + (c * tiles + (n - n0) * rows * columns) * block, v_plane, temp)
            multiply(rows_, blocks_, block, size, work, v, v_plane, tiles, ins, points, u_plane, work, p, p_plane,
                     (n1 - n0) * rows * columns, first, end)
            for n in range(n0, n1):
                for o in range(first, min(end, outs)):
                    transform_back(m, lanes, block, work, p + ((o - first) * tiles + (n - n0) * rows * columns) * block,
                                   p_plane, rows, columns, work, image, temp)
                    finish(block, ragged, work, image, columns * m * block, min(rows * m, H - row * m), W, output,
                           (n * H + row * m) * W * O, O, o * block, n * units.bands + unit % units.bands)

    return winograd


@cache
def gradient_kernel(m, tiling, lanes, block, ragged):
    """The kernel of dweight and dx.

    Phases: the weights turned round and transformed, if dx is wanted (one task a block of output channels); groups of units,
    slices of input channels; sums over the groups (group_tasks) and over the units (one task a channel).
    """
    size, rows_, blocks_, channels = (m + 2) ** 2, tiling.rows, tiling.blocks, tiling.channels

    @jit.kernel
    def winograd_gradient(tasks, counter, thread, plan, weight, points, gradient, source, output, total, partial, direct,
                          dweight, adds, works):
        work, H, W, C, O, columns, units = works[thread], plan.H, plan.W, plan.C, plan.O, plan.columns, plan.units
        ins, outs, tiles = -(-C // block), -(-O // block), plan.tiles
        wide_ins, wide_outs = -(-ins // blocks_) * blocks_, -(-outs // blocks_) * blocks_
        per_slice = -(-(wide_ins // blocks_) // plan.slices) * blocks_
        u_plane, v_plane = outs * wide_ins * block * block + block, per_slice * tiles * block + block
        z_plane, du_plane = wide_outs * tiles * block + block, blocks_ * block * block + block
        v, left = np.int64(0), np.int64(1)  # v: and P, when V is not needed any more
        z = v + size * v_plane
        d = z + size * z_plane
        du = d + (size * z_plane if output.dx.size else 0)
        # Of one group, where no channels are added, the weights' gradient is the parameter's own.
        padded_C, padded_O = (C, O) if direct else (ins * block, wide_outs * block)
        transformed = outs if output.dx.size else 0
        computed = transformed + plan.groups * plan.slices
        sums = computed + (0 if direct else group_tasks(9 * C))
        for task in claimed(tasks, counter, thread):
            if task < transformed:
                transform_weights(m, lanes, block, plan.turned, weight, O, C, task, points, wide_ins, u_plane, work)
                continue
            await_tasks(counter, transformed)
            if task >= computed:
                await_tasks(counter, computed)
                if task < sums:
                    add_groups(partial, plan.groups, task - computed, C, padded_C, padded_O, dweight, 9 * C, O, adds)
                else:
                    add_channel(output.sums, task - sums, total)
                continue
            group, part = (task - transformed) // plan.slices, (task - transformed) % plan.slices
            first, end = part * per_slice, min((part + 1) * per_slice, wide_ins)
            begin = group * units.count // plan.groups
            for unit in range(begin, (group + 1) * units.count // plan.groups):
                n0, n1, row, rows = unit_of(units, unit)
                width, used = columns * m + 2, (n1 - n0) * rows * columns
                image = du + size * du_plane
                temp = work[image + (rows * m + 2) * width * block:]
                for n in range(n0, n1):
                    at = (n - n0) * rows * columns
                    for c in range(first, min(end, ins)):
                        load_input(block, ragged, source, n, row * m - 1, rows * m + 2, left, width, H, W, C, c * block,
                                   part < 0, work, image)
                        transform_tiles(m, lanes, block, work, image, width, rows, columns, work,
                                        v + ((c - first) * tiles + at) * block, v_plane, temp)
                    for o in range(outs):
                        load_gradient(block, ragged, gradient, n, row * m - 1, rows * m + 2, left, width, H, W, O, o * block,
                                      work, image)
                        transform_gradients(m, lanes, block, work, image + (width + 1) * block, width, rows, columns, work,
                                            z + (o * tiles + at) * block, z_plane, temp)
                        if output.dx.size:
                            transform_tiles(m, lanes, block, work, image, width, rows, columns, work,
                                            d + (o * tiles + at) * block, z_plane, temp)
                for o in range(0, outs, blocks_):
                    for c in range(first, min(end, ins)):
                        for point in range(size):
                            for row_c in range(0, block, channels):
                                tile(channels, blocks_, block, 0, work, v + point * v_plane + (c - first) * tiles * block
                                     + row_c, 1, 0, block, work, z + point * z_plane + o * tiles * block, 0, tiles * block,
                                     work, du + point * du_plane + row_c * block, block, block * block, 0, 1, used, 0)
                        for b in range(min(blocks_, outs - o)):
                            at = c * block * padded_O + (o + b) * block
                            add_weights_back(m, lanes, block, work, du + b * block * block, du_plane, partial,
                                             group * 9 * padded_C * padded_O + at, padded_C, padded_O,
                                             unit > begin or (direct and adds), temp)
                if output.dx.size:
                    multiply(rows_, blocks_, block, size, work, d, z_plane, tiles, outs, points, u_plane, work, v, v_plane,
                             used, first, end)
                    for n in range(n0, n1):
                        for c in range(first, min(end, ins)):
                            transform_back(m, lanes, block, work, v + ((c - first) * tiles + (n - n0) * rows * columns)
                                           * block, v_plane, rows, columns, work, image, temp)
                            finish_gradient(block, ragged, work, image, columns * m * block, min(rows * m, H - row * m), W,
                                            source, output, (n * H + row * m) * W * C, C, c * block,
                                            n * units.bands + unit % units.bands)

    return winograd_gradient


def points_size(m, C, O, dtype):
    """Elements of the transformed weights of C to O channels: what the kernels take as `points`."""
    block, blocks = block_of(dtype), tiling_of(dtype, O).blocks
    wide = -(-blocks_of(O, dtype) // blocks) * blocks
    return (m + 2) ** 2 * (blocks_of(C, dtype) * wide * block * block + block)


def points_room(m, C, O, dtype):
    """Memory for them, one for all layers: each kernel transforms its weights before it uses them."""
    return shared_scratch((points_size(m, C, O, dtype),), dtype, "points")


@cache
def transform_kernel(m, lanes, block):
    """The first phase of `forward_kernel` by itself, for weights that are used more than once."""
    @jit.kernel
    def transform(tasks, counter, thread, weight, C, O, wide, points, works):
        for task in claimed(tasks, counter, thread):
            transform_weights(m, lanes, block, task < 0, weight, C, O, task, points, wide,
                              -(-C // block) * wide * block * block + block, works[thread])

    return transform


def transformed(m, weight):
    """G weight G^T: what `forward_kernel` takes as `points`."""
    (C, O), dtype, block = weight.shape[2:], weight.dtype, block_of(weight.dtype)
    blocks = tiling_of(dtype, O).blocks
    points = aligned_zeros((points_size(m, C, O, dtype),), dtype)
    launch(transform_kernel(m, lanes_of(dtype), block), blocks_of(C, dtype), points.size,
           np.ascontiguousarray(weight).reshape(-1), C, O, -(-blocks_of(O, dtype) // blocks) * blocks, points,
           scratch(_image(m, 1, 1, block, lanes_of(dtype)), dtype))
    return points


@lru_cache(maxsize=256)
def forward_plan(m, dtype, N, H, W, C, O, turned):
    """(kernel, Plan, counts of pixels of the parts, scratch)."""
    tiling, block, lanes = tiling_of(dtype, O), block_of(dtype), lanes_of(dtype)
    ins, outs, size = blocks_of(C, dtype), blocks_of(O, dtype), (m + 2) ** 2
    height, columns = -(-H // m), -(-W // m)
    most = max(MOST_TILES, CACHE_BYTES // 4 // (size * ins * 64))
    wide = -(-outs // tiling.blocks)
    units = units_of(N, height, columns, most, wide)
    tiles = -(-units.images * units.rows * columns // tiling.rows) * tiling.rows
    slices = slices_of(units.count, wide)
    per_slice = -(-wide // slices) * tiling.blocks
    work = size * (ins * tiles + per_slice * tiles + 2) * block + _image(m, units.rows, columns, block, lanes)
    kernel = forward_kernel(m, tiling, lanes, block, C % block > 0 or O % block > 0)
    plan = Plan(H, W, C, O, columns, units, tiles, slices, 0, turned)
    return kernel, plan, part_counts(units, m, H, W), scratch(work, dtype)


def _image(m, rows, columns, block, lanes):
    """Elements of scratch for a block of a unit's image, and for what transforms need besides."""
    raw = 9 * block * block  # weights
    return max((rows * m + 2) * (columns * m + 2) * block, raw) + (m + 2) * (m + 3) * lanes * 2 + raw


def part_counts(units, m, H, W):
    """Pixels of each part whose sums are kept: each image's bands."""
    rows = [min(units.rows * m, H - band * units.rows * m) for band in range(units.bands)]
    return np.array(rows * units.N, np.int64) * W


@lru_cache(maxsize=256)
def gradient_plan(m, dtype, N, H, W, C, O, need_dx):
    """(kernel, Plan, tasks but for sums, parts of the sums, size of partial gradients or None, scratch)."""
    tiling, block, lanes = tiling_of(dtype, min(C, O)), block_of(dtype), lanes_of(dtype)
    ins, outs, size = blocks_of(C, dtype), blocks_of(O, dtype), (m + 2) ** 2
    height, columns = -(-H // m), -(-W // m)
    wide_ins, wide_outs = (-(-count // tiling.blocks) * tiling.blocks for count in (ins, outs))
    most = max(MOST_TILES, CACHE_BYTES // 8 // (size * ins * 64))
    units = units_of(N, height, columns, most, wide_ins // tiling.blocks)
    tiles = -(-units.images * units.rows * columns // tiling.rows) * tiling.rows
    groups = groups_of(units.count, 9 * ins * wide_outs * block * block * dtype.itemsize)
    slices = slices_of(groups, wide_ins // tiling.blocks)
    per_slice = -(-(wide_ins // tiling.blocks) // slices) * tiling.blocks
    work = size * (per_slice * tiles + 1 + (wide_outs * tiles + 1) * (2 if need_dx else 1)
                   + tiling.blocks * block + 1) * block + _image(m, units.rows, columns, block, lanes)
    ragged = C % block > 0 or O % block > 0
    direct = groups == 1 and not ragged
    partial = None if direct else (groups * 9 * ins * wide_outs * block * block,)
    kernel = gradient_kernel(m, tiling, lanes, block, ragged)
    plan = Plan(H, W, C, O, columns, units, tiles, slices, groups, True)
    tasks = (outs if need_dx else 0) + groups * slices + (0 if direct else group_tasks(9 * C))
    return kernel, plan, tasks, N * units.bands, partial, scratch(work, dtype)
