"""Captured functions: the same bits as the functions they run without Python, and nothing stale, nothing silent."""
import gc

import numpy as np
import pytest

from minires import CrossEntropyLoss, Sequential, build_model, capture, fuse, inference_mode, use_backend
from minires.backends.cpu import arena, threads
from minires.errors import UserError
from minires.layer import listening
from minires.layers import Conv2d, Dropout, Flatten, GlobalAvgPool2d, Linear, ReLU
from minires.optim import SGD
from minires.replay import MOST_SHAPES
from minires.training.trainer import Trainer, gradients


def batches(rng, count, N=4, size=8):
    return [(rng.standard_normal((N, size, size, 3), np.float32), rng.integers(0, 10, N)) for _ in range(count)]


def small(rng, *more):
    """A network of layers that the kernels compute as they are."""
    return Sequential(Conv2d(3, 16, 3, padding=1, rng=rng), ReLU(), *more, GlobalAvgPool2d(), Linear(16, 10, rng=rng))


class Run:
    """A network in training, captured or not."""

    def __init__(self, model, captured):
        self.model, self.optimiser = model, SGD(model.parameters(), 0.05, 0.9)

        loss, self._calls = CrossEntropyLoss(), [0]

        def function(x, target, calls=self._calls, optimiser=self.optimiser):
            calls[0] += 1
            return gradients(model, loss, optimiser, x, target)

        self.function = capture(function, model) if captured else function

    @property
    def calls(self):
        return self._calls[0]

    def step(self, x, target):
        loss, y = self.function(x, target)
        self.optimiser.step()
        return loss, y.copy()


def both(make):
    """A network plain and captured, with the same weights."""
    models = [make(np.random.default_rng(3)) for _ in range(2)]
    return [Run(model, captured) for model, captured in zip(models, (False, True), strict=True)]


def assert_same(plain, captured):
    assert plain[0] == captured[0] and np.array_equal(plain[1], captured[1])


def assert_same_networks(plain, captured):
    state = captured.model.state_dict()
    for name, array in plain.model.state_dict().items():
        assert np.array_equal(array, state[name]), name


NETWORKS = {
    "resnet20": lambda rng: fuse(build_model("resnet20", rng=rng)),
    "resnet20, projections": lambda rng: fuse(build_model("resnet20", shortcut="B", rng=rng)),
    "resnet20, unfused": lambda rng: build_model("resnet20", rng=rng),
    "plain20": lambda rng: fuse(build_model("plain20", rng=rng)),
    "resnet18": lambda rng: fuse(build_model("resnet18", num_classes=10, rng=rng)),
    "layers": small,
}


@pytest.mark.parametrize("count", [1, threads.MOST_THREADS])
@pytest.mark.parametrize("name", NETWORKS)
def test_training_is_the_same_bit_by_bit(name, count, rng, every_thread):
    threads.pool.threads = count
    plain, captured = both(NETWORKS[name])
    for x, target in batches(rng, 6, size=32 if name == "resnet18" else 8):
        assert_same(plain.step(x, target), captured.step(x, target))
    assert_same_networks(plain, captured)
    assert captured.function.refused is None
    assert captured.calls == 3  # plain, recorded, and beside the recording; then no more


def test_inference_is_the_same_bit_by_bit(rng):
    model = fuse(build_model("resnet20", rng=rng)).eval()
    function = capture(model.forward, model)
    with inference_mode():
        for x, _ in batches(rng, 5, N=2):
            assert np.array_equal(model.forward(x), function(x))
        model.load_state_dict({name: array * 1.01 for name, array in model.state_dict().items()})
        for x, _ in batches(rng, 5, N=2):
            assert np.array_equal(model.forward(x), function(x))
    assert function.refused is None


def test_results_are_the_callers(rng):
    """What a call returned stays what it was."""
    _, captured = both(small)
    results = [captured.function(x, target)[1] for x, target in batches(rng, 6)]
    copies = [y.copy() for y in results]
    for x, target in batches(rng, 2):
        captured.function(x, target)
    assert all(map(np.array_equal, results, copies))


def test_memory_of_others_is_left_alone(rng):
    """Results that somebody holds do not lie where a recording runs, even if they were computed between its calls."""
    _, captured = both(NETWORKS["resnet20"])
    held = []
    for x, target in batches(rng, 8, size=32):
        captured.function(x, target)
        captured.model.eval()
        with inference_mode():
            y = captured.model.layer1.forward(np.ones((4, 32, 32, 16), np.float32))
        captured.model.train()
        held.append((y, y.copy()))
    assert all(np.array_equal(now, then) for now, then in held)


def test_a_recording_takes_no_memory(rng):
    gc.collect()  # arenas of other tests
    _, captured = both(NETWORKS["resnet20"])
    held = []
    for x, target in batches(rng, 7, size=32):
        captured.step(x, target)
        held.append(arena.held())
    assert held[2:] == [held[2]] * 5


