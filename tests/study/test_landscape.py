"""Loss slices: filter-normalised directions, values that are the loss at moved weights, and weights put back."""
import numpy as np
import pytest

from minires.backends import use_backend
from minires.errors import UserError
from minires.layer import Sequential
from minires.layers import BatchNorm2d, Conv2d, GlobalAvgPool2d, Linear, ReLU
from minires.losses import CrossEntropyLoss
from minires.models import build_model
from minires.study.gradcheck import randomise_parameters
from minires.study.landscape import landscape, random_direction
from minires.training.metrics import evaluate


@pytest.fixture(autouse=True)
def reference_kernels():
    with use_backend("reference"):
        yield


@pytest.fixture
def model(rng):
    return randomise_parameters(build_model("resnet20", rng=rng), rng)


@pytest.fixture
def batches(rng):
    return [(rng.standard_normal((3, 8, 8, 3)).astype(np.float32), rng.integers(0, 10, 3)) for _ in range(2)]


def test_a_direction_is_as_long_as_each_filter(model, rng):
    direction = random_direction(model, rng)
    for name, parameter in model.named_parameters():
        moved, weight = direction[name], parameter.data
        assert moved.shape == weight.shape and moved.dtype == weight.dtype
        if weight.ndim == 1:
            assert not moved.any(), name  # biases and batch normalisation
            continue
        axes = tuple(range(weight.ndim - 1))
        np.testing.assert_allclose(np.sqrt((moved ** 2).sum(axes)), np.sqrt((weight ** 2).sum(axes)), rtol=1e-5)
        assert np.abs(np.corrcoef(moved.ravel(), weight.ravel())[0, 1]) < 0.5
    other = random_direction(model, rng)
    assert not np.array_equal(direction["conv1.weight"], other["conv1.weight"])


def test_the_centre_is_the_loss_and_the_weights_come_back(model, batches, rng):
    before, buffers = model.state_dict(), [id(parameter.data) for parameter in model.parameters()]
    score = evaluate(model, CrossEntropyLoss(), batches)
    directions, calls = [random_direction(model, rng) for _ in range(2)], []
    surface = landscape(model, batches, [-0.5, 0, 0.5], directions, lambda *call: calls.append(call))
    assert surface.loss.shape == surface.accuracy.shape == (3, 3)
    assert surface.loss[1, 1] == score.loss and surface.accuracy[1, 1] == score.accuracy
    assert calls == [(done, 9) for done in range(1, 10)]
    assert len(np.unique(surface.loss)) == 9
    curve = landscape(model, batches, [-0.5, 0, 0.5], directions[:1])
    np.testing.assert_array_equal(curve.loss, surface.loss[:, 1])
    after = model.state_dict()
    assert all(np.array_equal(before[name].view(np.uint32), after[name].view(np.uint32)) for name in before)
    assert [id(parameter.data) for parameter in model.parameters()] == buffers
    assert model.training


def test_a_point_is_the_loss_at_the_moved_weights(model, batches, rng):
    first, second = (random_direction(model, rng) for _ in range(2))
    surface = landscape(model, batches, [-1, 0, 0.25], [first, second])
    for name, parameter in model.named_parameters():
        parameter.data += np.float32(0.25) * first[name] - second[name]
    assert surface.loss[2, 0] == pytest.approx(evaluate(model, CrossEntropyLoss(), batches).loss, rel=1e-4)


def test_weights_come_back_after_a_failure(model, batches, rng):
    before = model.state_dict()

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        landscape(model, batches, [-1, 0, 1], [random_direction(model, rng)], stop)
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())


def test_an_overflow_is_kept_as_what_it_is(rng):
    model = Sequential(Conv2d(1, 2, 1, rng=rng), BatchNorm2d(2), ReLU(), GlobalAvgPool2d(), Linear(2, 2, rng=rng))
    model[4].weight.data[...] = [[1e30, -1e30], [1e30, -1e30]]
    x = np.full((2, 2, 2, 1), 1e30, np.float32)
    curve = landscape(model, [(x, np.array([0, 1]))], [0, 1], [random_direction(model, rng)])
    assert np.isnan(curve.loss[0]) and curve.accuracy[0] == 0.5


@pytest.mark.parametrize("steps, count, message", [([0], 1, "rising"), ([1, 0], 1, "rising"), ([0, 1], 0, "1 or 2"),
                                                   ([0, 1], 3, "1 or 2")])
def test_mistakes(model, batches, rng, steps, count, message):
    with pytest.raises(UserError, match=message):
        landscape(model, batches, steps, [random_direction(model, rng)] * count)
