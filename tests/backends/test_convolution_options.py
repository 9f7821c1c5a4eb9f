"""The convolution operators with all their options at once, and one after another on geometries that share memory.

A list of cases leaves holes where options meet; here they are multiplied out. And a kernel that works in memory of its own
may find there what another geometry left: each case runs on several in turn, and on the first of them again.
"""
from itertools import product

import numpy as np
import pytest
from conftest import each_backend, operators, relative_error

from minires.backends import cpu, reference
from minires.backends.cpu import images
from minires.backends.reference import output_size

# Kernel size, stride and padding, as they follow one another: of 3x3 with stride 2 the gradients at paddings 1 and 2 have
# windows of the same size, one of them with a border that the other fills.
TURNS = [
    (3, 2, 1), (3, 2, 2), (3, 2, 1), (3, 1, 1), (3, 1, 2), (3, 1, 1), (3, 1, 0), (5, 2, 2), (5, 2, 1), (5, 2, 2), (1, 1, 0),
    (1, 2, 0), (1, 1, 1), (1, 1, 0)]
CHANNELS = [(16, 16), (5, 3), (66, 2)]  # whole vectors, on every processor; none; what is wide on a device
OPTIONS = [{"within": within, "residual": residual, "need_dx": need_dx, "front": front, "add": add}
           for within, residual, need_dx, front, add in product(("x", "prologue", "shortcut"), *[(False, True)] * 4)]


def turns(N, H, W, C, O, rng, geometries=TURNS):
    """For each of the geometries: x, weight, dy, (stride, padding)."""
    for kernel, stride, padding in geometries:
        size = [output_size(length, kernel, stride, padding, 1) for length in (H, W)]
        yield (rng.standard_normal((N, H, W, C)), rng.standard_normal((kernel, kernel, C, O)),
               rng.standard_normal((N, *size, O)), ((stride,) * 2, (padding,) * 2))


def assert_same(found, expected, what):
    for place, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if theirs is None:
            assert ours is None, f"result {place} of {what}"
        else:
            assert relative_error(ours, theirs) < 1e-12, f"result {place} of {what}"


def unit_gradient(module, x, weight, g, geometry, within, residual, need_dx, front, add):
    """conv2d_unit_gradient of a back end with these options, whose arrays are drawn anew, the same each time."""
    rng, (C, O) = np.random.default_rng(5), weight.shape[2:]
    z, normalisation = rng.standard_normal(g.shape), tuple(rng.standard_normal((4, O)))
    prologue, of_x = tuple(rng.standard_normal((3, C))), lambda: rng.standard_normal(x.shape)
    shortcut, residual_gradient, block = of_x(), of_x(), (of_x(), rng.standard_normal(C))
    gradient = rng.standard_normal(weight.shape) if add else None
    dx, dweight, *sums = operators(module).conv2d_unit_gradient(
        g, z, normalisation, x, None if within == "x" else prologue, weight, *geometry,
        residual_gradient if residual else None, need_dx, block if front else None, gradient,
        shortcut if within == "shortcut" else None)
    assert (dweight is None) == add
    return dx, gradient if add else dweight, *sums


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(map(str, options.values())))
@pytest.mark.parametrize("module", each_backend("cpu", "cuda"))
def test_every_combination_of_a_units_options(module, options, rng):
    for C, O in CHANNELS:
        for x, weight, g, geometry in turns(2, 8, 8, C, O, rng, TURNS[:4]):
            assert_same(unit_gradient(module, x, weight, g, geometry, **options),
                        unit_gradient("reference", x, weight, g, geometry, **options), f"{C} to {O}, {geometry}")


@pytest.mark.parametrize("size", [(8, 8), (9, 6)], ids=str)
@pytest.mark.parametrize("module", each_backend("cpu", "cuda"))
def test_one_geometry_after_another(module, size, rng):
    ops = operators(module)
    for C, O in CHANNELS:
        for x, weight, dy, (stride, padding) in turns(3, *size, C, O, rng):
            bias, geometry = rng.standard_normal(O), (stride, padding, (1, 1))
            prologue, residual = tuple(rng.standard_normal((3, C))), rng.standard_normal(x.shape)
            for name, arguments in [
                    ("conv2d_forward", (x, weight, bias, *geometry)),
                    ("conv2d_input_gradient", (dy, weight, x.shape, *geometry)),
                    ("conv2d_weight_gradient", (dy, x, weight.shape[:2], *geometry)),
                    ("conv2d_moments", (x, None, weight, stride, padding)),
                    ("conv2d_moments", (x, prologue, weight, stride, padding)),
                    ("add_relu_conv2d_moments", (x, prologue, residual, weight, stride, padding)),
                    ("conv2d_bias_relu", (x, weight, bias, dy, True, stride, padding))]:
                found, expected = getattr(ops, name)(*arguments), getattr(reference, name)(*arguments)
                assert_same(*(result if isinstance(result, tuple) else (result,) for result in (found, expected)),
                            f"{name}, {C} to {O}, {weight.shape}, {geometry}")
            found, expected = (unit_gradient(each, x, weight, dy, (stride, padding), **OPTIONS[-1])
                               for each in (module, "reference"))
            assert_same(found, expected, f"conv2d_unit_gradient, {C} to {O}, {weight.shape}, {geometry}")


def test_what_a_kernel_leaves_in_scratch_is_nan(rng):
    """So the suite, which poisons scratch memory (conftest.py), sees a kernel that reads what it has not written."""
    x, weight, dy, geometry = next(iter(turns(2, 8, 8, 16, 16, rng)))
    for size in (8, 8, 5):
        part = x[:, :size, :size]
        cpu.conv2d_forward(part, weight, None, *geometry, (1, 1))
        left = [memory for memory in images._made.values() if memory.dtype == x.dtype]
        assert left and all(np.isnan(memory).all() or not memory.any() for memory in left)