def test_other_shapes_have_recordings_of_their_own(rng):
    plain, captured = both(small)
    for _ in range(5):
        for N in (4, 3, 4):
            for x, target in batches(rng, 1, N):
                assert_same(plain.step(x, target), captured.step(x, target))
    assert captured.calls == 2 * 3
    for N in range(5, 5 + MOST_SHAPES):
        for _ in range(4):
            for x, target in batches(rng, 1, N):
                assert_same(plain.step(x, target), captured.step(x, target))
    assert captured.calls == 3 * MOST_SHAPES + 2 * 4  # two shapes too many


CHANGES = {
    "a mode": lambda model: model.layer1.eval(),
    "momentum": lambda model: setattr(model.bn1, "momentum", 0.5),
    "eps": lambda model: setattr(model.layer2[0].bn1, "eps", 0.1),
    "a layer": lambda model: setattr(model, "fc", Linear(64, 10, rng=np.random.default_rng(9))),
    "unfused": lambda model: fuse(model, False),
    "weights": lambda model: setattr(model.fc.weight, "data", model.fc.weight.data * 2),
    "gradients": lambda model: setattr(model.fc.weight, "grad", model.fc.weight.grad * 2),
    "the images' gradient": lambda model: setattr(model, "input_gradient", False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_set_on_a_layer_is_noticed(name, rng):
    plain, captured = both(NETWORKS["resnet20"])
    for x, target in batches(rng, 5):
        assert_same(plain.step(x, target), captured.step(x, target))
    for run in (plain, captured):
        CHANGES[name](run.model)
        run.optimiser = SGD(run.model.parameters(), 0.05, 0.9)
    for x, target in batches(rng, 5):
        assert_same(plain.step(x, target), captured.step(x, target))
    assert_same_networks(plain, captured)
    assert captured.calls == 6 and captured.function.refused is None


def test_a_listener_hears_every_image(rng):
    plain, captured = both(small)
    for x, target in batches(rng, 5):
        assert_same(plain.step(x, target), captured.step(x, target))
    heard = []

    def listen(layer, method, x, y):
        if method == "forward":
            heard.append((x, x.copy()))

    with listening([captured.model[1]], listen):
        for x, target in batches(rng, 6):
            assert_same(plain.step(x, target), captured.step(x, target))
    assert len(heard) == 6 and all(np.array_equal(now, then) for now, then in heard)
    for x, target in batches(rng, 6):
        assert_same(plain.step(x, target), captured.step(x, target))
    assert captured.calls == 3 + 6 + 3 and captured.function.refused is None


def test_evaluation_between_steps(rng):
    """A mode that is back where it was needs no new recording."""
    plain, captured = both(NETWORKS["resnet20"])
    for x, target in batches(rng, 6):
        assert_same(plain.step(x, target), captured.step(x, target))
        for run in (plain, captured):
            run.model.eval()
            with inference_mode():
                run.model.forward(x)
            run.model.train()
    assert captured.calls == 3


def test_another_number_of_threads(rng, every_thread):
    plain, captured = both(NETWORKS["resnet20"])
    for index, (x, target) in enumerate(batches(rng, 8, size=32)):
        threads.pool.threads = index % threads.MOST_THREADS + 1
        assert_same(plain.step(x, target), captured.step(x, target))
    assert captured.calls == 3


def test_the_reference_is_never_recorded(rng):
    plain, captured = both(small)
    with use_backend("reference"):
        for x, target in batches(rng, 5):
            assert_same(plain.step(x, target), captured.step(x, target))
    assert captured.calls == 5 and captured.function.refused is None


class Doubling(ReLU):
    """Does with NumPy, beside the operators, what no recording sees."""

    def forward(self, x):
        return super().forward(x) * 2

    def backward(self, dy):
        return super().backward(dy * 2)


@pytest.mark.parametrize("layer", [Doubling, lambda: Dropout(0.5, rng=np.random.default_rng(5))])
def test_what_cannot_be_recorded_runs_as_it_is(layer, rng):
    plain, captured = both(lambda rng: small(rng, layer()))
    for x, target in batches(rng, 6):
        assert_same(plain.step(x, target), captured.step(x, target))
    assert_same_networks(plain, captured)
    assert captured.calls == plain.calls == 6  # once a step: random streams go on as they would
    assert ("cannot be recorded" if layer is Doubling else "Dropout draws new random numbers") in captured.function.refused


def test_other_results_than_arrays(rng):
    model = Sequential(Flatten(), Linear(192, 10, rng=rng))
    function = capture(lambda x: {"y": model.forward(x)}, model)
    for x, _ in batches(rng, 4):
        assert np.array_equal(function(x)["y"], model.forward(x))
    assert "something else than arrays" in function.refused


@pytest.mark.parametrize("result", [lambda y: y.argmax(1), lambda y: y.max(), lambda y: y.max() + y.min()])
def test_a_result_of_numpy_is_never_an_old_one(result, rng):
    model = small(rng)
    function = capture(lambda x: result(model.forward(x)), model)
    with inference_mode():
        for x in (np.ones((2, 8, 8, 3), np.float32), *(x for x, _ in batches(rng, 6, N=2))):
            for _ in range(2):
                assert np.array_equal(function(x), result(model.forward(x)))
    assert function.refused


@pytest.mark.parametrize("layer", [Doubling, ReLU])
def test_the_same_batch_again_proves_nothing(layer, rng):
    """Nothing moves between the first calls: a recording that has frozen something would not show it."""
    model = small(rng, layer())
    function, (x, _), (other, _) = capture(model.forward, model), *batches(rng, 2)
    with inference_mode():
        for _ in range(5):
            assert np.array_equal(function(x), model.forward(x))
        assert np.array_equal(function(other), model.forward(other))
    assert (function.refused is None) == (layer is ReLU)


def test_a_forward_that_waits_for_its_backward_is_not_recorded(rng):
    model, plain = (small(np.random.default_rng(3)) for _ in range(2))
    function = capture(model.forward, model)
    for x, _ in batches(rng, 5):
        assert np.array_equal(function(x), plain.forward(x))
        dy = rng.standard_normal((4, 10), np.float32)
        assert np.array_equal(model.backward(dy), plain.backward(dy))
    assert "keeps for a backward pass" in function.refused


class Counting(ReLU):
    """Sets an attribute each time."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def test_a_layer_that_sets_attributes_runs_as_it_is(rng):
    plain, captured = both(lambda rng: small(rng, Counting()))
    for x, target in batches(rng, 6):
        assert_same(plain.step(x, target), captured.step(x, target))
    assert captured.model[2].calls == 6 and "attributes as it computes" in captured.function.refused


def test_a_dropped_recording_gives_its_memory_back(rng):
    gc.collect()
    before = arena.held()
    gc.disable()
    try:
        _, captured = both(NETWORKS["resnet20"])
        for x, target in batches(rng, 5, size=32):
            captured.step(x, target)
        assert arena.held() > before
        del captured
        assert arena.held() == before
    finally:
        gc.enable()


def test_a_wrong_target_is_refused_by_a_recording_too(rng):
    _, captured = both(small)
    for x, target in batches(rng, 5):
        captured.step(x, target)
    with pytest.raises(UserError, match=r"targets in 0 \.\. 9, got .* 10"):
        captured.step(x, target * 0 + 10)
    loss, _ = captured.step(x, target)  # and nothing is broken by it
    assert np.isfinite(loss) and captured.calls == 3


def test_an_error_while_recording_leaves_nothing_behind(rng):
    plain, captured = both(small)
    data = batches(rng, 6)
    for index, (x, target) in enumerate(data):
        if index == 1:
            with pytest.raises(UserError):
                captured.step(x, target * 0 - 1)
            captured.model.forget()
        assert_same(plain.step(x, target), captured.step(x, target))
    assert_same_networks(plain, captured)
    assert captured.calls == 4 and captured.function.refused is None


def test_a_recorded_kernel_that_fails(monkeypatch, rng):
    """The threads are as they were: what is launched next is computed."""
    _, captured = both(small)
    for x, target in batches(rng, 5):
        captured.step(x, target)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a recorded kernel raised"):
        patch.setattr(threads, "_repeat", lambda *arguments: 0)
        captured.step(x, target)
    assert np.isfinite(captured.step(x, target)[0])


@pytest.mark.parametrize("dropped", [0.0, 0.5])
def test_a_trainer_says_why_its_steps_run_their_python(dropped, rng, capsys):
    images = [(rng.standard_normal((8, 8, 8, 3), np.float32), rng.integers(0, 10, 8)) for _ in range(4)]
    model = small(rng, *([Dropout(dropped, rng=rng)] if dropped else []))
    Trainer(model, SGD(model.parameters(), 0.05), images, images).fit(2)
    told = capsys.readouterr().out
    assert told.count("without minires.capture: Dropout draws new random numbers each time") == bool(dropped)


@pytest.mark.parametrize("different", [1, 6])
def test_what_changes_the_weights_is_not_recorded(different, rng):
    plain, captured = small(np.random.default_rng(3)), small(np.random.default_rng(3))

    def step(model, optimiser, x, target):
        loss, _ = gradients(model, CrossEntropyLoss(), optimiser, x, target)
        optimiser.step()
        return loss

    optimisers = [SGD(model.parameters(), 0.05, 0.9) for model in (plain, captured)]
    function = capture(lambda x, target: step(captured, optimisers[1], x, target), captured)
    for x, target in batches(rng, different) * (6 // different):
        assert step(plain, optimisers[0], x, target) == function(x, target)
    assert "no gradient and no buffer" in function.refused
