"""What is particular to the CPU kernels: algorithms agree, bits do not depend on threads, memory is used again."""
import gc

import numba
import numpy as np
import pytest

from minires import SGD, CrossEntropyLoss, UserError, build_model, compile, set_num_threads
from minires.backends import composed, cpu, reference
from minires.backends.cpu import arena as arena_module
from minires.backends.cpu import norm, threads
from minires.backends.cpu.algorithm import use_convolution, winograd_size
from minires.backends.cpu.arena import Arena
from minires.backends.cpu.moments import merge_channel
from minires.backends.cpu.simd import turn
from minires.backends.trace import IN_PLACE

SAME = ((1, 1), (1, 1))  # stride and padding of a 3x3 convolution that keeps the image's size


pytestmark = pytest.mark.usefixtures("every_thread")


def error(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


def unit(rng, dtype, N, H, C, O):
    """Arguments of a convolution unit: x, weight, prologue, g, z, normalisation, residual."""
    def draw(*shape):
        return rng.standard_normal(shape).astype(dtype)

    return (draw(N, H, H, C), draw(3, 3, C, O), tuple(draw(3, C)), draw(N, H, H, O), draw(N, H, H, O), tuple(draw(4, O)),
            draw(N, H, H, C))


def test_gelu_in_float32_is_that_of_float64(rng):
    """To a few roundings of 1 anywhere, and exactly x or 0 in the tails."""
    x = np.concatenate([np.linspace(-9, 9, 20_001), 10 * rng.standard_normal(20_000)]).astype(np.float32)
    wide, dy = x.astype(np.float64), rng.standard_normal(x.shape).astype(np.float32)
    y, want = cpu.gelu_forward(x), reference.gelu_forward(wide)
    assert (np.abs(y - want) / np.maximum(1, np.abs(x))).max() < 3e-7
    dx, want = cpu.gelu_backward(dy, x), reference.gelu_backward(dy.astype(np.float64), wide)
    assert (np.abs(dx - want) / np.maximum(1, np.abs(dy))).max() < 4e-7
    far = np.float32([-1e30, -6, 6, 1e30, np.nan])
    np.testing.assert_array_equal(cpu.gelu_forward(far), [0, 0, 6, np.float32(1e30), np.nan])
    np.testing.assert_array_equal(cpu.gelu_backward(np.ones_like(far), far), [0, 0, 1, 1, np.nan])


@pytest.mark.parametrize("algorithm", ["direct", "winograd2", "winograd4"])
@pytest.mark.parametrize("shape", [(3, 8, 32, 32), (18, 4, 32, 32)], ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 4e-5)], ids=["float64", "float32"])
def test_every_algorithm_computes_the_fused_unit(algorithm, shape, dtype, tolerance, rng):
    x, weight, prologue, g, z, normalisation, residual = unit(rng, dtype, *shape)
    wide = [tuple(a.astype(np.float64) for a in arrays) for arrays in (prologue, normalisation)]
    x64, weight64, g64, z64, residual64 = (a.astype(np.float64) for a in (x, weight, g, z, residual))
    with use_convolution(algorithm):
        chosen = winograd_size(x.shape, x.dtype, weight.shape[3], (3, 3), *SAME, (1, 1))
        assert chosen == {"direct": None, "winograd2": 2, "winograd4": 4}[algorithm]
        for got, want in zip(cpu.conv2d_moments(x, prologue, weight, *SAME),
                             composed.conv2d_moments(reference, x64, wide[0], weight64, *SAME), strict=True):
            assert got.dtype == dtype
            assert error(got, want) < tolerance
        expected = composed.add_relu_conv2d_moments(reference, x64, wide[0], residual64, weight64, *SAME)
        for got, want in zip(cpu.add_relu_conv2d_moments(x, prologue, residual, weight, *SAME), expected, strict=True):
            assert error(got, want) < tolerance
        for before, before64, add, add64, within, within64 in (
                (prologue, wide[0], None, None, None, None), (None, None, residual, residual64, None, None),
                (prologue, wide[0], residual, residual64, residual, residual64)):
            got = cpu.conv2d_unit_gradient(g, z, normalisation, x, before, weight, *SAME, add, True, shortcut=within)
            want = composed.conv2d_unit_gradient(reference, g64, z64, wide[1], x64, before64, weight64, *SAME, add64, True,
                                                 shortcut=within64)
            for a, b in zip(got, want, strict=True):
                assert (a is None and b is None) or error(a, b) < tolerance
        bias = prologue[0][:1].repeat(weight.shape[3])
        got = cpu.conv2d_bias_relu(x, weight, bias, g, True, *SAME)
        want = reference.conv2d_bias_relu(x64, weight64, bias.astype(np.float64), g64, True, *SAME)
        assert error(got, want) < tolerance


