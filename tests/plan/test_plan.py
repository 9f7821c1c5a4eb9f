"""A planned step computes what the layers compute: every network, each back end, forward, gradients and statistics."""
import numpy as np
import pytest
from conftest import relative_error
from plan_networks import NETWORKS, own_basic

import minires
from minires.backends import set_num_threads
from minires.backends.cpu.threads import MOST_THREADS
from minires.errors import UserError
from minires.layer import Layer, Sequential, calls_go_to, inference_mode, listening
from minires.layers import BasicBlock, BatchNorm2d, Conv2d, ReLU
from minires.losses import CrossEntropyLoss, MSELoss
from minires.models import build_model

BOUNDS = {np.float64: 1e-10, np.float32: 2e-4}
SHAPE = (4, 16, 16, 3)


def batch(rng, shape=SHAPE, dtype=np.float64, classes=10):
    return rng.standard_normal(shape).astype(dtype), rng.integers(0, classes, shape[0])


def eager(model, loss, x, target):
    """(loss, logits) and the gradients set, layer by layer."""
    y = model.forward(x)
    value = loss.forward(y, target)
    model.zero_grad()
    model.backward(loss.backward())
    return value, y


def twins(make, dtype=np.float64):
    """Two networks of the same weights."""
    return tuple(make(np.random.default_rng(1)).astype(dtype) for _ in range(2))


def state(model):
    """Everything that a step sets: gradients and running statistics, by name."""
    gradients = {f"{name}.grad": parameter.grad for name, parameter in model.named_parameters()}
    return gradients | model.state_dict()


def same(found, expected, bound):
    differ = {name: relative_error(found[name], array) for name, array in expected.items()}
    worst = max(differ, key=differ.get, default=None)
    assert worst is None or differ[worst] <= bound, f"{worst} differs by {differ[worst]:.1e}"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_planned_step_computes_what_the_layers_do(name, rng):
    expected_model, model = twins(NETWORKS[name])
    if name == "no parameters":
        classes = 2 * 2 * 3
    else:
        classes = 10
    expected_loss, step = CrossEntropyLoss(), minires.compile(model, CrossEntropyLoss())
    for _ in range(3):  # made, run again, and again
        x, target = batch(rng, classes=classes)
        value, y = eager(expected_model, expected_loss, x, target)
        planned_value, planned_y = step(x, target)
        assert relative_error(planned_y, y) <= 1e-10 and planned_value == pytest.approx(value, rel=1e-10)
        same(state(model), state(expected_model), 1e-10)
    predict = minires.compile(model)
    for _ in range(2):
        x, _ = batch(rng)
        expected_model.eval()
        assert relative_error(predict(x), expected_model.forward(x)) <= 1e-10


@pytest.mark.parametrize("name", ["basic", "odd channels", "pre-activation"])
def test_in_float32_it_is_as_near_to_float64_as_the_layers_are(name, rng):
    exact, model = twins(NETWORKS[name])
    model.astype(np.float32)
    x, target = batch(rng)
    value, y = eager(exact, CrossEntropyLoss(), x, target)
    step = minires.compile(model, CrossEntropyLoss())
    for _ in range(2):
        planned_value, planned_y = step(x.astype(np.float32), target)
    assert relative_error(planned_y.astype(np.float64), y) <= 1e-4
    assert planned_value == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("depth", [8, 14, 20])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_published_networks_of_every_depth(depth, shortcut, rng):
    expected_model, model = twins(lambda r: build_model(f"resnet{depth}", shortcut=shortcut, rng=r))
    step = minires.compile(model, CrossEntropyLoss(0.1))
    for shape in [(2, 16, 16, 3), (3, 12, 20, 3), (2, 16, 16, 3)]:  # plans of two shapes share nothing that they should not
        x, target = batch(rng, shape)
        value, y = eager(expected_model, CrossEntropyLoss(0.1), x, target)
        planned_value, planned_y = step(x, target)
        assert relative_error(planned_y, y) <= 1e-10
        same(state(model), state(expected_model), 1e-10)


def test_training_runs_the_same_for_any_number_of_threads_and_on_every_call(rng, every_thread):
    x, target = batch(rng, (20, 16, 16, 3), np.float32)
    results = []
    for threads in (1, MOST_THREADS):
        set_num_threads(threads)
        model = build_model("resnet20")
        step = minires.compile(model, CrossEntropyLoss())
        for _ in range(3):
            _, y = step(x, target)
            results.append(b"".join([y.tobytes(), *(p.grad.tobytes() for p in model.parameters())]))
    assert len(set(results)) == 1


