"""Each operator of each back end against the reference: value, shape and dtype, on odd sizes, types and memory layouts."""
import importlib
import inspect

import numpy as np
import pytest
from cases import AVG_POOLS, CONVOLUTIONS, IMAGES, LINEARS, MAX_POOLS
from conftest import BACKENDS, each_backend, operators, relative_error

from minires.backends import reference
from minires.backends.trace import RULES
from minires.layers.arguments import pair

EVERY_OPERATOR = {name: getattr(reference, name) for name in sorted(reference.OPERATORS)}
# What draws random numbers, and what each back end makes for itself alone: tested below and in test_cpu_kernels.
ALONE = {"dropout_keep", "prepare", "digest"}
OPERATORS = {name: function for name, function in EVERY_OPERATOR.items() if name not in ALONE}
# The arguments, arrays or tuples of them, that are changed, and nothing is returned.
IN_PLACE = {"sgd_update": (0, 2), "adamw_update": (0, 2, 3), "add_into": (0,), "zero": (0,), "update_running": (0, 1)}
TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}
FUSED = {"conv2d_moments", "add_relu_conv2d_moments", "conv2d_bias_relu", "normalise_add_relu", "add_relu_gradient",
         "conv2d_unit_gradient", "batchnorm_coefficients"}
OTHERS = [name for name in BACKENDS if name != "reference"]


def _conv(draw):
    for N, H, W, C, O, *geometry in CONVOLUTIONS:
        kernel, stride, padding, dilation = (pair("", value, 0) for value in geometry)
        size = reference.output_sizes((H, W), kernel, stride, padding, dilation)
        yield (draw(N, H, W, C), draw(*kernel, C, O), draw(O), draw(N, *size, O)), (kernel, stride, padding, dilation)


def _pool(cases, draw):
    for N, H, W, C, kernel, stride, padding, dilation in cases:
        kernel, padding, dilation = pair("", kernel, 1), pair("", padding, 0), pair("", dilation, 1)
        stride = kernel if stride is None else pair("", stride, 1)
        size = reference.output_sizes((H, W), kernel, stride, padding, dilation)
        yield draw(N, H, W, C), draw(N, *size, C), (kernel, stride, padding, dilation)


