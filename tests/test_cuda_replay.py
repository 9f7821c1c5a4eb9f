"""Captured functions on the device: a CUDA graph computes, bit by bit, what the launches did that it was captured from."""
import numpy as np
import pytest

import minires
from minires import CrossEntropyLoss, Sequential, build_model, capture, fuse, inference_mode
from minires.backends import to_device, to_numpy
from minires.backends.cuda import recording
from minires.layers import Conv2d, Dropout, GlobalAvgPool2d, Linear, ReLU
from minires.training.trainer import gradients

pytestmark = pytest.mark.gpu


def small(rng, *more, channels=16):
    layers = Conv2d(3, channels, 3, padding=1, rng=rng), ReLU(), *more, GlobalAvgPool2d(), Linear(channels, 10, rng=rng)
    return Sequential(*layers)


NETWORKS = {
    "resnet20": lambda rng: fuse(build_model("resnet20", rng=rng)),
    "resnet20, projections": lambda rng: fuse(build_model("resnet20", shortcut="B", rng=rng)),
    "resnet20, unfused": lambda rng: build_model("resnet20", rng=rng),
    "layers": small,
}


class Run:
    """A network on the device in training, captured or not."""

    def __init__(self, make, captured):
        self.model, self.calls = make(np.random.default_rng(3)).to("cuda"), 0
        self.optimiser = minires.SGD(self.model.parameters(), 0.05, 0.9)
        self.function = capture(self._count, self.model) if captured else self._count
        self._loss = CrossEntropyLoss()

    def _count(self, x, target):
        self.calls += 1
        return gradients(self.model, self._loss, self.optimiser, x, target)

    def step(self, x, target):
        loss, y = self.function(to_device(x, "cuda"), to_device(target, "cuda"))
        self.optimiser.step()
        return float(loss), to_numpy(y)


def batches(rng, count, N=4, size=8):
    return [(rng.standard_normal((N, size, size, 3), np.float32), rng.integers(0, 10, N)) for _ in range(count)]


def assert_same(plain, captured, data):
    for x, target in data:
        (loss, y), (other_loss, other_y) = plain.step(x, target), captured.step(x, target)
        assert loss == other_loss and np.array_equal(y, other_y)
    state = captured.model.state_dict()
    assert all(np.array_equal(array, state[name]) for name, array in plain.model.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_training_is_the_same_bit_by_bit(name, rng):
    plain, captured = Run(NETWORKS[name], False), Run(NETWORKS[name], True)
    assert_same(plain, captured, batches(rng, 6))
    assert captured.function.refused is None and captured.calls == 3
    for run in (plain, captured):
        next(layer for _, layer in run.model.named_children()).eval()
    assert_same(plain, captured, batches(rng, 5))
    assert captured.calls == 6
    assert_same(plain, captured, batches(rng, 4, N=3))  # another batch size
    assert captured.function.refused is None and captured.calls == 9


def test_inference_is_the_same_bit_by_bit(rng):
    model = fuse(build_model("resnet20", rng=rng)).to("cuda").eval()
    function = capture(model.forward, model)
    with inference_mode():
        for x, _ in batches(rng, 5):
            x = to_device(x, "cuda")
            assert np.array_equal(to_numpy(model.forward(x)), to_numpy(function(x)))
    assert function.refused is None


def test_results_are_the_callers(rng):
    captured, data = Run(small, True), batches(rng, 6)
    results = [captured.function(to_device(x, "cuda"), to_device(target, "cuda"))[1] for x, target in data]
    copies = [to_numpy(y).copy() for y in results]
    for x, target in data[:2]:
        captured.step(x, target)
    assert all(np.array_equal(to_numpy(y), copy) for y, copy in zip(results, copies, strict=True))


@pytest.mark.parametrize("make, why", [
    (lambda rng: small(rng, channels=80), "CUDA cannot record it (calling cuBLAS API"),
    (lambda rng: small(rng, Dropout(0.5, rng=np.random.default_rng(5))), "Dropout draws new random numbers"),
])
def test_what_cannot_be_recorded_runs_as_it_is(make, why, rng):
    plain, captured = Run(make, False), Run(make, True)
    assert_same(plain, captured, batches(rng, 5))
    assert captured.function.refused.startswith(why)


def test_memory_is_counted_and_not_taken_again(rng):
    captured, held = Run(NETWORKS["resnet20"], True), []
    for x, target in batches(rng, 7, N=8):
        captured.step(x, target)
        held.append(recording.held())
    assert held[0] > 0 and held[-1] == held[3]
