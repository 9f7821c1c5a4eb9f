"""Every layer's forward-mode product is the change of its output: against differences, complex steps and linearity."""
import numpy as np
import pytest
from conftest import relative_error

import minires.layers
import minires.losses
from minires.backends import reference, use_backend
from minires.errors import UserError
from minires.layer import Layer, Sequential
from minires.layers import BatchNorm2d, Conv2d, Dropout, LayerNorm, Linear, MaxPool2d, ReLU
from minires.models import build_model
from minires.study import complex_step, distinct_nonzero, jvp, randomise_parameters, step_curve
from minires.study.forward_mode import LOSS_RULES, RULES
from minires.study.forward_mode.steps import why_no_complex_step
from minires.study.gradcheck import LayerState
from minires.study.subjects import LAYERS, LOSSES

SUBJECTS = {**LAYERS, **LOSSES}
HAVE_A_COMPLEX_STEP = {"Conv2d", "Linear", "BatchNorm2d", "LayerNorm", "AvgPool2d", "GlobalAvgPool2d", "Flatten", "Identity",
                       "Dropout", "PaddedShortcut", "GroupNorm", "Scale", "Bias", "CrossEntropyLoss", "MSELoss"}


@pytest.fixture(autouse=True)
def by_the_reference():
    with use_backend("reference"):
        yield


def drawn(make, shape, rng):
    """A layer in float64 with random parameters, x, and a direction for x and for each parameter."""
    layer = randomise_parameters(make(rng).astype(np.float64), rng)
    tangents = {parameter: rng.standard_normal(parameter.data.shape) for parameter in layer.parameters()}
    return layer, distinct_nonzero(shape, rng), rng.standard_normal(shape), tangents


def moved(layer, state, x, v, tangents, t):
    """layer(x + t v) with every parameter moved by t times its tangent."""
    starts = [(parameter, parameter.data.copy()) for parameter in tangents]
    for parameter, start in starts:
        parameter.data[...] = start + t * tangents[parameter]
    state.restore()
    y = layer.forward(x + t * v).copy()
    for parameter, start in starts:
        parameter.data[...] = start
    state.restore()
    return y


def test_every_layer_and_loss_has_a_product():
    assert {name.split()[0] for name in LAYERS} <= {kind.__name__ for kind in RULES}
    assert {getattr(minires.layers, name) for name in minires.layers.__all__} <= set(RULES)
    assert {getattr(minires.losses, name.split()[0]) for name in LOSSES} == set(LOSS_RULES)


@pytest.mark.parametrize("name", SUBJECTS)
def test_product_is_the_change_of_the_output(name, rng):
    layer, x, v, tangents = drawn(*SUBJECTS[name], rng)
    state = LayerState(layer)
    y, Jv = jvp(layer, x, v, tangents)
    assert relative_error(y, moved(layer, state, x, v, tangents, 0)) < 1e-14
    difference = (moved(layer, state, x, v, tangents, 1e-6) - moved(layer, state, x, v, tangents, -1e-6)) / 2e-6
    assert relative_error(Jv, difference) < 1e-8


@pytest.mark.parametrize("name", SUBJECTS)
def test_each_tensor_moves_alone(name, rng):
    """The product is linear: those along x and along each parameter, one at a time, add up to the whole."""
    layer, x, v, tangents = drawn(*SUBJECTS[name], rng)
    state = LayerState(layer)
    _, whole = jvp(layer, x, v, tangents)
    parts = []
    for direction, moving in [(v, {}), *[(0 * x, {parameter: tangent}) for parameter, tangent in tangents.items()]]:
        state.restore()
        parts.append(jvp(layer, x, direction, moving)[1])
        assert np.abs(parts[-1]).max() > 1e-3
    assert relative_error(sum(parts), whole) < 1e-13


@pytest.mark.parametrize("name", [name for name in SUBJECTS if name.split()[0] in HAVE_A_COMPLEX_STEP])
@pytest.mark.parametrize("step", [1e-20, 1e-200])
def test_product_is_the_complex_step(name, step, rng):
    layer, x, v, tangents = drawn(*SUBJECTS[name], rng)
    state = LayerState(layer)
    _, Jv = jvp(layer, x, v, tangents)
    state.restore()
    assert relative_error(complex_step(layer, x, v, tangents, step), Jv) < 1e-13