def _fused(name, draw):
    """Units as blocks have them: with and without a prologue, a residual and a shortcut's gradient."""
    for (x, weight, _, dy), (_, stride, padding, dilation) in _conv(draw):
        N, C, O = len(x), x.shape[3], dy.shape[3]
        if dilation != (1, 1) or (N * dy.size // O < 9):
            continue
        prologue, z = (draw(C) * 0.1, draw(C), draw(C)), draw(*dy.shape)
        if name == "conv2d_moments":
            yield from [(x, before, weight, stride, padding) for before in (None, prologue)]
        elif name == "add_relu_conv2d_moments":
            yield from [(x, prologue, residual, weight, stride, padding) for residual in (None, draw(*x.shape))]
        elif name == "conv2d_bias_relu":
            yield from [(x, weight, draw(O), residual, relu, stride, padding)
                        for residual, relu in [(None, True), (z, True), (None, False), (z, False)]]
        elif name == "conv2d_unit_gradient":
            shortcut, normalisation = draw(*x.shape), (draw(O), draw(O), draw(O) * 0.1, draw(O) * 0.1)
            block = draw(*x.shape), draw(x.shape[3])
            for before, added, need_dx, front in [(prologue, None, True, None), (None, None, True, None),
                                                  (None, shortcut, True, None), (None, None, False, None),
                                                  (None, None, True, block), (None, shortcut, True, block)]:
                yield dy, z, normalisation, x, before, weight, stride, padding, added, need_dx, front
            for added, need_dx in [(None, True), (shortcut, True), (None, False)]:  # without a normalisation
                yield dy, None, None, x, None, weight, stride, padding, added, need_dx, None
            for added, need_dx in [(None, True), (shortcut, True), (None, False)]:  # x as a block hands it on, unformed
                yield dy, z, normalisation, x, prologue, weight, stride, padding, added, need_dx, None, None, block[0]
    for shape in IMAGES:
        C, y = shape[3], draw(*shape)
        if name == "normalise_add_relu":
            yield from [(y, (draw(C), draw(C), draw(C)), residual) for residual in (None, draw(*shape))]
        elif name == "add_relu_gradient":
            dy, z, prologue = draw(*shape), draw(*shape), (draw(C), draw(C), draw(C))
            yield dy, reference.relu_forward(y), z, draw(C)
            yield from [(dy, None, z, prologue[0], prologue, residual) for residual in (None, draw(*shape))]
        elif name == "batchnorm_coefficients":
            yield from [(draw(C), draw(C), np.abs(draw(C)), draw(C), 1e-5, count) for count in (None, 17)]


def _arguments(name, rng, dtype):
    """Yield tuples of arguments for the operator called `name`."""
    def draw(*shape):
        return (rng.standard_normal(shape) + 0.1).astype(dtype)

    if name in FUSED:
        yield from _fused(name, draw)
    elif name == "folded":
        for (_, weight, bias, _), _ in _conv(draw):
            scale, shift, mean = (draw(weight.shape[3]) for _ in range(3))
            yield from [(weight, given, scale, shift, mean, mean**2, 1e-5) for given in (None, bias)]
    elif name.startswith("conv2d"):
        for (x, weight, bias, dy), (kernel, *geometry) in _conv(draw):
            yield from {"conv2d_forward": [(x, weight, bias, *geometry), (x, weight, None, *geometry)],
                        "conv2d_input_gradient": [(dy, weight, x.shape, *geometry)],
                        "conv2d_weight_gradient": [(dy, x, kernel, *geometry)]}[name]
    elif name.startswith("maxpool"):
        for x, dy, geometry in _pool(MAX_POOLS, draw):
            if name == "maxpool2d_forward":
                yield from [(x, *geometry), (np.round(x), *geometry)]  # rounded: many ties
            else:
                yield dy, reference.maxpool2d_forward(np.round(x), *geometry)[1], x.shape, *geometry
    elif name.startswith("avgpool"):
        for x, dy, (*geometry, _) in _pool(AVG_POOLS, draw):
            yield (x, *geometry) if name == "avgpool2d_forward" else (dy, x.shape, *geometry)
    elif name.startswith("pad_shortcut"):
        for shape in IMAGES:
            for more, stride in [(0, (2, 2)), (5, (2, 2)), (16, (1, 1)), (4, (2, 1)), (3, (3, 2))]:
                x = draw(*shape)
                y = reference.pad_shortcut_forward(x, shape[3] + more, stride)
                yield (x, y.shape[3], stride) if name == "pad_shortcut_forward" else (draw(*y.shape), x.shape, stride)
    elif name.startswith("linear"):
        for N, C, K in LINEARS:
            x, weight = draw(N, C), draw(C, K)
            yield from [(x, weight, draw(K)), (x, weight, None)] if name == "linear_forward" else [(draw(N, K), x, weight)]
    elif name.startswith("softmax"):
        for N, _, K in LINEARS:
            for smoothing in (0.0, 0.1, 1.0):
                logits, target = draw(N, K), rng.integers(0, K, N)
                if name.endswith("forward"):
                    yield from [(logits, target, smoothing), (logits * 10_000, target.astype(np.int32), smoothing),
                                (logits, target.astype(np.uint8), smoothing)]
                else:
                    softmax = reference.softmax_cross_entropy_forward(logits, target, smoothing)[1]
                    yield from [(softmax, target, smoothing), (softmax, target.astype(np.int32), smoothing)]
    elif name.endswith("_update"):
        for shapes in [[(1,)], [(17,)], [(3, 3, 16, 33)], [(64, 10), (10,), (3, 1, 5, 7)], [(5,)] * 40]:
            parameters, grads, firsts, spreads = (tuple(draw(*shape) for shape in shapes) for _ in range(4))
            decays = tuple(0.01 * (index % 3) for index in range(len(shapes)))
            if name == "sgd_update":
                for momentum, nesterov in [(0.0, False), (0.9, False), (0.9, True)]:
                    yield parameters, grads, firsts, 0.1, momentum, decays, nesterov
            else:
                seconds = tuple(map(np.abs, spreads))
                yield from [(parameters, grads, firsts, seconds, step, 1e-2, (0.9, 0.99), 1e-8, decays) for step in (1, 7)]
    else:
        for shape in [*IMAGES, (2, 5), (7, 3, 4)]:
            x, dy, weight, bias = draw(*shape), draw(*shape), draw(shape[-1]), draw(shape[-1])
            per_pixel = reference.layernorm_forward(x, weight, bias, 1e-5)
            channel = reference.batchnorm_forward(x, weight, bias, 1e-5)
            keep = rng.random(shape) > 0.3
            images = len(shape) == 4 and bool(dtype == np.float64 or np.prod(shape[:3]) > 2)  # of two, dx cancels to noise
            yield from {
                "channel_sum": [(dy,)],
                "batch_moments": [(x,), (x + 100,)] * images,
                "gradient_sums": [(dy, x, bias)],
                "normalise": [(x, (bias, weight, bias))],
                "normalise_gradient": [(dy, x, (bias, weight, bias, weight))],
                "batchnorm_forward": [(x, weight, bias, 1e-5), (x + 100, weight, bias, 0.1)] * images,
                "batchnorm_apply": [(x, *channel[1:], weight, bias, 1e-5)] * images,
                "batchnorm_backward": [(dy, x, *channel[1:], weight, 1e-5, mode) for mode in (True, False)] * images,
                "layernorm_forward": [(x, weight, bias, 1e-5)],
                "layernorm_backward": [(dy, x, *per_pixel[1:], weight, 1e-5)],
                "relu_forward": [(x,), (np.round(x),)],
                "relu_backward": [(dy, reference.relu_forward(np.round(x)))],
                "add": [(x, dy)],
                "add_into": [(x, dy)],
                "zero": [((x, weight),)],
                "normalisation_scale": [(weight, bias**2, 1e-5)],
                "update_running": [(weight, bias**2, bias, weight**2, momentum, 17) for momentum in (0.1, 1.0)],
                "dropout_forward": [(x, keep, 0.3), (x, keep, 0.0)],
                "dropout_backward": [(dy, keep, 0.3)],
                "global_avgpool_forward": [(x,)] * images,
                "global_avgpool_backward": [(dy[:, 0, 0], shape)] if len(shape) == 4 else [],
                "mse_forward": [(x, dy)],
                "mse_backward": [(x, dy)],
            }[name]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name, places", [("conv2d_unit_gradient", (1,)), ("batchnorm_coefficients", (3, 4))])
def test_gradients_are_added_where_they_belong(name, places, dtype, backend, rng):
    """With `add_to` an operator gives the same, but adds a parameter's gradient to an array, of any layout."""
    function = getattr(operators(backend), name)
    for arguments in _arguments(name, rng, dtype):
        plain = function(*arguments)
        for order in "CF":
            before = [np.asarray(rng.standard_normal(plain[place].shape), dtype, order=order) for place in places]
            given = [array.copy(order="K") for array in before]
            found = function(*arguments[:11], given[0] if len(given) == 1 else tuple(given), *arguments[12:])
            for index, place in enumerate(places):
                assert relative_error(given[index], before[index] + plain[place]) < TOLERANCE[dtype]
                assert found[place] is None
            for place in set(range(len(plain))) - set(places):
                assert plain[place] is found[place] is None or np.array_equal(found[place], plain[place])


def _change(change, values):
    """`values` with `change` of every array in it, those inside tuples too."""
    if isinstance(values, tuple):
        return tuple(_change(change, value) for value in values)
    return change(values) if isinstance(values, np.ndarray) else values


def _arrays(values):
    """Every array in `values`, those inside tuples too."""
    found = []
    _change(found.append, tuple(values))
    return found


def _copies(arguments):
    return _change(np.copy, arguments)


def _results(name, function, arguments):
    """What an operator gives: its results, or for one that works in place the arrays it changed."""
    found = function(*arguments)
    if name in IN_PLACE:
        assert found is None
        return _arrays([arguments[place] for place in IN_PLACE[name]])
    return list(found) if isinstance(found, tuple) else [found]


def _same(name, found, expected, dtype, what):
    assert len(found) == len(expected)
    for place, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if theirs is None or ours is None:
            assert theirs is ours, f"{name}, result {place}, {what}: {ours} for {theirs}"
            continue
        if np.ndim(theirs) == 0:
            ours, theirs = np.float64(ours), np.float64(theirs)
        error = relative_error(ours, theirs)
        assert error <= TOLERANCE[dtype], f"{name}, result {place}, {what}: relative error {error:.1e}"


def _describe(arguments):
    return ", ".join(str(value.shape) if isinstance(value, np.ndarray) else f"({_describe(value)})"
                     if isinstance(value, tuple) else str(value) for value in arguments)


LAYOUTS = {
    "transposed": lambda a: np.asfortranarray(a),
    "sliced": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: a[::-1].copy()[::-1],
    "part of a larger array": lambda a: np.pad(a, [(1, 2)] * a.ndim)[tuple(slice(1, size + 1) for size in a.shape)],
}


@pytest.mark.parametrize("module", each_backend(*OTHERS))
def test_every_backend_has_the_reference_signatures(module):
    other = importlib.import_module(f"minires.backends.{module}")
    assert EVERY_OPERATOR.keys() >= RULES.keys()
    for name, function in EVERY_OPERATOR.items():
        assert str(inspect.signature(getattr(other, name))) == str(inspect.signature(function)), name


def test_what_dropout_keeps_is_drawn_by_the_generator(backend):
    x, p = np.zeros((50, 40), np.float32), 0.3
    keep = operators(backend).dropout_keep(x, np.random.default_rng(1), p)
    assert np.array_equal(keep, np.random.default_rng(1).random(x.shape, np.float32) >= p)


@pytest.mark.parametrize("module", ["reference", "cpu"])
def test_a_digest_tells_every_change(module, rng):
    for dtype in (np.float32, np.float64):
        array = rng.standard_normal((3, 3, 16, 32)).astype(dtype)
        digests = {operators(module).digest(array)}
        for change in (lambda a: a[..., ::-1], lambda a: a.transpose(1, 0, 2, 3), lambda a: np.roll(a, 1, 2),
                       lambda a: np.nextafter(a, 9), lambda a: np.where(np.arange(32) == 31, a, -a)):
            digests.add(operators(module).digest(np.ascontiguousarray(change(array)).astype(dtype)))
        assert len(digests) == 6 and operators(module).digest(array.copy()) in digests


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("module", each_backend(*OTHERS))
def test_matches_the_reference(module, name, dtype, rng):
    function, cases = getattr(operators(module), name), 0
    for arguments in _arguments(name, rng, dtype):
        wide = _change(lambda array: array.astype(np.float64 if array.dtype == dtype else array.dtype), arguments)
        expected = _change(lambda array: array.astype(dtype if array.dtype == np.float64 else array.dtype),
                           tuple(_results(name, OPERATORS[name], _copies(wide))))
        _same(name, _results(name, function, _copies(arguments)), expected, dtype, _describe(arguments))
        cases += 1
    assert cases > 3


@pytest.mark.parametrize("name", OPERATORS)
def test_keeps_its_dtype_and_its_hands_off_the_inputs(name, backend, rng):
    function = getattr(operators(backend), name)
    changed = IN_PLACE.get(name, ())
    for dtype in (np.float32, np.float64):
        for arguments in _arguments(name, rng, dtype):
            before = _copies(arguments)
            results = _results(name, function, arguments)
            for place, (now, then) in enumerate(zip(arguments, before, strict=True)):
                same = all(map(np.array_equal, _arrays([now]), _arrays([then])))
                assert place in changed or same, f"argument {place} was changed: {_describe(before)}"
            for result in _arrays(results):
                assert result.dtype in (dtype, np.int32)
                assert result.flags.writeable and result.flags.c_contiguous
                assert name in IN_PLACE or not any(np.shares_memory(result, value) for value in _arrays(arguments))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_any_memory_layout(name, layout, backend, rng):
    function = getattr(operators(backend), name)
    for arguments in list(_arguments(name, rng, np.float64))[::3]:
        expected = _results(name, OPERATORS[name], _copies(arguments))
        strided = _change(LAYOUTS[layout], arguments)
        _same(name, _results(name, function, strided), expected, np.float64, f"{layout}, {_describe(arguments)}")


@pytest.mark.parametrize("name", sorted(set(OPERATORS) - set(IN_PLACE)))
def test_read_only_inputs(name, backend, rng):
    function = getattr(operators(backend), name)
    for arguments in list(_arguments(name, rng, np.float64))[:3]:
        expected = _results(name, OPERATORS[name], _copies(arguments))
        for value in _arrays(arguments):
            value.setflags(write=False)
        _same(name, _results(name, function, arguments), expected, np.float64, _describe(arguments))


@pytest.mark.parametrize("name", sorted(set(OPERATORS) - set(IN_PLACE)))
def test_results_stay_what_they_were(name, backend, rng):
    """A back end may use memory again, but not while somebody holds a result or a part of one."""
    function = getattr(operators(backend), name)
    cases = list(_arguments(name, rng, np.float32))
    largest = max(cases, key=lambda arguments: sum(value.nbytes for value in _arrays(arguments)))
    results = _arrays(_results(name, function, _copies(largest)))
    parts, whole, first_values = [result[-1:] for result in results], results[:1], [result.copy() for result in results]
    del results
    for _ in range(4):
        function(*_change(lambda array: array[::-1].copy() if array.dtype == np.float32 else array, largest))
    assert all(np.array_equal(now, then) for now, then in zip(whole, first_values, strict=False))
    assert all(np.array_equal(now, then[-1:]) for now, then in zip(parts, first_values, strict=True))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_max_pool_of_infinities_and_nan(backend, dtype):
    """Padding never wins, not even against -inf; the first of equals wins; a NaN wins over all."""
    ops = operators(backend)
    geometry = ((3, 3), (2, 2), (1, 1), (1, 1))
    x = np.full((1, 4, 4, 2), -np.inf, dtype)
    x[0, 3, 3, 1] = np.nan
    y, argmax = ops.maxpool2d_forward(x, *geometry)
    assert np.array_equal(y[0, :, :, 0], np.full((2, 2), -np.inf))
    assert np.array_equal(np.isnan(y[0, :, :, 1]), [[False, False], [False, True]])
    assert argmax[0, :, :, 0].tolist() == [[4, 3], [1, 0]]  # the window's first pixel inside the image
    assert argmax[0, 1, 1, 1] == 8
    dx = ops.maxpool2d_backward(np.ones_like(y), argmax, x.shape, *geometry)
    assert dx.sum() == y.size  # no gradient was lost on the border
    zeros = np.zeros((1, 4, 4, 1), dtype)
    assert ops.maxpool2d_forward(zeros, (2, 2), (2, 2), (0, 0), (1, 1))[1].max() == 0
    negative_zero = np.array([0.0, -0.0, -0.0, 0.0], dtype).reshape(1, 1, 4, 1)
    assert ops.maxpool2d_forward(negative_zero, (1, 2), (1, 2), (0, 0), (1, 1))[1].max() == 0


@pytest.mark.parametrize("C", [2, 3, 16])
@pytest.mark.parametrize("module", ["reference", "cpu"])
def test_max_pool_of_windows_wholly_in_the_padding(module, C, rng):
    """A window with gaps may meet no pixel, on either side of a small image: -inf and tap 0, and backward nothing."""
    ops, geometry = operators(module), ((2, 2), (1, 1), (1, 1), (3, 3))
    x = rng.standard_normal((2, 2, 4, C))
    y, argmax = ops.maxpool2d_forward(x, *geometry)
    assert y.shape[1:3] == (1, 3) and (y == -np.inf).all() and not argmax.any()
    assert not ops.maxpool2d_backward(np.ones_like(y), argmax, x.shape, *geometry).any()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_nan_is_not_swallowed(backend, dtype):
    """Somebody's training that has gone wrong must show, not continue on zeros."""
    ops = operators(backend)
    x = np.ones((2, 4, 4, 3), dtype)
    x[0, 1, 1, 1] = np.nan
    weight, ones = np.ones((3, 3, 3, 4), dtype), np.ones(3, dtype)
    assert np.isnan(ops.relu_forward(x)[0, 1, 1, 1])
    assert np.isnan(ops.conv2d_forward(x, weight, None, (1, 1), (1, 1), (1, 1))[0, :3, :3]).all()
    assert np.isnan(ops.batchnorm_forward(x, ones, ones, 1e-5)[0][..., 1]).all()
    assert np.isnan(ops.global_avgpool_forward(x)[0, 1])
    assert np.isnan(ops.linear_forward(x[:, 1, 1], np.ones((3, 2), dtype), None)[0]).all()
    assert np.isnan(ops.softmax_cross_entropy_forward(x[:, 1, 1], np.zeros(2, np.int64), 0.0)[0])
    assert np.isnan(ops.relu_backward(x, np.ones_like(x))[0, 1, 1, 1])


@pytest.mark.parametrize("offset", [1e3, 1e4])
def test_variance_far_from_zero(backend, offset, rng):
    """E[x^2] - E[x]^2 would lose every digit in float32."""
    ops = operators(backend)
    x = (offset + rng.standard_normal((8, 16, 16, 5))).astype(np.float32)
    expected = x.astype(np.float64).var((0, 1, 2))
    _, _, var = ops.batchnorm_forward(x, np.ones(5, np.float32), np.zeros(5, np.float32), 1e-5)
    np.testing.assert_allclose(var, expected, rtol=2e-3 if offset == 1e4 else 1e-4)


def test_im2col_and_col2im_are_adjoint(rng):
    """<im2col(v), u> = <v, col2im(u)> for any v and u, the identity on which the convolution's backward stands."""
    for N, H, W, C, _, *geometry in CONVOLUTIONS:
        kernel, *rest = (pair("", value, 0) for value in geometry)
        v = rng.standard_normal((N, H, W, C))
        patches = reference.im2col(v, kernel, *rest)
        u = rng.standard_normal(patches.shape)
        left, right = np.vdot(patches, u), np.vdot(v, reference.col2im(u, v.shape, *rest))
        assert abs(left - right) < 1e-12 * np.abs(patches * u).sum() + 1e-12
