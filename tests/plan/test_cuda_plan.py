"""Planned steps on the device: graphs, and between them what no graph can hold, compute what layers do one by one."""
from contextlib import contextmanager
from itertools import pairwise

import cupy
import numpy as np
import plan_networks
import pytest
from conftest import ON_DEVICE, relative_error

import minires
from minires import CrossEntropyLoss, Sequential, inference_mode
from minires.backends import to_device, to_numpy, use_backend
from minires.backends.cuda import launches
from minires.layer import listening
from minires.layers import BatchNorm2d, Conv2d, Dropout, GlobalAvgPool2d, Linear, ReLU
from minires.models import build_model
from minires.optim import SGD

pytestmark = pytest.mark.gpu


class Doubling(ReLU):
    """Asks for numbers, so that no trace knows what it computes; keeps its input for its backward."""

    def forward(self, x):
        self._save(x)
        return x * (2 + 0 * float(x[0, 0, 0, 0]))

    def backward(self, dy):
        (x,) = self._saved()
        return 2 * dy + 0 * x


def layers(*more, channels=8):
    """A network of layers, others among them."""
    def make(rng):
        return Sequential(Conv2d(3, channels, 3, padding=1, bias=False, rng=rng), BatchNorm2d(channels), ReLU(), *more,
                          Conv2d(channels, channels, 3, padding=1, rng=rng), ReLU(), GlobalAvgPool2d(),
                          Linear(channels, 10, rng=rng))

    return make


class Twins:
    """A network computed by the reference, layer by layer, and on the device, planned."""

    def __init__(self, make, rng):
        self.rng = rng
        self.here, self.there = (make(np.random.default_rng(3)).astype(np.float64) for _ in range(2))
        self.there.to("cuda")
        self.optimisers = [SGD(model.parameters(), 0.05, 0.9) for model in (self.here, self.there)]
        self.step, self.predict = minires.compile(self.there, CrossEntropyLoss()), minires.compile(self.there)

    def batch(self, N, size):
        return self.rng.standard_normal((N, size, size, 3)), self.rng.integers(0, 10, N)

    def train(self, N=3, size=8):
        """A step of both, whose results and networks are near enough; -> (launches of kernels, of graphs)."""
        x, target = self.batch(N, size)
        with use_backend("reference"):
            loss = CrossEntropyLoss()
            y = self.here.forward(x)
            value = loss.forward(y, target)
            self.optimisers[0].zero_grad()
            self.here.backward(loss.backward())
        before = counted()
        value_there, y_there = self.step(to_device(x, "cuda"), to_device(target, "cuda"))
        made = tuple(after - earlier for after, earlier in zip(counted(), before, strict=True))
        assert isinstance(value_there, cupy.ndarray) and abs(float(value_there) - value) < 1e-10 * abs(value)
        assert relative_error(to_numpy(y_there), y) < 1e-10
        for (name, parameter), other in zip(self.here.named_parameters(), self.there.parameters(), strict=True):
            assert relative_error(to_numpy(other.grad), parameter.grad) < 1e-10, name
        for optimiser in self.optimisers:
            optimiser.step()
        for name, array in self.here.state_dict().items():
            assert relative_error(self.there.state_dict()[name], array) < 1e-10, name
        return made

    def infer(self, N=2, size=8):
        x, _ = self.batch(N, size)
        with use_backend("reference"), inference_mode():
            self.here.eval()
            y = self.here.forward(x)
            self.here.train()
        assert relative_error(to_numpy(self.predict(to_device(x, "cuda"))), y) < 1e-10


def counted():
    return (0, 0) if ON_DEVICE else (cupy.counters.launches, cupy.counters.graphs)


def launches_of(compiled):
    """The Launches of a compiled function's latest plan."""
    return list(compiled._plans.values())[-1].run._launches


def called(compiled):
    """The names of what the latest plan calls each time, and "graph" for each graph, in order."""
    return [getattr(getattr(part, "function", None), "__name__", "graph") for part in launches_of(compiled)._parts]