@pytest.mark.parametrize("model", ["resnet20", "plain20"])
@pytest.mark.parametrize("training", [True, False])
def test_whole_network(model, training, rng):
    layer, x, v, tangents = drawn(lambda rng: build_model(model, rng=rng).train(training), (2, 12, 12, 3), rng)
    state = LayerState(layer)
    y, Jv = jvp(layer, x, v, tangents)
    assert relative_error(y, moved(layer, state, x, v, tangents, 0)) < 1e-11
    difference = (moved(layer, state, x, v, tangents, 1e-8) - moved(layer, state, x, v, tangents, -1e-8)) / 2e-8
    assert relative_error(Jv, difference) < 1e-5


def test_an_imagenet_stem_is_part_of_the_chain(rng):
    network = build_model("resnet", blocks=(1, 1, 1, 1), channels=(64, 128, 256, 512), stem="imagenet", rng=rng)
    network = network.astype(np.float64).eval()
    x, v = distinct_nonzero((1, 17, 17, 3), rng), rng.standard_normal((1, 17, 17, 3))
    y, Jv = jvp(network, x, v)
    assert relative_error(y, network.forward(x)) < 1e-13
    assert relative_error(Jv, (network.forward(x + 1e-7 * v) - network.forward(x - 1e-7 * v)) / 2e-7) < 1e-6


def test_float32_stays_float32(rng):
    network = Sequential(Conv2d(3, 4, 3, rng=rng), BatchNorm2d(4), ReLU(), MaxPool2d(2), LayerNorm(4))
    x = rng.standard_normal((2, 8, 8, 3), np.float32)
    tangents = {parameter: np.ones_like(parameter.data) for parameter in network.parameters()}
    assert [array.dtype for array in jvp(network, x, x, tangents)] == [np.float32, np.float32]


def test_the_layer_stays_as_it_was(rng):
    layer, x, v, tangents = drawn(lambda rng: Sequential(BatchNorm2d(3), Dropout(0.3, rng=np.random.default_rng(5))),
                                  (2, 4, 4, 3), rng)
    before, draws = layer.state_dict(), layer[1].rng.bit_generator.state
    jvp(layer, x, v, tangents)
    assert all(np.array_equal(before[name], array) for name, array in layer.state_dict().items())
    assert not any(parameter.grad.any() for parameter in layer.parameters())
    after = layer[1].rng.bit_generator.state
    assert after != draws, "dropout draws a mask, as its forward does"
    layer[1].rng.bit_generator.state = draws
    layer.forward(x)
    assert layer[1].rng.bit_generator.state == after, "and no more than one"


def test_bad_input_is_one_sentence(rng):
    layer = Linear(3, 2)
    x = np.ones((4, 3), np.float32)
    with pytest.raises(UserError, match=r"expects v like x, \(4, 3\) float32, got \(4, 3\) float64"):
        jvp(layer, x, np.ones((4, 3)))
    with pytest.raises(UserError, match=r"Linear expects x of shape \(N, 3\)"):
        jvp(layer, x[:, :2], x[:, :2])
    with pytest.raises(UserError, match=r"tangent of weight has shape \(2, 3\), expected \(3, 2\)"):
        jvp(layer, x, x, {layer.weight: np.ones((2, 3), np.float32)})
    with pytest.raises(UserError, match="no parameter of this Linear"):
        jvp(layer, x, x, {Linear(3, 2).weight: np.ones((3, 2), np.float32)})
    with pytest.raises(UserError, match="forward mode works on NumPy arrays, got x of type list"):
        jvp(layer, [[1.0]], x)


def test_a_layer_of_ones_own_needs_a_rule(rng):
    class Leaky(ReLU):
        """What a subclass computes may be another function, whose product is not its parent's."""

        def forward(self, x):
            return np.maximum(x, 0.1 * x)

    with pytest.raises(UserError, match="Leaky has no hand-written rule, only Conv2d, "):
        jvp(Leaky(), np.ones((2, 2)), np.ones((2, 2)))


# --- complex steps ---


def test_which_layers_have_a_complex_step(rng):
    for name, (make, _) in SUBJECTS.items():
        assert (why_no_complex_step(make(rng)) is None) == (name.split()[0] in HAVE_A_COMPLEX_STEP), name


