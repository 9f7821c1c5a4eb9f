"""Convolutions and fused units on the device: both ways of computing them, slices, statistics, and what must not happen."""
import cupy
import numpy as np
import pytest
from cases import CONVOLUTIONS
from conftest import ON_DEVICE, relative_error

from minires.arguments import pair
from minires.backends import reference
from minires.backends.cuda import compiler, conv, fused

pytestmark = pytest.mark.gpu
TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}
WAYS = {"implicit": 1 << 30, "im2col": 0}  # NARROW that makes every convolution go one way


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Every convolution goes one of the two ways, whatever its channels."""
    monkeypatch.setattr(conv, "NARROW", WAYS[request.param])
    conv.geometry_of.cache_clear()
    yield request.param
    conv.geometry_of.cache_clear()


def on_device(values):
    if isinstance(values, tuple):
        return tuple(map(on_device, values))
    return cupy.asarray(values) if isinstance(values, np.ndarray) else values


def compare(name, module, arguments, dtype, what=""):
    """A device operator against the reference in float64."""
    wide = tuple(value.astype(np.float64) if isinstance(value, np.ndarray) else value for value in arguments)
    wide = tuple(tuple(part.astype(np.float64) if isinstance(part, np.ndarray) else part for part in value)
                 if isinstance(value, tuple) else value for value in wide)
    found, expected = getattr(module, name)(*on_device(arguments)), getattr(reference, name)(*wide)
    found, expected = (value if isinstance(value, tuple) else (value,) for value in (found, expected))
    for place, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if theirs is None or ours is None:
            assert theirs is ours
            continue
        error = relative_error(ours.get(), theirs.astype(dtype))
        assert error <= TOLERANCE[dtype], f"{name}, result {place}, {what}: relative error {error:.1e}"


def cases(rng, dtype):
    for N, H, W, C, O, *geometry in CONVOLUTIONS:
        kernel, stride, padding, dilation = (pair("", value, 0) for value in geometry)
        size = [reference.output_size(*a) for a in zip((H, W), kernel, stride, padding, dilation, strict=True)]
        x, weight, dy, bias = (rng.standard_normal(shape).astype(dtype)
                               for shape in ((N, H, W, C), (*kernel, C, O), (N, *size, O), (O,)))
        yield x, weight, dy, bias, (stride, padding, dilation)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_both_ways_are_the_convolution(way, dtype, rng):
    for x, weight, dy, bias, geometry in cases(rng, dtype):
        what = f"{way}, {x.shape}, {weight.shape}, {geometry}"
        compare("conv2d_forward", conv, (x, weight, bias, *geometry), dtype, what)
        compare("conv2d_input_gradient", conv, (dy, weight, x.shape, *geometry), dtype, what)
        compare("conv2d_weight_gradient", conv, (dy, x, weight.shape[:2], *geometry), dtype, what)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_both_ways_are_the_fused_unit(way, dtype, rng):
    for x, weight, dy, bias, (stride, padding, dilation) in cases(rng, dtype):
        C, O = weight.shape[2:]
        if dilation != (1, 1) or dy.size // O < 9:
            continue
        draw = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
        prologue, normalisation = (draw(C) * 0.1, draw(C), draw(C)), tuple(draw(O) for _ in range(4))
        z, shortcut, what = draw(*dy.shape), draw(*x.shape), f"{way}, {x.shape}, {weight.shape}, {stride}"
        prologue, normalisation = (tuple(a.astype(dtype) for a in each) for each in (prologue, normalisation))
        for before in (prologue, None):
            compare("conv2d_moments", fused, (x, before, weight, stride, padding), dtype, what)
        compare("conv2d_bias_relu", fused, (x, weight, bias, z, True, stride, padding), dtype, what)
        compare("add_relu_gradient", fused, (dy, np.maximum(z, 0), z, normalisation[0]), dtype, what)
        for before, added, need_dx in ((prologue, None, True), (None, shortcut, True), (None, None, True),
                                       (prologue, None, False)):
            compare("conv2d_unit_gradient", fused,
                    (dy, z, normalisation, x, before, weight, stride, padding, added, need_dx), dtype, what)


def test_im2col_in_slices_stays_within_its_workspace(monkeypatch, rng):
    """Five images' matrix is cut up to two at a time, and the results are those of one piece."""
    monkeypatch.setattr(conv, "NARROW", 0)
    conv.geometry_of.cache_clear()
    x, weight, dy = (rng.standard_normal(shape) for shape in ((5, 6, 7, 4), (3, 3, 4, 5), (5, 6, 7, 5)))
    image = 6 * 7 * 9 * 4 * 8  # bytes of the matrix of one image
    monkeypatch.setattr(conv, "WORKSPACE", 2 * image + 1)
    sizes, plain = [], cupy.empty
    monkeypatch.setattr(cupy, "empty", lambda shape, dtype: sizes.append(int(np.prod(shape)) * 8) or plain(shape, dtype))
    geometry = (1, 1), (1, 1), (1, 1)
    assert conv.geometry_of(x.shape, (3, 3), 5, *geometry).slices(x.dtype) == [(0, 2), (2, 4), (4, 5)]
    compare("conv2d_forward", conv, (x, weight, None, *geometry), np.float64)
    compare("conv2d_input_gradient", conv, (dy, weight, x.shape, *geometry), np.float64)
    compare("conv2d_weight_gradient", conv, (dy, x, (3, 3), *geometry), np.float64)
    assert sorted(sizes)[-3:] == [2 * image] * 3
    monkeypatch.setattr(conv, "WORKSPACE", 1)  # one image at least
    compare("conv2d_forward", conv, (x, weight, None, *geometry), np.float64)
    conv.geometry_of.cache_clear()