def resnet8(rng):
    return build_model("resnet8", rng=rng)


NETWORKS = {"resnet8": resnet8, "resnet8, projections": lambda rng: build_model("resnet8", shortcut="B", rng=rng),
            "layers": layers()}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_is_one_graph(name, rng):
    twins = Twins(NETWORKS[name], rng)
    first, *others = [twins.train() for _ in range(4)]
    assert called(twins.step) == ["graph"]
    assert ON_DEVICE or (others == [first] * 3 and first[1] == 1)


@pytest.mark.parametrize("name", [name for name in plan_networks.NETWORKS if name != "no parameters"])
def test_every_kind_of_network(name, rng):
    twins, size = Twins(plan_networks.NETWORKS[name], rng), 16 if name == "pools" else 8
    for _ in range(3):
        twins.train(2, size)
    for _ in range(2):
        twins.infer(2, size)


def test_dropout_is_drawn_anew_between_two_graphs(rng):
    twins = Twins(lambda rng: layers(Dropout(0.4, rng=np.random.default_rng(5)))(rng), rng)
    for _ in range(4):
        twins.train()
    assert called(twins.step) == ["graph", "dropout_keep", "graph"]
    states = [model[3].rng.bit_generator.state for model in (twins.here, twins.there)]
    assert states[0] == states[1]


def test_an_opaque_layer_is_called_between_graphs(rng):
    twins = Twins(lambda rng: layers(Doubling())(rng), rng)
    for _ in range(4):
        twins.train()
    assert called(twins.step) == ["graph", "here", "graph", "here", "graph"]
    assert [name for name, _ in twins.step.opaque] == ["3", "3"] and "2 + 0 * float(x" in twins.step.opaque[0][1]


def test_a_listener_hears_every_image(rng):
    twins, heard = Twins(layers(), rng), []
    twins.train()
    with listening([twins.there[2]], lambda layer, method, x, y: heard.append((method, x, to_numpy(x).copy()))):
        for _ in range(3):
            twins.train()
        assert "here" in called(twins.step)
    assert [method for method, _, _ in heard] == ["forward", "backward"] * 3
    twins.train()
    assert len(heard) == 6 and called(twins.step) == ["graph"]


def test_two_shapes_in_turn(rng):
    twins = Twins(resnet8, rng)
    for _ in range(3):
        for N in (3, 2):
            twins.train(N)
    assert len(twins.step._plans) == 2