@pytest.mark.parametrize(("name", "reason"), [
    ("ReLU", r"ReLU has no complex step: max\(x, 0\) compares, and complex numbers have no order"),
    ("MaxPool2d", "the maximum of a window compares"),
    ("BasicBlock", "it holds a ReLU"),
    ("Bottleneck", "it holds a ReLU"),
])
def test_why_not(name, reason, rng):
    make, shape = SUBJECTS[name]
    with pytest.raises(UserError, match=reason):
        complex_step(make(rng), np.ones(shape), np.ones(shape))


def test_an_unknown_layer_says_where_to_write_it():
    class Cube(Layer):
        pass

    assert "no complex evaluation of Cube is written" in why_no_complex_step(Cube())


def test_what_the_reasons_say_is_so():
    """At its kink a complex ReLU takes slope 1, backward takes 0; of a tie the complex maximum follows what moves up; and
    numpy.var has no complex step, while the mean of (x - mean)^2 has."""
    step = 1e-30
    zero = np.zeros((1, 1))
    assert reference.relu_forward(zero + 1j * step).imag / step == 1
    assert reference.relu_backward(np.ones((1, 1)), reference.relu_forward(zero)) == 0
    tie = np.array([1.0, 1 + 1j * step]).reshape(1, 1, 2, 1)
    geometry = ((1, 2), (1, 2), (0, 0), (1, 1))
    assert reference.maxpool2d_forward(tie, *geometry)[1].item() == 1
    assert reference.maxpool2d_forward(tie.real, *geometry)[1].item() == 0
    x = np.array([0.0, 1.0, 3.0])
    direction = np.array([0.0, 0.0, 1.0])
    z = x + 1j * step * direction
    slope = 2 * (x[2] - x.mean()) / 3
    np.testing.assert_allclose(((z - z.mean()) ** 2).mean().imag / step, slope, rtol=1e-15)
    assert z.var().imag == 0


# --- the V ---


def test_the_arms_of_the_v(rng):
    layer, x, _, _ = drawn(*SUBJECTS["CrossEntropyLoss"], rng)
    curve = step_curve(layer, x, rng)
    steps, forward, central = (np.array(values) for values in (curve.steps, curve.forward, curve.central))
    assert steps[0] == 0.1 and steps[-1] == 1e-12
    large = steps >= 1e-3
    slopes = {name: np.diff(np.log10(errors[large])) / np.diff(np.log10(steps[large]))
              for name, errors in (("forward", forward), ("central", central))}
    np.testing.assert_allclose(slopes["forward"], 1, atol=0.15)
    np.testing.assert_allclose(slopes["central"], 2, atol=0.15)
    np.testing.assert_allclose(forward[2], curve.truncation[0] * steps[2], rtol=0.05)
    np.testing.assert_allclose(central[1], curve.truncation[1] * steps[1] ** 2, rtol=0.05)
    rising = forward[steps <= 1e-10].max()
    assert 1e-2 < rising / (curve.rounding / 1e-12) < 100
    assert 1e-9 <= curve.best("forward")[0] <= 1e-6 and 1e-10 < curve.best("forward")[1] < 1e-6
    assert curve.best("central")[1] < 1e-3 * curve.best("forward")[1]
    assert max(curve.complex[steps.tolist().index(1e-8):]) < 1e-14


def test_a_bilinear_layer_has_no_truncation_at_central_steps(rng):
    layer, x, _, _ = drawn(*SUBJECTS["Linear"], rng)
    curve = step_curve(layer, x, rng)
    assert curve.central[0] < 1e-14 < 1e-3 < curve.forward[0]
    assert curve.complex is not None and max(curve.complex) < 1e-14


def test_a_kinked_layer_says_why_it_has_no_complex_step(rng):
    layer, x, _, _ = drawn(*SUBJECTS["BasicBlock"], rng)
    before = layer.state_dict()
    curve = step_curve(layer, x, rng)
    assert curve.complex is None and "it holds a ReLU" in curve.reason
    assert curve.best("central")[1] < 1e-8
    assert all(np.array_equal(before[name], array) for name, array in layer.state_dict().items())