def test_winograd_errors_in_float32_are_near_the_direct_kernels(rng):
    # Against float64: the price of the larger numbers that cancel, measured so that nobody has to take it on trust.
    x, weight, *_ = unit(rng, np.float32, 8, 16, 32, 32)
    want = reference.conv2d_forward(x.astype(np.float64), weight.astype(np.float64), None, *SAME, (1, 1))
    errors = {}
    for algorithm in ("direct", "winograd2", "winograd4"):
        with use_convolution(algorithm):
            errors[algorithm] = np.sqrt(((cpu.conv2d_forward(x, weight, None, *SAME, (1, 1)) - want) ** 2).mean())
    assert errors["winograd2"] < 4 * errors["direct"]
    assert errors["winograd4"] < 10 * errors["direct"]
    assert errors["winograd4"] / np.abs(want).max() < 1e-5


def test_winograd_is_chosen_where_it_multiplies_less():
    def size(N, H, C):
        return winograd_size((N, H, H, C), np.dtype(np.float32), C, (3, 3), *SAME, (1, 1))

    assert (size(2, 8, 32), size(2, 7, 33), size(8, 2, 32)) == (4, 4, 2)
    assert (size(1, 4, 512), size(2, 8, 3), size(64, 1, 32)) == (None, None, None)  # few tiles, few channels, one pixel


def test_an_unknown_algorithm_is_refused():
    with pytest.raises(UserError, match="winograd5"), use_convolution("winograd5"):
        pass


def training_run(steps=2, planned=True, dtype=np.float32):
    """Losses and the parameters of a ResNet-20 after a few steps on fixed random images."""
    rng = np.random.default_rng(3)
    model = build_model("resnet20", rng=rng).astype(dtype)
    optimiser, loss = SGD(model.parameters(), 0.05, 0.9), CrossEntropyLoss()
    step = compile(model, loss)
    x, target = rng.standard_normal((20, 16, 16, 3)).astype(dtype), rng.integers(0, 10, 20)
    losses = []
    for _ in range(steps):
        if planned:
            losses.append(step(x, target)[0])
        else:
            optimiser.zero_grad()
            losses.append(loss.forward(model(x), target))
            model.backward(loss.backward())
        optimiser.step()
    return losses, np.concatenate([parameter.data.ravel() for parameter in model.parameters()])


@pytest.mark.skipif(threads.MOST_THREADS < 2, reason="needs two cores")
@pytest.mark.parametrize("planned", [True, False])
def test_the_bits_do_not_depend_on_the_number_of_threads(planned, monkeypatch):
    monkeypatch.setattr(threads, "SMALL", 0)  # share out even the smallest kernel
    results = []
    for count in (1, threads.MOST_THREADS):
        set_num_threads(count)
        results.append(training_run(planned=planned))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_training_follows_the_same_losses_planned_and_not():
    planned, plain = training_run(4, True)[0], training_run(4, False)[0]
    np.testing.assert_allclose(planned, plain, rtol=1e-3)
    assert planned[-1] < planned[0]


def test_a_network_makes_one_pass_for_the_gradient_at_its_last_block():
    plan = compile(build_model("resnet20"), CrossEntropyLoss()).plan((2, 8, 8, 3))
    assert [step.operator for step in plan.steps].count("add_relu_gradient") == 1


def test_prepared_weights_are_those_that_the_kernel_makes_itself(rng):
    x, weight, bias = (rng.standard_normal(shape) for shape in ((2, 8, 8, 16), (3, 3, 16, 16), (16,)))
    for algorithm in ("direct", "winograd2", "winograd4"):
        with use_convolution(algorithm):
            prepared = cpu.prepare(weight, x.shape, *SAME)
            arguments = x, weight, bias, None, True, *SAME
            assert (prepared.size > weight.size) == (algorithm != "direct")
            np.testing.assert_array_equal(cpu.conv2d_bias_relu(*arguments, prepared), cpu.conv2d_bias_relu(*arguments))


def test_a_step_after_the_second_takes_no_new_buffer():
    rng = np.random.default_rng(3)
    model = build_model("resnet20", rng=rng)
    optimiser, loss = SGD(model.parameters(), 0.05, 0.9), CrossEntropyLoss()
    x, target = rng.standard_normal((16, 16, 16, 3)).astype(np.float32), rng.integers(0, 10, 16)
    held = []
    for _ in range(4):
        optimiser.zero_grad()
        loss.forward(model(x), target)
        model.backward(loss.backward())
        optimiser.step()
        held.append(arena_module.held())
    assert held[1] == held[2] == held[3]


