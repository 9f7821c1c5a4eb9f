"""The direct convolution and its gradients: any kernel, stride, padding and dilation.

    y[n, p] = sum over taps t, channels c of image[n, p * stride + t * dilation, c] * weight[t, c]
    dweight[t, c, o] = sum over images n, pixels p of image[n, p * stride + t * dilation, c] * dy[n, p, o]

Loop order. Tasks are units times slices of channels (units.py). A unit is read into scratch; the im2col matrix is never
formed, since the micro-kernel finds its rows where they lie (geometry.py). The sum over taps and channels runs in pieces;
the weights of one, laid out as the micro-kernel reads them, fit the first-level cache. For each, blocks of output channels
outside, pixels inside. The gradient's kernel forms dz of each unit once; it serves the weight gradient, added to a group's,
and the input gradient.

Bytes moved: x read once (a slice each), y written once; the weights once a unit.
"""
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from minires.backends.cpu import jit
from minires.backends.cpu.geometry import (
    Window,
    elements,
    forward_gather,
    input_gradient_gather,
    nothing_gathered,
    rows_read,
)
from minires.backends.cpu.host import block_of
from minires.backends.cpu.images import (
    blocks_of,
    finish,
    finish_gradient,
    load_gradient,
    load_input,
    load_narrow,
    places_of,
    scratch,
)
from minires.backends.cpu.microkernel import tile
from minires.backends.cpu.moments import add_channel, merge_channel
from minires.backends.cpu.simd import load, store, turn
from minires.backends.cpu.threads import await_tasks, claimed
from minires.backends.cpu.units import (
    Slices,
    Units,
    add_groups,
    group_tasks,
    groups_of,
    in_steps,
    part_counts,
    slice_of,
    slices_of,
    tiling_of,
    unit_of,
    units_of,
)

PIXELS = 128  # of a unit: enough that reading the weights takes no time beside multiplying by them
DEPTH = 256  # of a piece of the sum over taps and channels: its weights for a block, 16 KiB, stay in the first-level cache
PANELS = 8  # blocks of output channels whose weights are laid out at a time, to stay in the second-level cache


@jit.part
def lay_out(BLOCK, weight, taps, first, end, narrow, C, O, c_step, o_step, o, panel, at):
    """The weights of slabs first .. end for a block of output channels, a row of BLOCK for each tap and channel."""
    count = min(BLOCK, O - o)
    for s in range(first, end):
        number, tap, step, c0 = taps[s]
        rows = min(narrow, C - c0)
        for j in range(number):
            source = (tap + j * step) * C * O + c0 * c_step + o * o_step
            if rows < narrow or count < BLOCK:
                for i in range(narrow * BLOCK):
                    panel[at + i] = 0
            if o_step == 1 and count == BLOCK:
                for c in range(rows):
                    store(panel, at + c * BLOCK, load(BLOCK, weight, source + c * c_step))
            elif o_step == 1:
                for c in range(rows):
                    for i in range(count):
                        panel[at + c * BLOCK + i] = weight[source + c * c_step + i]
            elif count == BLOCK and rows == BLOCK:
                turn(BLOCK, panel, at, BLOCK, weight, source, o_step)
            else:
                for i in range(count):
                    for c in range(rows):
                        panel[at + c * BLOCK + i] = weight[source + i * o_step + c]
            at += narrow * BLOCK


