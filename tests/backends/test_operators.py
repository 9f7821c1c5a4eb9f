"""Each operator of each back end against the reference: value, shape and dtype, on odd sizes, types and memory layouts."""
import importlib
import inspect

import numpy as np
import pytest
from cases import CONVOLUTIONS
from conftest import BACKENDS, each_backend, operators, relative_error
from operator_cases import (
    ARGUMENTS,
    EVERY_OPERATOR,
    IN_PLACE,
    OPERATORS,
    TOLERANCE,
    Draw,
    arrays,
    change,
    copies,
    describe,
    results,
    same,
)

from minires.arguments import pair
from minires.backends import reference
from minires.backends.trace import RULES

OTHERS = [name for name in BACKENDS if name != "reference"]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name, places", [("conv2d_unit_gradient", (1,)), ("batchnorm_coefficients", (3, 4))])
def test_gradients_are_added_where_they_belong(name, places, dtype, backend, rng):
    """With `add_to` an operator gives the same, but adds a parameter's gradient to an array, of any layout."""
    function = getattr(operators(backend), name)
    for arguments in list(ARGUMENTS[name](Draw(rng, dtype)))[::4]:
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


LAYOUTS = {
    "transposed": lambda a: np.asfortranarray(a),
    "sliced": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: a[::-1].copy()[::-1],
    "part of a larger array": lambda a: np.pad(a, [(1, 2)] * a.ndim)[tuple(slice(1, size + 1) for size in a.shape)],
}


def test_every_operator_has_arguments():
    assert set(ARGUMENTS) == set(OPERATORS)


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
        for alter in (lambda a: a[..., ::-1], lambda a: a.transpose(1, 0, 2, 3), lambda a: np.roll(a, 1, 2),
                       lambda a: np.nextafter(a, 9), lambda a: np.where(np.arange(32) == 31, a, -a)):
            digests.add(operators(module).digest(np.ascontiguousarray(alter(array)).astype(dtype)))
        assert len(digests) == 6 and operators(module).digest(array.copy()) in digests


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("module", each_backend(*OTHERS))
def test_matches_the_reference(module, name, dtype, rng):
    function, cases = getattr(operators(module), name), 0
    for arguments in ARGUMENTS[name](Draw(rng, dtype)):
        wide = change(lambda array: array.astype(np.float64 if array.dtype == dtype else array.dtype), arguments)
        expected = change(lambda array: array.astype(dtype if array.dtype == np.float64 else array.dtype),
                           tuple(results(name, OPERATORS[name], copies(wide))))
        same(name, results(name, function, copies(arguments)), expected, dtype, describe(arguments))
        cases += 1
    assert cases > 3


@pytest.mark.parametrize("name", OPERATORS)
def test_keeps_its_dtype_and_its_hands_off_the_inputs(name, backend, rng):
    function = getattr(operators(backend), name)
    changed = IN_PLACE.get(name, ())
    for dtype in (np.float32, np.float64):
        for arguments in list(ARGUMENTS[name](Draw(rng, dtype)))[::3]:
            before = copies(arguments)
            made = results(name, function, arguments)
            for place, (now, then) in enumerate(zip(arguments, before, strict=True)):
                same = all(map(np.array_equal, arrays([now]), arrays([then])))
                assert place in changed or same, f"argument {place} was changed: {describe(before)}"
            for result in arrays(made):
                assert result.dtype in (dtype, np.int32)
                assert result.flags.writeable and result.flags.c_contiguous
                assert name in IN_PLACE or not any(np.shares_memory(result, value) for value in arrays(arguments))


@pytest.mark.parametrize("name", OPERATORS)
def test_any_memory_layout(name, backend, rng):
    """Another layout for each case; an operator's options, 2 or 4, do not always meet the same one."""
    function, cases = getattr(operators(backend), name), list(ARGUMENTS[name](Draw(rng, np.float64)))
    for index, arguments in enumerate(cases[::3 if len(cases) > 30 else 1]):
        layout = list(LAYOUTS)[(index + index // 4) % len(LAYOUTS)]
        expected = results(name, OPERATORS[name], copies(arguments))
        strided = change(LAYOUTS[layout], arguments)
        same(name, results(name, function, strided), expected, np.float64, f"{layout}, {describe(arguments)}")


@pytest.mark.parametrize("name", sorted(set(OPERATORS) - set(IN_PLACE)))
def test_read_only_inputs(name, backend, rng):
    """On one case: kernels for such arrays are compiled apart."""
    function = getattr(operators(backend), name)
    arguments = list(ARGUMENTS[name](Draw(rng, np.float64)))[1]
    expected = results(name, OPERATORS[name], copies(arguments))
    for value in arrays(arguments):
        value.setflags(write=False)
    same(name, results(name, function, arguments), expected, np.float64, describe(arguments))


@pytest.mark.parametrize("name", sorted(set(OPERATORS) - set(IN_PLACE)))
def test_results_stay_what_they_were(name, backend, rng):
    """A back end may use memory again, but not while somebody holds a result or a part of one."""
    function = getattr(operators(backend), name)
    cases = list(ARGUMENTS[name](Draw(rng, np.float32)))
    largest = max(cases, key=lambda arguments: sum(value.nbytes for value in arrays(arguments)))
    made = arrays(results(name, function, copies(largest)))
    parts, whole, first_values = [result[-1:] for result in made], made[:1], [result.copy() for result in made]
    del made
    for _ in range(4):
        function(*change(lambda array: array[::-1].copy() if array.dtype == np.float32 else array, largest))
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


def test_nan_stays_in_its_group(backend, rng):
    ops = operators(backend)
    x, dy, weight = rng.standard_normal((1, 3, 3, 4)), rng.standard_normal((1, 3, 3, 4)), np.ones(4)
    _, *statistics = ops.groupnorm_forward(x, weight, weight, 2, 1e-5)
    dy[0, 0, 0, 0] = np.nan
    nan = np.isnan(ops.groupnorm_backward(dy, x, *statistics, weight, 1e-5)[0])
    assert nan[..., :2].all() and not nan[..., 2:].any()


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