def test_the_arena_gives_a_buffer_again_only_when_nobody_holds_it():
    own = Arena()
    first = own.empty((1 << 16,), np.float32)
    assert first.ctypes.data % 64 == 0
    view, address = first[10:], first.ctypes.data
    del first
    assert own.empty((1 << 16,), np.float32).ctypes.data != address  # the view still looks at it
    del view
    gc.collect()
    assert own.empty((1 << 16,), np.float32).ctypes.data == address
    assert own.held == 2 * 4 << 16


def test_free_pieces_of_the_arena_are_joined_and_split():
    own, unit = Arena(), arena_module.LARGE // 4  # float32 elements
    pieces = [own.empty((unit,), np.float32) for _ in range(4)]
    addresses = [piece.ctypes.data for piece in pieces]
    assert addresses == [addresses[0] + k * arena_module.LARGE for k in range(4)]
    kept, pieces = pieces[3], None
    wide = own.empty((2 * unit,), np.float32)
    assert wide.ctypes.data == addresses[0] and own.empty((unit,), np.float32).ctypes.data == addresses[2]
    del wide
    together = [own.empty((unit,), np.float32) for _ in range(3)] + [kept]
    assert sorted(piece.ctypes.data for piece in together) == addresses and own.held == 4 * arena_module.LARGE
    small = own.empty((unit // 2,), np.float32)  # stays out of the large pieces' way
    del together, kept
    assert own.empty((4 * unit,), np.float32).ctypes.data == addresses[0] and small.size == unit // 2


@pytest.mark.parametrize("C", [3, 17, 32, 33])
def test_a_result_may_lie_where_a_plan_puts_it_in_place_of_an_operand(C, monkeypatch, rng):
    """The last of a row's vectors computes channels again, and finds there what it wrote before."""
    x, dy, residual, *channel = *rng.standard_normal((3, 2, 5, 3, C)), *rng.standard_normal((4, C))
    prologue, changed = tuple(channel[:3]), []

    def in_memory_of_a_plan(value):
        changed.append(arena_module.aligned_zeros(value.shape, value.dtype))
        changed[-1][...] = value
        return changed[-1]

    for name, arguments in [
            ("normalise", (x, prologue)), ("normalise_gradient", (dy, x, tuple(channel))),
            ("normalise_add_relu", (x, prologue, residual)), ("add_relu_gradient", (dy, x, residual, channel[0])),
            ("add_relu_gradient", (dy, None, x, channel[0], prologue, residual))]:
        expected = getattr(cpu, name)(*arguments)
        for place in IN_PLACE[name]:
            given = [*arguments[:place], in_memory_of_a_plan(arguments[place]), *arguments[place + 1:]]
            with monkeypatch.context() as patch:
                patch.setattr(norm, "empty", lambda shape, dtype: changed[-1])
                found = getattr(cpu, name)(*given)
            for ours, theirs in zip(found, expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)
        assert found is changed[-1] or found[0] is changed[-1]


def test_merged_moments_are_those_of_the_union(rng):
    parts = [1e4 + rng.standard_normal((count, 3)) for count in (1, 7, 20)]
    means, squares = (np.array(list(map(f, parts))) for f in (lambda p: p.mean(0), lambda p: ((p - p.mean(0)) ** 2).sum(0)))
    mean, var = merged = np.empty((2, 3))
    for channel in range(3):
        merge_channel(means, squares, np.array([1, 7, 20]), channel, merged)
    together = np.concatenate(parts)
    np.testing.assert_allclose(mean, together.mean(0), rtol=1e-14)
    np.testing.assert_allclose(var, together.var(0), rtol=1e-9)


def test_batch_moments_keep_their_digits_under_a_large_mean(rng):
    x = (1000 + rng.standard_normal((4, 8, 8, 16))).astype(np.float32)
    _, mean, var = cpu.batchnorm_forward(x, np.ones(16, np.float32), np.zeros(16, np.float32), 1e-5)
    np.testing.assert_allclose(var, x.astype(np.float64).var((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean((0, 1, 2)), rtol=1e-6)


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 16), (np.float64, 8), (np.float32, 4), (np.float64, 2)])
def test_a_square_is_turned(dtype, size):
    """Of elements that lie apart, in both arrays: nothing else is written."""
    @numba.njit
    def turned(y, x):
        turn(size, y, 3, size + 5, x, 2, size + 7)

    x, y = np.arange(1.0, 1001).astype(dtype), np.zeros(1000, dtype)
    turned(y, x)
    expected = np.zeros(1000, dtype)
    for r in range(size):
        for c in range(size):
            expected[3 + c * (size + 5) + r] = x[2 + r * (size + 7) + c]
    np.testing.assert_array_equal(y, expected)