def test_a_weight_gradient_sums_its_splits(monkeypatch, rng):
    """More pixels than a split takes, the last of them not whole; and no more splits than the workspace has room for."""
    x, dy = rng.standard_normal((3, 20, 21, 3)), rng.standard_normal((3, 20, 21, 4))
    arguments, splits = (dy, x, (3, 3), (1, 1), (1, 1), (1, 1)), []

    def recorded(file, name, dtype, *integers, plain=conv.kernel):
        def launch(grid, block, args):
            splits.extend(grid[2:])
            plain(file, name, dtype, *integers)(grid, block, args)
        return launch

    monkeypatch.setattr(conv, "kernel", recorded)
    compare("conv2d_weight_gradient", conv, arguments, np.float64)
    monkeypatch.setattr(conv, "WORKSPACE", 2 * 27 * 4 * 8)
    compare("conv2d_weight_gradient", conv, arguments, np.float64)
    assert splits == [5, 2]


def test_a_stride_has_tiles_for_its_largest_class(rng):
    """10 x 10 of the 19 x 19 pixels of an image are in it: three images are more than a tile of 256, and 9 x 9 less."""
    dy, weight = rng.standard_normal((3, 10, 10, 4)), rng.standard_normal((3, 3, 5, 4))
    compare("conv2d_input_gradient", conv, (dy, weight, (3, 19, 19, 5), (2, 2), (1, 1), (1, 1)), np.float64)


def test_a_stride_of_more_phases_than_a_grid_has_layers(rng):
    """300 * 300 of them: a grid's third axis ends at 65,535."""
    x, weight, dy = (rng.standard_normal(shape) for shape in ((2, 4, 301, 3), (2, 2, 3, 4), (2, 1, 2, 4)))
    geometry = (300, 300), (1, 1), (1, 1)
    compare("conv2d_forward", conv, (x, weight, None, *geometry), np.float64)
    compare("conv2d_input_gradient", conv, (dy, weight, x.shape, *geometry), np.float64)
    compare("conv2d_weight_gradient", conv, (dy, x, (2, 2), *geometry), np.float64)


def test_moments_far_from_zero(way, rng):
    """A mean of 1,000 and a spread of 1: E[z^2] - E[z]^2 would be wrong in the first digit in float32."""
    x = (rng.standard_normal((4, 16, 16, 3)) + 1000).astype(np.float32)
    weight = np.eye(3, dtype=np.float32)[None, None]
    z, mean, var = fused.conv2d_moments(*on_device((x, None, weight)), (1, 1), (0, 0))
    wide = x.astype(np.float64).reshape(-1, 3)
    assert np.abs(mean.get() - wide.mean(0)).max() < 1e-3
    assert np.abs(var.get() / wide.var(0) - 1).max() < 1e-3


def test_the_same_bits_every_time(rng):
    """No sum depends on which block or thread was first (on the host each launch shuffles them)."""
    x, g = on_device(tuple(rng.standard_normal((2, 4, 16, 16, 16), np.float32)))
    weight = on_device(rng.standard_normal((3, 3, 16, 16), np.float32))
    prologue, normalisation = (on_device(tuple(rng.standard_normal((count, 16), np.float32))) for count in (3, 4))

    def results():
        forward = fused.conv2d_moments(x, prologue, weight, (1, 1), (1, 1))
        backward = fused.conv2d_unit_gradient(g, x, normalisation, x, prologue, weight, (1, 1), (1, 1), None, True)
        return [array.get() for array in (*forward, *backward)]

    first, second = results(), results()
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.skipif(ON_DEVICE, reason="the stand-in counts how often the host waits")
def test_nothing_waits_for_the_device(way, rng):
    x, g = on_device(tuple(rng.standard_normal((2, 2, 8, 8, 4))))
    weight = on_device(rng.standard_normal((3, 3, 4, 4)))
    vectors = on_device(tuple(rng.standard_normal((4, 4))))
    before = cupy.counters.synchronisations
    fused.conv2d_moments(x, vectors[:3], weight, (1, 1), (1, 1))
    fused.conv2d_unit_gradient(g, x, vectors, x, vectors[:3], weight, (1, 1), (1, 1), None, True)
    fused.add_relu_gradient(g, x, x, vectors[0])
    fused.batchnorm_coefficients(*vectors, 1e-5, 64)
    assert cupy.counters.synchronisations == before
    float(x.sum())
    assert cupy.counters.synchronisations == before + 1  # the count counts


@pytest.mark.skipif(ON_DEVICE, reason="NVRTC's own list is checked where NVRTC is the test's")
def test_every_launched_instance_is_compiled_for_every_architecture(monkeypatch, rng):
    """What test_cuda_compiles compiles is what the convolutions launch: no tile that only a device would see."""
    import nvrtc

    launched = set()

    def recorded(device, file, name, dtype, integers, plain=compiler._function):
        launched.add((file, f"{name}<{', '.join([compiler._C_NAMES[dtype], *map(str, integers)])}>"))
        return plain(device, file, name, dtype, integers)

    monkeypatch.setattr(compiler, "_function", recorded)
    for channels in (3, 16, 17, 32, 33, 64, 65, 130):
        for x, weight, dy in [on_device(tuple(rng.standard_normal(shape).astype(np.float32) for shape in
                                              ((1, 2, 2, channels), (1, 1, channels, channels), (1, 2, 2, channels))))]:
            geometry = (1, 1), (0, 0), (1, 1)
            conv.conv2d_forward(x, weight, None, *geometry)
            conv.conv2d_input_gradient(dy, weight, x.shape, *geometry)
            conv.conv2d_weight_gradient(dy, x, (1, 1), *geometry)
    tiled = {name for _, name in launched if "," in name}
    assert len(tiled) == 9
    assert all(name in nvrtc.expressions_in(file) for file, name in launched)