@jit.part
def gather_unit(ROWS, BLOCKS, BLOCK, work, image, panel, out, out_block, tables, weight, narrow, C, O, c_step, o_step,
                images, rows, first, end):
    """The convolution of a unit in scratch, for the blocks first .. end of output channels, to scratch."""
    pixels, places, phases, slabs, taps = tables
    for p in range(phases.shape[0]):
        begin, a, spread, width, s_first, s_end, length = phases[p]
        count = images * -((a - rows) // spread) * width if rows > a else 0
        pieces = max(1, DEPTH // max(1, length))
        for s in range(s_first, max(s_end, s_first + 1), pieces):  # once where there are no taps: the sum is 0
            s_last = min(s + pieces, s_end)
            depth = (s_last - s) * length * BLOCK
            for o_first in range(first, end, PANELS):
                o_last = min(o_first + PANELS, end)
                for o in range(o_first, o_last):
                    lay_out(BLOCK, weight, taps, s, s_last, narrow, C, O, c_step, o_step, o * BLOCK, work,
                            panel + (o - o_first) * depth)
                for o in range(o_first, o_last, BLOCKS):
                    for t in range(begin, begin + count, ROWS):
                        tile(ROWS, BLOCKS, BLOCK, t, work, image, pixels, slabs, 1,
                             work, panel + (o - o_first) * depth - s * length * BLOCK, length * BLOCK, depth,
                             work, out + (o - first) * out_block, places, out_block, s, s_last, length, s > s_first)


@jit.part
def load_unit(BLOCK, RAGGED, source, n0, n1, row, rows, window, H, W, C, first, end, keeps, work, image, block_size, size):
    """Images n0 .. n1 into scratch, the blocks first .. end of channels, for output rows from `row` (of what is read) on."""
    for n in range(n0, n1):
        at, top, read = image + (n - n0) * size, row + window.first, rows_read(window, rows)
        if window.narrow < BLOCK:
            load_narrow(source.x, n, top, read, window.left, window.width, H, W, C, work, at)
        else:
            for c in range(first, end):
                load_input(BLOCK, RAGGED, source, n, top, read, window.left, window.width, H, W, C, c * BLOCK, keeps, work,
                           at + (c - first) * block_size)


class Plan(NamedTuple):
    """The numbers of a gather, or of a convolution's gradients, for the kernels."""

    H: int  # of what is read; of x
    W: int
    C: int
    OH: int  # of what is written; of dy
    OW: int
    O: int
    units: Units  # of what is written; of dy
    slices: Slices  # of the channels written; of dx
    window: Window  # of what is read; of x
    c_step: int  # elements from a weight to that of the next channel read, and written (in the gradient's, of dy and dx)
    o_step: int


class Rooms(NamedTuple):
    """Where parts of scratch begin, and elements of a block of channels in each."""

    out: int
    panel: int
    image_block: int
    out_block: int


@cache
def forward_kernel(tiling, block, ragged):
    """The kernel of a gather: units are convolved, moments are merged (one task a channel)."""
    rows_, blocks_ = tiling.rows, tiling.blocks

    @jit.kernel
    def gather(tasks, counter, thread, plan, rooms, weight, source, output, counts, merged, tables, works):
        work, units, window, slices, C, O, OW = (works[thread], plan.units, plan.window, plan.slices, plan.C, plan.O,
                                                 plan.OW)
        narrow, ins, outs, image = window.narrow, -(-C // block), -(-O // block), np.int64(0)
        size, out_size = rooms.image_block // units.images, rooms.out_block // units.images
        convolved = units.count * slices.count
        for task in claimed(tasks, counter, thread):
            if task >= convolved:
                await_tasks(counter, convolved)
                merge_channel(output.means, output.squares, counts, task - convolved, merged)
                continue
            unit, part = task // slices.count, task % slices.count
            first, end = slice_of(slices, part)
            n0, n1, row, rows = unit_of(units, unit)
            load_unit(block, ragged, source, n0, n1, (row * window.step if window.step > 0 else row // -window.step), rows,
                      window, plan.H, plan.W, C, np.int64(0), ins, part == 0, work, image, rooms.image_block, size)
            gather_unit(rows_, blocks_, block, work, image, rooms.panel, rooms.out, rooms.out_block, tables, weight, narrow,
                        C, O, plan.c_step, plan.o_step, n1 - n0, rows, first, end)
            for o in range(first, min(end, outs)):
                for n in range(n0, n1):
                    at = rooms.out + (o - first) * rooms.out_block + (n - n0) * out_size
                    finish(block, ragged, work, at, OW * block, rows, OW, output, (n * plan.OH + row) * OW * O, O, o * block,
                           n * units.bands + unit % units.bands)

    return gather


class Runs(NamedTuple):
    """The rows of the weight gradient, in runs that lie together in what is read of x, and the pixels to sum over."""

    starts: np.ndarray  # (runs, 2): offset in a block's scratch of x, first row of the gradient; for each block of channels
    length: int  # rows of a run, rounded up to tiles
    used: int  # rows of the parameter in a run
    x_slabs: np.ndarray  # a unit's rows of pixels in what is read of x,
    z_slabs: np.ndarray  # and of dy
    x_step: int  # elements from a pixel to the next in a row of x


class GradientRooms(NamedTuple):
    """The same for the gradients: x at 0, dz, dx, and weights laid out."""

    z: int
    dx: int
    panel: int
    x_block: int
    z_block: int
    dx_block: int


@cache
def gradient_kernel(tiling, block, ragged):
    """The kernel of dweight and dx: groups of units, slices of input channels; sums over the groups and over the units."""
    rows_, blocks_, channels = tiling.rows, tiling.blocks, tiling.channels

    @jit.kernel
    def gather_gradient(tasks, counter, thread, plan, z_window, dx_units, groups, runs, rooms, weight, gradient, source,
                        output, total, partial, direct, dweight, adds, tables, works):
        work, units, window, slices, C, O = works[thread], plan.units, plan.window, plan.slices, plan.C, plan.O
        ins, outs, x_image = -(-C // block), -(-O // block), np.int64(0)
        x_size, z_size, dx_size = (rooms.x_block // units.images, rooms.z_block // units.images,
                                   rooms.dx_block // units.images)
        per_block = runs.starts.shape[0] // ins
        run_rows, padded_O = runs.starts.shape[0] * runs.length, O if direct else -(-outs // blocks_) * blocks_ * block
        z_at = rooms.z + (z_window.left - z_window.first * z_window.width) * block
        computed, all_rows = groups * slices.count, dweight.size // O
        sums = computed + (0 if direct else group_tasks(all_rows))
        for task in claimed(tasks, counter, thread):
            if task >= computed:
                await_tasks(counter, computed)
                if task < sums:
                    add_groups(partial, groups, task - computed, runs.used, run_rows * runs.used // all_rows, padded_O,
                               dweight, all_rows, O, adds)
                else:
                    add_channel(output.sums, task - sums, total)
                continue
            group, part = task // slices.count, task % slices.count
            first, end = slice_of(slices, part)
            last = min(end, ins)
            begin = group * units.count // groups
            for unit in range(begin, (group + 1) * units.count // groups):
                n0, n1, row, rows = unit_of(units, unit)
                _, _, x_row, x_rows = unit_of(dx_units, unit)
                load_unit(block, ragged, source, n0, n1, row * window.step, rows, window, plan.H, plan.W, C, first, last,
                          part == 0, work, x_image, rooms.x_block, x_size)
                for n in range(n0, n1):
                    for o in range(outs):
                        load_gradient(block, ragged, gradient, n, row + z_window.first, rows_read(z_window, x_rows),
                                      z_window.left, z_window.width, plan.OH, plan.OW, O, o * block, work,
                                      rooms.z + o * rooms.z_block + (n - n0) * z_size)
                for o in range(0, outs, blocks_):
                    for run in range(first * per_block, last * per_block):
                        start, target = runs.starts[run]
                        for r in range(0, runs.length, channels):
                            tile(channels, blocks_, block, 0,
                                 work, x_image + start - first * rooms.x_block + r, 1, runs.x_slabs, runs.x_step,
                                 work, z_at + o * rooms.z_block, runs.z_slabs, rooms.z_block,
                                 partial, (group * run_rows + target + r) * padded_O + o * block, padded_O, block,
                                 0, (n1 - n0) * rows, plan.OW, unit > begin or (direct and adds))
                if output.dx.size:
                    gather_unit(rows_, blocks_, block, work, rooms.z, rooms.panel, rooms.dx, rooms.dx_block, tables, weight,
                                np.int64(block), O, C, plan.c_step, plan.o_step, n1 - n0, x_rows, first, end)
                    for c in range(first, last):
                        for n in range(n0, n1):
                            at = rooms.dx + (c - first) * rooms.dx_block + (n - n0) * dx_size
                            finish_gradient(block, ragged, work, at, plan.W * block, x_rows, plan.W, source, output,
                                            (n * plan.H + x_row) * plan.W * C, C, c * block,
                                            n * units.bands + unit % units.bands)

    return gather_gradient


@lru_cache(maxsize=256)
def forward_plan(geometry, dtype, N, C, O, narrow, whole, turned):
    """(kernel, (Plan, Rooms), pixels of the parts, tables, scratch) of the convolution from C to O channels, or of dx.

    narrow: fewer channels than a block may lie as in memory; whole: all of x is read. turned: C are the channels of dy, O
    those of dx.
    """
    tiling, block = tiling_of(dtype, O), block_of(dtype)
    (OH, OW), (H, W) = (geometry.size, geometry.out_size) if turned else (geometry.out_size, geometry.size)
    outs = blocks_of(O, dtype)
    units = units_of(N, OH, OW, PIXELS, -(-outs // tiling.blocks))
    if turned:
        units = in_steps(units, geometry.stride[0])
        gather = input_gradient_gather(geometry, C, block, tiling.rows, units)
    else:
        gather = forward_gather(geometry, C, block, narrow, whole, tiling.rows, units)
    slices = slices_of(units.count, outs, tiling.blocks)
    image_block, out_block = elements(gather.window, units), units.images * units.rows * OW * block
    _, *rooms, end = places_of(block, blocks_of(C, dtype) * image_block, slices.each * out_block,
                               _panels(gather.phases, slices, block))
    plan = Plan(H, W, C, OH, OW, O, units, slices, gather.window, *((1, C) if turned else (O, 1)))
    kernel = forward_kernel(tiling, block, O % block > 0 or (C % block > 0 and gather.window.narrow == block))
    return (kernel, (plan, Rooms(*rooms, image_block, out_block)), part_counts(units, 1, OH, OW), gather[1:],
            scratch(end, dtype))


def _panels(phases, slices, block):
    """Elements of scratch for the weights of a piece of the longest of the phases' slabs."""
    return min(slices.each, PANELS) * max(DEPTH, int(phases[:, 6].max(initial=0))) * block


@lru_cache(maxsize=256)
def gradient_plan(geometry, dtype, N, C, O, narrow, need_dx):
    """(kernel, its first arguments, tasks but for sums, parts of the sums, size of partial gradients or None, tables,
    scratch)."""
    tiling, block = tiling_of(dtype, min(C, O) if need_dx else O), block_of(dtype)
    (H, W), (OH, OW), (KH, KW), stride, *_ = geometry
    ins, outs = blocks_of(C, dtype), blocks_of(O, dtype)
    wide_outs = -(-outs // tiling.blocks) * tiling.blocks
    units = units_of(N, OH, OW, PIXELS, -(-ins // tiling.blocks))
    if units.bands > 1 and need_dx and -(-H // stride[0]) != OH:  # rows of dx go with rows of dy
        units = Units(N, N, 1, 1, OH, OH)
    window = forward_gather(geometry, C, block, narrow, False, tiling.rows, units).window
    if need_dx:
        dx_units = units._replace(rows=H if units.bands == 1 else units.rows * stride[0], height=H)
        z_window, *tables = input_gradient_gather(geometry, O, block, tiling.rows, dx_units)
    else:
        dx_units, (z_window, *tables) = units, nothing_gathered(OW, block)
    x_block, z_block = elements(window, units), elements(z_window, dx_units)
    runs = _runs(geometry, C, window, units, x_block, z_block, z_window.width * block, block, tiling.channels)
    rows, padded_rows = KH * KW * C, len(runs.starts) * runs.length
    groups = groups_of(units.count, padded_rows * wide_outs * block * dtype.itemsize)
    direct = groups == 1 and (rows, O) == (padded_rows, wide_outs * block)
    slices = slices_of(groups, ins, tiling.blocks)
    dx_block = dx_units.images * dx_units.rows * W * block * need_dx
    _, *rooms, end = places_of(block, slices.each * x_block, wide_outs * z_block, slices.each * dx_block,
                               _panels(tables[2], slices, block))
    plan = Plan(H, W, C, OH, OW, O, units, slices, window, 1, O)
    kernel = gradient_kernel(tiling, block, O % block > 0 or (C % block > 0 and (need_dx or window.narrow == block)))
    return (kernel, (plan, z_window, dx_units, groups, runs, GradientRooms(*rooms, x_block, z_block, dx_block)),
            groups * slices.count + (0 if direct else group_tasks(rows)), N * units.bands,
            None if direct else (groups * padded_rows * wide_outs * block,), tuple(tables), scratch(end, dtype))


def _runs(geometry, C, window, units, x_block, z_block, z_pitch, block, channels):
    """The Runs of a convolution."""
    (KH, KW), stride, dilation = geometry.kernel, geometry.stride, geometry.dilation
    narrow, pitch, ins = window.narrow, window.width * window.narrow, -(-C // block)
    together = KW if narrow < block and dilation[1] == 1 else 1  # of few channels the taps of a row are neighbours
    used = together * C
    length = -(-used // channels) * channels if narrow < block else block
    padded = length if narrow < block else ins * block
    starts = [(c * x_block + i * dilation[0] * pitch + j * dilation[1] * narrow,
               (i * (KW // together) + j) * padded + c * block)
              for c in range(ins) for i in range(KH) for j in range(KW // together)]
    x_slabs = [n * (x_block // units.images) + r * stride[0] * pitch for n in range(units.images) for r in range(units.rows)]
    z_slabs = [n * (z_block // units.images) + r * z_pitch for n in range(units.images) for r in range(units.rows)]
    return Runs(np.array(starts, np.int64), length, used, np.array(x_slabs, np.int64),
                np.array(z_slabs, np.int64), stride[1] * narrow)
