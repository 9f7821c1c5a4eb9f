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
from minires.backends.cpu.host import BLOCK_BYTES, CACHE_BYTES, block_of, lanes_of
from minires.backends.cpu.images import (
    blocks_of,
    finish,
    finish_gradient,
    load_gradient,
    load_input,
    places_of,
    scratch,
)
from minires.backends.cpu.microkernel import tile
from minires.backends.cpu.moments import add_channel, merge_channel
from minires.backends.cpu.threads import await_tasks, claimed
from minires.backends.cpu.transforms import (
    add_weights_back,
    transform_back,
    transform_tiles,
    transform_weights,
)
from minires.backends.cpu.units import (
    LEAST_TASKS,
    Slices,
    Units,
    add_groups,
    group_tasks,
    groups_of,
    part_counts,
    slice_of,
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
    """The numbers of a convolution, or of what turns it round, for the kernels; C channels are read, O written."""

    H: int
    W: int
    C: int
    O: int
    columns: int  # tiles in a row of an image
    units: Units
    tiles: int  # rows of a plane's matrix: a unit's tiles, rounded up
    slices: Slices  # of output channels
    turned: bool  # as `transform_weights`
    u_plane: int  # elements from a point's matrix to the next: of the weights,
    v_plane: int  # of V
    p_plane: int  # and of P
    p: int  # where parts of scratch begin: P,
    image: int  # the image,
    temp: int  # and what transforms need besides


@cache
def forward_kernel(m, tiling, lanes, block, ragged):
    """The kernel of y = conv(x), or if turned of dx = conv(dy) with the weights turned round.

    Phases: blocks of the weights' rows are transformed (if their points are not given), units are convolved, moments are
    merged (one task a channel).
    """
    size, rows_, blocks_ = (m + 2) ** 2, tiling.rows, tiling.blocks

    @jit.kernel
    def winograd(tasks, counter, thread, plan, weight, points, to_transform, source, output, counts, merged, works):
        work, H, W, C, O, columns, units = works[thread], plan.H, plan.W, plan.C, plan.O, plan.columns, plan.units
        ins, outs, tiles, slices, temp = -(-C // block), -(-O // block), plan.tiles, plan.slices, work[plan.temp:]
        v, left = np.int64(0), np.int64(1)  # no constants, for which what is called would be compiled once more
        convolved = to_transform + units.count * slices.count
        for task in claimed(tasks, counter, thread):
            if task < to_transform:
                transform_weights(m, lanes, block, plan.turned, weight, C, O, task, points, slices.total, plan.u_plane, work)
                continue
            await_tasks(counter, to_transform)
            if task >= convolved:
                await_tasks(counter, convolved)
                merge_channel(output.means, output.squares, counts, task - convolved, merged)
                continue
            unit, part = (task - to_transform) // slices.count, (task - to_transform) % slices.count
            first, end = slice_of(slices, part)
            n0, n1, row, rows = unit_of(units, unit)
            width = columns * m + 2
            for n in range(n0, n1):
                for c in range(ins):
                    load_input(block, ragged, source, n, row * m - 1, rows * m + 2, left, width, H, W, C, c * block,
                               part == 0, work, plan.image)
                    transform_tiles(m, lanes, block, False, work, plan.image, width, rows, columns, work,
                                    v + (c * tiles + (n - n0) * rows * columns) * block, plan.v_plane, temp)
            multiply(rows_, blocks_, block, size, work, v, plan.v_plane, tiles, ins, points, plan.u_plane, work, plan.p,
                     plan.p_plane, (n1 - n0) * rows * columns, first, end)
            for n in range(n0, n1):
                for o in range(first, min(end, outs)):
                    at = plan.p + ((o - first) * tiles + (n - n0) * rows * columns) * block
                    transform_back(m, lanes, block, work, at, plan.p_plane, rows, columns, work, plan.image, temp)
                    finish(block, ragged, work, plan.image, columns * m * block, min(rows * m, H - row * m), W, output,
                           (n * H + row * m) * W * O, O, o * block, n * units.bands + unit % units.bands)

    return winograd


class GradientPlan(NamedTuple):
    """The same of a convolution's gradients."""

    H: int
    W: int
    C: int
    O: int
    columns: int
    units: Units
    tiles: int
    slices: Slices  # of input channels
    groups: int  # of units
    u_plane: int
    v_plane: int  # also of P, which takes the place of V when that is not needed any more
    z_plane: int  # of A dz A^T and of V of dz
    du_plane: int
    z: int
    d: int  # V of dz
    du: int
    image: int
    temp: int


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
        ins, outs, tiles, slices, temp = -(-C // block), -(-O // block), plan.tiles, plan.slices, work[plan.temp:]
        v, left, turned = np.int64(0), np.int64(1), output.dx.size > 0  # no constants, as in the other kernel
        # Of one group, where no channels are added, the weights' gradient is the parameter's own.
        padded_C, padded_O = (C, O) if direct else (ins * block, -(-outs // blocks_) * blocks_ * block)
        transformed = outs if turned else 0
        computed = transformed + plan.groups * slices.count
        sums = computed + (0 if direct else group_tasks(9 * C))
        for task in claimed(tasks, counter, thread):
            if task < transformed:
                transform_weights(m, lanes, block, turned, weight, O, C, task, points, slices.total, plan.u_plane, work)
                continue
            await_tasks(counter, transformed)
            if task >= computed:
                await_tasks(counter, computed)
                if task < sums:
                    add_groups(partial, plan.groups, task - computed, C, padded_C, padded_O, dweight, 9 * C, O, adds)
                else:
                    add_channel(output.sums, task - sums, total)
                continue
            group, part = (task - transformed) // slices.count, (task - transformed) % slices.count
            first, end = slice_of(slices, part)
            begin = group * units.count // plan.groups
            for unit in range(begin, (group + 1) * units.count // plan.groups):
                n0, n1, row, rows = unit_of(units, unit)
                width, used = columns * m + 2, (n1 - n0) * rows * columns
                for n in range(n0, n1):
                    at = (n - n0) * rows * columns
                    for c in range(first, min(end, ins)):
                        load_input(block, ragged, source, n, row * m - 1, rows * m + 2, left, width, H, W, C, c * block,
                                   part == 0, work, plan.image)
                        transform_tiles(m, lanes, block, False, work, plan.image, width, rows, columns, work,
                                        v + ((c - first) * tiles + at) * block, plan.v_plane, temp)
                    for o in range(outs):
                        load_gradient(block, ragged, gradient, n, row * m - 1, rows * m + 2, left, width, H, W, O, o * block,
                                      work, plan.image)
                        transform_tiles(m, lanes, block, True, work, plan.image + (width + 1) * block, width, rows, columns,
                                        work, plan.z + (o * tiles + at) * block, plan.z_plane, temp)
                        if turned:
                            transform_tiles(m, lanes, block, False, work, plan.image, width, rows, columns, work,
                                            plan.d + (o * tiles + at) * block, plan.z_plane, temp)
                for o in range(0, outs, blocks_):
                    for c in range(first, min(end, ins)):
                        for point in range(size):
                            for row_c in range(0, block, channels):
                                tile(channels, blocks_, block, 0,
                                     work, v + point * plan.v_plane + (c - first) * tiles * block + row_c, 1, 0, block,
                                     work, plan.z + point * plan.z_plane + o * tiles * block, 0, tiles * block,
                                     work, plan.du + point * plan.du_plane + row_c * block, block, block * block,
                                     0, 1, used, 0)
                        for b in range(min(blocks_, outs - o)):
                            at = (group * 9 * padded_C + c * block) * padded_O + (o + b) * block
                            add_weights_back(m, lanes, block, work, plan.du + b * block * block, plan.du_plane, partial, at,
                                             padded_C, padded_O, unit > begin or (direct and adds), temp)
                if turned:
                    multiply(rows_, blocks_, block, size, work, plan.d, plan.z_plane, tiles, outs, points, plan.u_plane,
                             work, v, plan.v_plane, used, first, end)
                    for n in range(n0, n1):
                        for c in range(first, min(end, ins)):
                            at = v + ((c - first) * tiles + (n - n0) * rows * columns) * block
                            transform_back(m, lanes, block, work, at, plan.v_plane, rows, columns, work, plan.image, temp)
                            finish_gradient(block, ragged, work, plan.image, columns * m * block, min(rows * m, H - row * m),
                                            W, source, output, (n * H + row * m) * W * C, C, c * block,
                                            n * units.bands + unit % units.bands)

    return winograd_gradient


def points_size(m, C, O, dtype):
    """Elements of the transformed weights of C to O channels: what the kernels take as `points`."""
    block, wide = block_of(dtype), slices_of(LEAST_TASKS, blocks_of(O, dtype), tiling_of(dtype, O).blocks).total
    return (m + 2) ** 2 * (blocks_of(C, dtype) * wide * block * block + block)


def _shared_out(m, dtype, N, H, W, channels, cache_bytes, tiling, slice_blocks):
    """(units, tiles of one, rounded up, tiles in a row of an image) for V of `channels` in so many bytes."""
    size, columns = (m + 2) ** 2, -(-W // m)
    most = max(MOST_TILES, cache_bytes // (size * blocks_of(channels, dtype) * BLOCK_BYTES))
    units = units_of(N, -(-H // m), columns, most, -(-slice_blocks // tiling.blocks))
    return units, -(-units.images * units.rows * columns // tiling.rows) * tiling.rows, columns


def _image_sizes(m, dtype, units, columns):
    """Elements of a block of a unit's image, or of the weights that a task transforms; and of what that needs besides."""
    block, size = block_of(dtype), m + 2
    weights = 9 * block * block + 3 * size * lanes_of(dtype)
    return max((units.rows * m + 2) * (columns * m + 2) * block, weights), 3 * (size + 1) * size * lanes_of(dtype)


@lru_cache(maxsize=256)
def forward_plan(m, dtype, N, H, W, C, O, turned):
    """(kernel, Plan, counts of pixels of the parts, scratch)."""
    tiling, block, size = tiling_of(dtype, O), block_of(dtype), (m + 2) ** 2
    ins, outs = blocks_of(C, dtype), blocks_of(O, dtype)
    units, tiles, columns = _shared_out(m, dtype, N, H, W, C, CACHE_BYTES // 4, tiling, outs)
    slices = slices_of(units.count, outs, tiling.blocks)
    # A point's matrix is a cache line longer than its data: planes of a power of two would fall into the same cache sets.
    u_plane, v_plane, p_plane = (count * block + block for count in (ins * slices.total * block, ins * tiles,
                                                                     slices.each * tiles))
    _, *places, end = places_of(block, size * v_plane, size * p_plane, *_image_sizes(m, dtype, units, columns))
    plan = Plan(H, W, C, O, columns, units, tiles, slices, turned, u_plane, v_plane, p_plane, *places)
    kernel = forward_kernel(m, tiling, lanes_of(dtype), block, C % block > 0 or O % block > 0)
    return kernel, plan, part_counts(units, m, H, W), scratch(end, dtype)


@lru_cache(maxsize=256)
def gradient_plan(m, dtype, N, H, W, C, O, need_dx):
    """(kernel, GradientPlan, tasks but for sums, parts of the sums, size of partial gradients or None, scratch)."""
    tiling, block, size = tiling_of(dtype, min(C, O)), block_of(dtype), (m + 2) ** 2
    ins, outs, ragged = blocks_of(C, dtype), blocks_of(O, dtype), C % block > 0 or O % block > 0
    wide_outs = -(-outs // tiling.blocks) * tiling.blocks
    units, tiles, columns = _shared_out(m, dtype, N, H, W, C, CACHE_BYTES // 8, tiling, ins)
    groups = groups_of(units.count, 9 * ins * wide_outs * block * block * dtype.itemsize)
    slices, direct = slices_of(groups, ins, tiling.blocks), groups == 1 and not ragged
    u_plane, v_plane, z_plane, du_plane = (count * block + block for count in (
        outs * slices.total * block, slices.each * tiles, wide_outs * tiles, tiling.blocks * block))
    _, *places, end = places_of(block, size * v_plane, size * z_plane, size * z_plane * need_dx, size * du_plane,
                                *_image_sizes(m, dtype, units, columns))
    plan = GradientPlan(H, W, C, O, columns, units, tiles, slices, groups, u_plane, v_plane, z_plane, du_plane, *places)
    tasks = outs * need_dx + groups * slices.count + (0 if direct else group_tasks(9 * C))
    partial = None if direct else (groups * 9 * ins * wide_outs * block * block,)
    kernel = gradient_kernel(m, tiling, lanes_of(dtype), block, ragged)
    return kernel, plan, tasks, N * units.bands, partial, scratch(end, dtype)