def test_the_results_are_the_callers(rng):
    _, model = twins(NETWORKS["basic"])
    step, predict = minires.compile(model, CrossEntropyLoss()), minires.compile(model)
    (x, target), (other, _) = batch(rng), batch(rng)
    for _ in range(2):
        _, y = step(x, target)
        p = predict(x)
        kept, kept_p = y.copy(), p.copy()
        step(other, target), predict(other)
        assert np.array_equal(y, kept) and np.array_equal(p, kept_p)


CHANGES = {
    "a mode": lambda model: model.eval(),
    "one layer's mode": lambda model: setattr(model[1], "training", False),
    "momentum": lambda model: setattr(model[1], "momentum", 0.7),
    "eps": lambda model: setattr(model[1], "eps", 1.0),
    "weights in place": lambda model: model[0].weight.data.__imul__(2),
    "a weight's array": lambda model: setattr(model[0].weight, "data", model[0].weight.data * 2),
    "a gradient's array": lambda model: setattr(model[0].weight, "grad", np.ones_like(model[0].weight.grad)),
    "a layer": lambda model: setattr(model, "1", BatchNorm2d(8, momentum=0.3).astype(np.float64)),
    "loaded weights": lambda model: model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()}),
    "running statistics": lambda model: model[1].running_var.fill(3),
    "a weight of another order": lambda model: setattr(model[0].weight, "data", np.asfortranarray(model[0].weight.data)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_model_is_noticed(change, rng):
    expected_model, model = twins(NETWORKS["basic"])
    step, predict = minires.compile(model, CrossEntropyLoss()), minires.compile(model)
    x, target = batch(rng)
    for _ in range(2):
        step(x, target)
        eager(expected_model, CrossEntropyLoss(), x, target)
        predict(x)
    for each in (model, expected_model):
        CHANGES[change](each)
    for _ in range(2):
        _, y = step(x, target)
        _, expected = eager(expected_model, CrossEntropyLoss(), x, target)
        assert relative_error(y, expected) <= 1e-10
        same(state(model), state(expected_model), 1e-10)
    expected_model.eval()
    assert relative_error(predict(x), expected_model.forward(x)) <= 1e-10


def test_a_change_of_the_loss_is_noticed(rng):
    expected_model, model = twins(NETWORKS["basic"])
    loss = CrossEntropyLoss()
    step = minires.compile(model, loss)
    x, target = batch(rng)
    step(x, target)
    loss.label_smoothing = 0.3
    eager(expected_model, CrossEntropyLoss(), x, target)
    value, _ = eager(expected_model, CrossEntropyLoss(0.3), x, target)
    assert step(x, target)[0] == pytest.approx(value, rel=1e-10)
    same(state(model), state(expected_model), 1e-10)


def test_who_listens_is_told_and_the_rest_is_planned(rng):
    expected_model, model = twins(NETWORKS["a block of one's own"])
    step, heard = minires.compile(model, CrossEntropyLoss()), []
    x, target = batch(rng)
    step(x, target)
    with listening([model[3][0].branch[0]], lambda layer, name, given, result: heard.append(name)):
        for turn in (1, 2):
            step(x, target)
            assert heard == ["forward", "backward"] * turn
            assert step.opaque == [("3.0.branch.0", "somebody listens to it"), ("3.0.branch.0", "its forward is opaque")]
    step(x, target)
    assert heard == ["forward", "backward"] * 2 and step.opaque == []
    for _ in range(4):
        eager(expected_model, CrossEntropyLoss(), x, target)
    same(state(model), state(expected_model), 1e-10)


def test_calls_that_go_to_somebody_else_are_not_planned(rng):
    _, model = twins(NETWORKS["basic"])
    step, calls = minires.compile(model, CrossEntropyLoss()), []
    x, target = batch(rng)
    step(x, target)
    with calls_go_to(lambda method, layer, array: calls.append(layer) or method(layer, array)):
        step(x, target)
    assert model[0] in calls


def test_what_is_opaque_is_named_with_its_line(rng):
    step = minires.compile(NETWORKS["an opaque layer"](rng).astype(np.float64), CrossEntropyLoss())
    plan = step.plan(SHAPE, dtype=np.float64)
    assert [layer for layer, _ in plan.opaque] == ["4", "4"]
    assert "plan_networks.py" in plan.opaque[0][1] and "return x - x.mean()" in plan.opaque[0][1]


def test_dropout_is_planned_and_draws_what_the_layer_draws(rng):
    _, model = twins(NETWORKS["dropout in a block"])
    plan = minires.compile(model, CrossEntropyLoss()).plan(SHAPE, dtype=np.float64)
    assert plan.opaque == [] and sum(step.operator == "dropout_keep" for step in plan.steps) == 1


def test_a_loss_of_ones_own(rng):
    class Absolute:
        def forward(self, y, target):
            self.sign = np.sign(y - target)
            return float(np.abs(y - target).mean())

        def backward(self):
            return self.sign / self.sign.size

    for loss in (Absolute, MSELoss):
        expected_model, model = twins(NETWORKS["basic"])
        x, target = rng.standard_normal(SHAPE), rng.standard_normal((4, 10))
        step = minires.compile(model, loss())
        for _ in range(2):
            expected, _ = eager(expected_model, loss(), x, target)
            assert step(x, target)[0] == pytest.approx(expected, rel=1e-10)
        same(state(model), state(expected_model), 1e-10)


def test_the_gradient_of_the_images(rng):
    expected_model, model = twins(NETWORKS["basic"])
    x, target = batch(rng)
    step = minires.compile(model, CrossEntropyLoss(), input_gradient=True)
    loss = CrossEntropyLoss()
    loss.forward(expected_model.forward(x), target)
    expected = expected_model.backward(loss.backward())
    for _ in range(2):
        assert relative_error(step(x, target)[2], expected) <= 1e-10


def test_weights_are_folded_once_in_inference_mode_and_looked_at_outside(rng):
    expected_model, model = twins(NETWORKS["basic"])
    predict = minires.compile(model)
    x, _ = batch(rng)
    expected_model.eval()
    with inference_mode():
        for _ in range(2):
            assert relative_error(predict(x), expected_model.forward(x)) <= 1e-10
    for each in (model, expected_model):
        for parameter in each.parameters():
            parameter.data *= 1.5
    assert relative_error(predict(x), expected_model.forward(x)) <= 1e-10


def test_more_shapes_than_are_planned_run_as_they_are(rng):
    expected_model, model = twins(NETWORKS["basic"])
    step, predict = minires.compile(model, CrossEntropyLoss()), minires.compile(model)
    for size in range(1, 8):
        x, target = batch(rng, (size, 8, 8, 3))
        value, y = eager(expected_model, CrossEntropyLoss(), x, target)
        assert relative_error(step(x, target)[1], y) <= 1e-10
        same(state(model), state(expected_model), 1e-10)
    expected_model.eval()
    for size in range(1, 8):
        x, _ = batch(rng, (size, 8, 8, 3))
        assert relative_error(predict(x), expected_model.forward(x)) <= 1e-10


MISTAKES = {
    "channels": (lambda step: step(np.zeros((2, 8, 8, 5)), np.zeros(2, int)), UserError, "expects x of shape"),
    "targets": (lambda step: step(np.zeros((2, 8, 8, 3)), np.array([0, 10])), UserError, "targets in 0 .. 9"),
    "number of targets": (lambda step: step(np.zeros((2, 8, 8, 3)), np.zeros(3, int)), UserError, "2 integer targets"),
    "dtype": (lambda step: step(np.zeros((2, 8, 8, 3), np.float32), np.zeros(2, int)), UserError, "float64"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_the_sentence_that_the_layers_have(name, rng):
    mistake, kind, sentence = MISTAKES[name]
    _, model = twins(NETWORKS["basic"])
    step = minires.compile(model, CrossEntropyLoss())
    x, target = batch(rng, (2, 8, 8, 3))
    step(x, target)
    with pytest.raises(kind, match=sentence):
        mistake(step)
    assert np.isfinite(step(x, target)[0])  # and the step goes on


def test_tracing_changes_nothing(rng):
    _, model = twins(NETWORKS["dropout in a block"])
    before = {name: array.copy() for name, array in state(model).items()}
    attributes = [dict(vars(layer)) for _, layer in model.named_layers()]
    stream = model[3].branch[3].rng.bit_generator.state
    minires.compile(model, CrossEntropyLoss()).plan(SHAPE, dtype=np.float64)
    minires.compile(model).plan(SHAPE, dtype=np.float64)
    same(state(model), before, 0)
    assert [vars(layer).keys() for _, layer in model.named_layers()] == [found.keys() for found in attributes]
    assert model[3].branch[3].rng.bit_generator.state == stream


def test_values_that_live_at_once_never_share_memory():
    for name, make in NETWORKS.items():
        plan = minires.compile(make(np.random.default_rng(0)).astype(np.float64), CrossEntropyLoss()).plan(
            (32, 16, 16, 3), dtype=np.float64)
        lives, offsets = plan.memory.lives, plan.memory.offsets
        placed = list(lives)
        assert placed or name == "no parameters"
        for index, first in enumerate(placed):
            for second in placed[index + 1:]:
                apart = lives[first][1] < lives[second][0] or lives[second][1] < lives[first][0]
                clear = (offsets[first] + first.nbytes <= offsets[second]
                         or offsets[second] + second.nbytes <= offsets[first])
                assert apart or clear, (name, first, second)


def test_a_step_of_resnet20_fits_100_megabytes():
    plan = minires.compile(build_model("resnet20"), CrossEntropyLoss()).plan((128, 32, 32, 3))
    assert plan.peak_bytes <= 100e6


def test_a_block_of_ones_own_is_planned_as_the_built_in_one(rng):
    own = minires.compile(own_basic(8, rng), MSELoss()).plan((4, 16, 16, 8), (4, 16, 16, 8), target_dtype=np.float32)
    built_in = minires.compile(BasicBlock(8, 8, rng=rng), MSELoss()).plan((4, 16, 16, 8), (4, 16, 16, 8),
                                                                          target_dtype=np.float32)
    assert [step.operator for step in own.steps] == [step.operator for step in built_in.steps]
    assert own.peak_bytes == built_in.peak_bytes


def test_a_first_layer_computes_no_gradient_that_nobody_reads(rng):
    plan = minires.compile(Conv2d(3, 8, 3, rng=rng), MSELoss()).plan((2, 8, 8, 3), (2, 6, 6, 8), target_dtype=np.float32)
    assert "conv2d_input_gradient" not in [step.operator for step in plan.steps]


class Weighed(Layer):
    """y = x * the mean of a weight that another layer has, too; asks for numbers, so that it is called as it is."""

    def __init__(self, weight):
        self.weight = weight

    def forward(self, x):
        self._kept = x
        return x * x.dtype.type(float(np.asarray(self.weight.data).mean()) + 0 * float(np.asarray(x).max()))

    def backward(self, dy):
        self.weight.accumulate(np.full_like(self.weight.data, (dy * self._kept).sum() / self.weight.data.size))
        return dy * dy.dtype.type(self.weight.data.mean())


def tied(kind):
    """A convolution whose weight another layer has, too: before it, behind it, or a planned one."""
    conv = Conv2d(4, 4, 3, padding=1, bias=False, rng=1)
    other = Conv2d(4, 4, 3, padding=1, bias=False, rng=2)
    if kind == "planned":
        other.weight = conv.weight
        return Sequential(conv, ReLU(), other)
    return Sequential(*[Weighed(conv.weight), conv, other][::1 if kind == "before" else -1])


@pytest.mark.parametrize("kind", ["before", "behind", "planned", "alone"])
def test_what_gradients_held_before_a_step_is_gone_and_all_is_added(kind, rng):
    make = tied if kind != "alone" else lambda _: Sequential(Conv2d(4, 4, 3, padding=1, bias=False, rng=1))
    models = [make(kind).astype(np.float64) for _ in range(2)]
    x, target = rng.standard_normal((2, 3, 6, 6, 4))
    step = minires.compile(models[0], MSELoss())
    for _ in range(3):
        for parameter in (*models[0].parameters(), *models[1].parameters()):
            parameter.grad.fill(np.nan)
        value, y = step(x, target)
        expected, expected_y = eager(models[1], MSELoss(), x, target)
        assert value == pytest.approx(expected, rel=1e-12) and relative_error(y, expected_y) <= 1e-12
        for own, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert relative_error(own.grad, other.grad) <= 1e-12


@pytest.mark.parametrize("name", ["resnet8", "resnet"])
def test_a_plan_of_a_network_by_name_is_looked_at_once(name, rng, monkeypatch):
    """What a layer holds in lists and dicts must be looked at in every call: networks by name have nothing there."""
    model = build_model(name, **({"blocks": (1, 1), "channels": (4, 8)} if name == "resnet" else {}))
    step = minires.compile(model, CrossEntropyLoss())
    x, target = batch(rng, (2, 8, 8, 3), np.float32)
    for _ in range(2):
        step(x, target)
    looked = []
    monkeypatch.setattr("minires.plan.compiled._made_of", lambda *_: looked.append(1))
    step(x, target)
    assert looked == []
