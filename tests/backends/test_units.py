"""How the work of a convolution is shared out: everything once, and nothing where it would be overwritten too early."""
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minires.backends import cpu, reference
from minires.backends.cpu import convolution
from minires.backends.cpu.arena import aligned_zeros
from minires.backends.cpu.units import (
    GROUPS,
    LEAST_TASKS,
    PARTIAL_BYTES,
    groups_of,
    in_steps,
    slice_of,
    slices_of,
    unit_of,
    units_of,
)

sizes = st.integers(1, 40)


@given(N=st.integers(1, 70), height=sizes, width=sizes, most=st.integers(1, 300), blocks=st.integers(1, 32),
       step=st.integers(1, 3))
def test_units_hold_every_row_of_every_image_once(N, height, width, most, blocks, step):
    for units in (units_of(N, height, width, most, blocks), in_steps(units_of(N, height, width, most, blocks), step)):
        found = np.zeros((N, height), int)
        for unit in range(units.count):
            first, end, row, rows = unit_of(units, unit)
            assert 1 <= end - first <= units.images and 1 <= rows <= units.rows
            found[first:end, row:row + rows] += 1
        assert (found == 1).all()
        assert units.bands == 1 or units.images == 1


def test_few_images_are_shared_out_and_many_are_not():
    assert units_of(1, 8, 8, 64, 1).count >= LEAST_TASKS  # rows, where there are no channels to share out
    assert units_of(1, 1, 1, 64, 32).count == 1 and slices_of(1, 32, 1).count >= LEAST_TASKS
    assert units_of(128, 8, 8, 64, 1).count == 128 and slices_of(128, 32, 1).count == 1


@given(units=st.integers(1, 20), blocks=st.integers(1, 130), tile_blocks=st.integers(1, 2))
def test_slices_hold_every_block_once_in_whole_tiles(units, blocks, tile_blocks):
    slices = slices_of(units, blocks, tile_blocks)
    found = [block for number in range(slices.count) for block in range(*slice_of(slices, number))]
    assert found == list(range(slices.total)) and blocks <= slices.total < blocks + tile_blocks
    assert all(slice_of(slices, number)[0] % tile_blocks == 0 for number in range(slices.count))


@given(units=st.integers(1, 1000), size=st.integers(1, 1 << 28))
def test_partial_gradients_are_few_and_fit(units, size):
    groups = groups_of(units, size)
    assert 1 <= groups <= min(units, GROUPS) and (groups == 1 or groups * size <= PARTIAL_BYTES)


def placed(array, empty, shape, dtype):
    """`empty`, but for results of an array's shape that array."""
    return array if shape == array.shape else empty(shape, dtype)


@pytest.mark.usefixtures("every_thread")
@pytest.mark.parametrize("size", [4, 8, 16, 32, 40])
@pytest.mark.parametrize("N", [1, 2, 9, 40])
@pytest.mark.parametrize("channels, kernel", [(16, 3), (32, 1), (48, 3)])
def test_a_gradient_may_lie_where_the_back_end_says(N, size, channels, kernel, rng):
    """dx over g or x, of which other tasks read rows or channels: the same as beside them."""
    shape, weight, around = (N, size, size, channels), rng.standard_normal((kernel, kernel, channels, channels)), (1, 1)
    x, g = rng.standard_normal((2, *shape))
    padding = (kernel // 2,) * 2
    arguments = [g, None, None, x, None, weight, around, padding, None, True]
    expected = reference.conv2d_unit_gradient(*arguments)
    for place in convolution.in_place("conv2d_unit_gradient", arguments):
        if arguments[place] is None:
            continue
        lies = aligned_zeros(shape, x.dtype)  # as in a plan's slab
        lies[...] = arguments[place]
        overwritten = [*arguments[:place], lies, *arguments[place + 1:]]
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(convolution, "empty", partial(placed, lies, convolution.empty))
            dx, dweight, *_ = cpu.conv2d_unit_gradient(*overwritten)
        assert dx is lies
        for ours, theirs in ((dx, expected[0]), (dweight, expected[1])):
            assert np.abs(ours - theirs).max() < 1e-11 * np.abs(theirs).max()