CHANGES = {
    "a mode": lambda model: model.layer1.eval(),
    "momentum": lambda model: setattr(model.bn1, "momentum", 0.5),
    "a parameter's array": lambda model: setattr(model.fc.weight, "data", model.fc.weight.data * 2),
    "a gradient's array": lambda model: setattr(model.fc.weight, "grad", model.fc.weight.grad * 2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_set_on_a_layer_is_noticed(name, rng):
    twins = Twins(resnet8, rng)
    for _ in range(2):
        twins.train()
    for index, model in enumerate((twins.here, twins.there)):
        CHANGES[name](model)
        twins.optimisers[index] = SGD(model.parameters(), 0.05, 0.9)
    for _ in range(2):
        twins.train()


def test_numbers_of_weights_are_read_when_a_graph_runs(rng):
    twins = Twins(resnet8, rng)
    twins.train()
    plan = launches_of(twins.step)
    for model in (twins.here, twins.there):
        model.load_state_dict({name: array * 1.1 for name, array in model.state_dict().items()})
    twins.train()
    assert launches_of(twins.step) is plan


def test_inference_is_folded_and_folded_again(rng):
    twins = Twins(resnet8, rng)
    twins.train()
    for _ in range(3):
        twins.infer()
    assert called(twins.predict) == ["graph"]
    plan = launches_of(twins.predict)
    twins.train()
    for _ in range(2):
        twins.infer()
    assert launches_of(twins.predict) is plan
    with inference_mode():
        for _ in range(2):
            twins.infer()


def test_wide_layers_are_called_between_graphs(rng):
    twins = Twins(layers(channels=72), rng)
    for _ in range(4):
        twins.train(2, 6)
    names = called(twins.step)
    assert "graph" in names and ("graph", "graph") not in pairwise(names)
    assert set(names) == {"graph", "conv2d_moments", "conv2d_bias_relu", "linear_forward", "linear_backward",
                          "conv2d_unit_gradient"}
    for _ in range(3):
        twins.infer(2, 6)
    assert "conv2d_bias_relu" in called(twins.predict)


def test_results_are_the_callers(rng):
    twins, results = Twins(layers(), rng), []
    for _ in range(4):
        x, target = (to_device(array, "cuda") for array in twins.batch(3, 8))
        results += [*twins.step(x, target), twins.predict(x)]
    copies = [to_numpy(array).copy() for array in results]
    twins.step(-x, target)
    twins.predict(-x)
    assert all(np.array_equal(to_numpy(array), copy) for array, copy in zip(results, copies, strict=True))


def test_a_step_waits_for_nothing(rng):
    twins = Twins(layers(Dropout(0.4, rng=np.random.default_rng(5))), rng)
    x, target = (to_device(array, "cuda") for array in twins.batch(3, 8))
    for _ in range(3):
        waits = 0 if ON_DEVICE else cupy.counters.synchronisations
        twins.step(x, target)
        assert ON_DEVICE or cupy.counters.synchronisations == waits


def test_memory_of_freed_arrays_is_used_again_and_no_more_is_taken(monkeypatch, rng):
    asked, held, used = [], [], launches._Memory.used

    @contextmanager
    def counting(self):
        with used(self), cupy.cuda.using_allocator(lambda size: asked.append(size) or self._pool.malloc(size)):
            yield

    twins = Twins(lambda rng: build_model("resnet20", rng=rng), rng)
    monkeypatch.setattr(launches._Memory, "used", counting)
    for _ in range(4):
        twins.train(4)
        held.append(launches.held())
    assert held[1:] == held[:1] * 3
    assert 0 < launches_of(twins.step).held < sum(asked) / 2 / 2  # of a trial of each operator, and of the graph


def test_each_operator_can_be_run_by_itself(rng):
    twins = Twins(lambda rng: layers(Dropout(0.4, rng=np.random.default_rng(5)), channels=72)(rng), rng)
    twins.train(2, 6)
    (plan,) = twins.step._plans.values()
    names = []
    for step, run in plan.run.operators():
        before = counted()
        run()
        of_cupy = step.operator in ("reshape", "zero", "add_into", "dropout_keep", "linear_forward")
        assert ON_DEVICE or of_cupy or counted() != before
        names.append(step.operator)
    assert names.count("dropout_keep") == 1 and len(names) == len(plan.plan.steps)


class Refused(Exception):
    """What a layer says to a step."""


def test_an_error_in_a_first_run_leaves_nothing_behind(monkeypatch, rng):
    twins = Twins(layers(), rng)
    x, target = (to_device(array, "cuda") for array in twins.batch(3, 8))

    def broken(*arguments):
        raise Refused

    for operator in ("linear_forward", "zero"):
        with monkeypatch.context() as patch, pytest.raises(Refused):
            patch.setattr(f"minires.backends.cuda.{operator}", broken)
            twins.step(x, target)
        twins.here.load_state_dict(twins.there.state_dict())  # statistics have moved once more
    for _ in range(3):
        twins.train()


def test_a_capture_that_fails_at_its_end_is_called_instead(monkeypatch, rng):
    twins = Twins(layers(), rng)
    with monkeypatch.context() as patch:
        patch.setattr(launches.Launches, "_ended", lambda self: self._memory.end() and None)
        for _ in range(3):
            twins.train()
    assert "graph" not in called(twins.step)
