"""How the work of a convolution is shared out: units of the output, slices of its channels, groups of units.

A *unit* is a few images, or a band of rows of one: what is computed together, in a thread's scratch, and whose weights are
read once. A *slice* is some of the output's blocks of channels: where there are few units, several threads work on each.
Sums over pixels are kept a unit, or a group of units, each, and added in order at the end. Units and groups depend on the
shape and on the host's cache alone, so the bits of a result do not depend on the number of threads.
"""
from functools import cache
from typing import NamedTuple

import numpy as np

from minires.backends.cpu import jit
from minires.backends.cpu.environment import MOST_THREADS
from minires.backends.cpu.host import BLOCK_BYTES, VECTOR_BYTES, VECTOR_REGISTERS, block_of
from minires.backends.cpu.images import blocks_of

GROUPS = 16  # partial sums of a weight's gradient at most, ...
PARTIAL_BYTES = 1 << 24  # ... and bytes of them
LEAST_TASKS = 8  # what units and slices should come to
ROWS = 16  # of a weight's gradient that are one task: to claim one takes as long as adding up one


class Tiling(NamedTuple):
    """The micro-kernel's compile-time sizes."""

    rows: int  # pixels, of a convolution
    blocks: int  # of output channels
    channels: int  # rows of a weight gradient's tile: input channels, a divisor of a block


@cache
def tiling_of(dtype, out_channels):
    """The tile that fills the vector registers: one holds an element of A, some a row of B, the others sums."""
    vectors = BLOCK_BYTES // VECTOR_BYTES
    if vectors == 1 and blocks_of(out_channels, dtype) > 1:
        return Tiling(8, 2, min(8, block_of(dtype)))
    rows = min(12, (VECTOR_REGISTERS - vectors - 1) // vectors)
    return Tiling(rows, 1, min(8, block_of(dtype), 1 << (rows.bit_length() - 1)))


class Units(NamedTuple):
    """N images in units of `images` of them, or each in `bands` of `rows` of its `height` rows."""

    count: int
    N: int
    images: int
    bands: int
    rows: int
    height: int


def units_of(N, height, width, most, blocks):
    """Units of about `most` pixels (or tiles) of N images of height x width, where an output has `blocks` of channels."""
    least = -(-LEAST_TASKS // blocks)  # units that are wanted
    if height * width > most or least > N:
        rows = max(1, min(most // width, -(-height * N // least) if least > N else height))
        bands = -(-height // rows)
        return Units(N * bands, N, 1, bands, -(-height // bands), height)  # bands alike
    images = max(1, min(most // (height * width), N // least))
    return Units(-(-N // images), N, images, 1, height, height)


def in_steps(units, step):
    """The same with bands of a multiple of `step` rows."""
    if units.bands == 1:
        return units
    rows = -(-units.rows // step) * step
    bands = -(-units.height // rows)
    return units._replace(count=units.N * bands, bands=bands, rows=rows)


class Slices(NamedTuple):
    """`total` blocks of channels, a whole number of tiles, in slices of `each`."""

    count: int
    each: int
    total: int


def slices_of(units, blocks, tile_blocks):
    """`blocks` of channels in as many slices as give the threads enough to do, for so many units (or groups of them)."""
    tiles = -(-blocks // tile_blocks)
    each = -(-tiles // min(tiles, -(-max(LEAST_TASKS, 2 * MOST_THREADS) // units))) if units < LEAST_TASKS else tiles
    return Slices(-(-tiles // each), each * tile_blocks, tiles * tile_blocks)


@jit.part
def slice_of(slices, number):
    """(first block, behind its last) of a slice."""
    return number * slices.each, min((number + 1) * slices.each, slices.total)


def groups_of(units, gradient_bytes):
    """Groups of units, each with a partial weight gradient of that many bytes."""
    return max(1, min(units, GROUPS, PARTIAL_BYTES // gradient_bytes))


@jit.part
def unit_of(units, unit):
    """(first image, behind its last, first row, number of rows) of a unit."""
    n, row = unit // units.bands * units.images, unit % units.bands * units.rows
    return n, min(n + units.images, units.N), row, min(units.rows, units.height - row)


def part_counts(units, tall, H, W):
    """Pixels of each part whose sums are kept, each image's bands: of H x W pixels, in rows of `tall` pixels."""
    rows = [min(units.rows * tall, H - band * units.rows * tall) for band in range(units.bands)]
    return np.array(rows * units.N, np.int64) * W


@jit.part
def group_tasks(rows):
    """The number of tasks that `add_groups` shares rows out in."""
    return -(-rows // ROWS)


@jit.part
def add_groups(partial, groups, task, run, padded_run, padded, dweight, rows, O, adds):
    """dweight[row] = or, with `adds`, += the sum over the groups, in order, for the ROWS rows of a task.

    partial: (groups, runs, padded run, padded O), dweight: (rows = runs * run, O), both flat.
    """
    size = rows // run * padded_run * padded
    for row in range(task * ROWS, min((task + 1) * ROWS, rows)):
        source = (row // run * padded_run + row % run) * padded
        for g in range(1, groups):
            for o in range(O):
                partial[source + o] += partial[g * size + source + o]
        for o in range(O):
            dweight[row * O + o] = partial[source + o] + (dweight[row * O + o] if adds else 0)
