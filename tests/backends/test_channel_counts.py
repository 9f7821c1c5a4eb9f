"""Convolutions of any number of channels, forward and every gradient, on every back end."""
import numpy as np
import pytest
from conftest import each_backend, operators, relative_error
from hypothesis import given
from hypothesis import strategies as st
from random_networks import Pick, examples

from minires.backends import reference
from minires.backends.cpu.host import block_of
from minires.backends.cpu.units import tiling_of
from minires.backends.reference import output_size
from minires.layers import Conv2d

TOLERANCE = {np.float64: 1e-12, np.float32: 4e-5}
PLAIN = (3, 1, 1)  # kernel size, stride, padding


def compare(module, dtype, shape, O, kernel, stride, padding, seed=0):
    """The operators of a convolution, of rounded arguments in both, against the reference in float64."""
    rng, (N, *image, C) = np.random.default_rng(seed), shape
    size = [output_size(length, kernel, stride, padding, 1) for length in image]
    x, weight, dy, z = (rng.standard_normal(each).astype(dtype)
                        for each in (shape, (kernel, kernel, C, O), (N, *size, O), (N, *size, O)))
    prologue, normalisation = (tuple(rng.standard_normal(each).astype(dtype)) for each in ((3, C), (4, O)))
    stride, padding = (stride,) * 2, (padding,) * 2
    for name, arguments in {
            "conv2d_forward": (x, weight, None, stride, padding, (1, 1)),
            "conv2d_input_gradient": (dy, weight, x.shape, stride, padding, (1, 1)),
            "conv2d_weight_gradient": (dy, x, (kernel,) * 2, stride, padding, (1, 1)),
            "conv2d_moments": (x, prologue, weight, stride, padding),
            "conv2d_unit_gradient": (dy, z, normalisation, x, prologue, weight, stride, padding, None, True)}.items():
        found, expected = getattr(operators(module), name)(*arguments), getattr(reference, name)(*map(widened, arguments))
        for ours, theirs in zip(*(each if isinstance(each, tuple) else (each,) for each in (found, expected)), strict=True):
            assert ours.dtype == dtype
            error = relative_error(ours.astype(np.float64), theirs)
            assert error < TOLERANCE[dtype], f"{name}, {shape} to {O} channels, {stride}, {padding}: {error:.1e}"


def widened(value):
    if isinstance(value, tuple):
        return tuple(map(widened, value))
    return value.astype(np.float64) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("module", each_backend("cpu", "cuda"))
@examples(20)
@given(data=st.data())
def test_any_channels(module, dtype, data):
    pick = Pick(data.draw)
    C, O = (sum(pick(0, bit) for bit in (1, 2, 4, 8, 16, 32)) + 1 for _ in range(2))
    N, H, W = pick(2, 1), pick(4, 5, 7, 8), pick(5, 4, 6, 9)
    compare(module, dtype, (N, H, W, C), O, *pick(PLAIN, PLAIN, (3, 2, 1), (1, 1, 0), (1, 2, 0), (3, 1, 2)))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("module", each_backend("cpu", "cuda"))
def test_channels_that_meet_the_kernels_sizes(module, dtype):
    """Blocks that are full, and one channel more or less; as many as a tile has rows."""
    block, rows = block_of(np.dtype(dtype)), tiling_of(np.dtype(dtype), 1).rows
    for C, O in {(block, 2 * block), (block + 1, block - 1), (rows, block), (3 * block, rows)}:
        compare(module, dtype, (2, 8, 4, C), O, *PLAIN)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_layer_from_more_channels_to_fewer_and_back(dtype, backend, rng):
    for C, O in [(8, 4), (4, 8), (16, 8), (8, 2), (16, 4)]:
        layer = Conv2d(C, O, 3, padding=1).astype(dtype)
        x = rng.standard_normal((2, 8, 8, C)).astype(dtype)
        assert layer.backward(layer.forward(x)).shape == x.shape
