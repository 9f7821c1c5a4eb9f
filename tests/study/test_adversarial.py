"""FGSM and PGD: within their bounds, by the gradient of PyTorch, and of use in training."""
import os
import signal

import cupy
import numpy as np
import pytest
from conftest import relative_error

from minires.backends import to_numpy
from minires.data import Loader, channel_statistics
from minires.data.augmentations import AlternatingFlip
from minires.data.shapes import make_shapes
from minires.errors import UserError
from minires.losses import CrossEntropyLoss
from minires.models import build_model
from minires.optim import SGD
from minires.study.adversarial import Attack
from minires.training import Trainer, evaluate
from minires.training.stopping import Stopped

EPSILON, MEAN, STD = 4 / 255, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
SMALL = {"blocks": (1, 1), "channels": (4, 8)}


def standardised(rng, n=3):
    pixels = rng.random((n, 8, 8, 3))
    return (pixels - MEAN) / STD, rng.integers(0, 10, n)


def test_fgsm_is_the_sign_of_pytorchs_gradient(rng):
    pytest.importorskip("torch")
    import torch
    import torch_twin
    from torch_resnet import from_torch, to_torch

    model = build_model("resnet", rng=rng, **SMALL).astype(np.float64)
    module, (x, target) = torch_twin.of(model.eval()), standardised(rng)
    model.train()
    x_torch = to_torch(x)
    torch.nn.functional.cross_entropy(module(x_torch), torch.from_numpy(target)).backward()
    expected = x + EPSILON / np.array(STD) * np.sign(from_torch(x_torch.grad))
    low, high = (0 - np.array(MEAN)) / STD, (1 - np.array(MEAN)) / STD
    before = model.state_dict()
    found = Attack(model, epsilon=EPSILON, mean=MEAN, std=STD)(x, target)
    np.testing.assert_allclose(found, np.clip(expected, low, high), rtol=0, atol=1e-12)
    assert model.training and all(np.array_equal(before[name], array) for name, array in model.state_dict().items())


@pytest.mark.parametrize("start", [None, 5])
def test_pgd_stays_within_its_bounds_and_raises_the_loss(start, rng):
    model, (x, target) = build_model("resnet", rng=rng, **SMALL).astype(np.float64).eval(), standardised(rng)
    loss, values = CrossEntropyLoss(), []
    for steps in (1, 8):
        rng = None if start is None else np.random.default_rng(start)
        changed = Attack(model, epsilon=EPSILON, mean=MEAN, std=STD, steps=steps, rng=rng)(x, target)
        pixels, before = changed * STD + MEAN, x * STD + MEAN
        assert np.abs(pixels - before).max() <= EPSILON + 1e-12 and pixels.min() >= -1e-12 and pixels.max() <= 1 + 1e-12
        values.append(loss.forward(model.forward(changed), target))
    clean = loss.forward(model.forward(x), target)
    assert clean < values[0] and clean < values[1] and values[1] >= values[0] - 1e-9


def test_attacks_lower_the_accuracy_and_training_on_them_wins_some_back():
    data = make_shapes(192, 0, 16)
    mean, std = channel_statistics(data.images)
    robust = {}
    for adversarial in (False, True):
        model = build_model("resnet", rng=0, blocks=(1, 1), channels=(8, 16))
        attack = Attack(model, epsilon=8 / 255, mean=mean, std=std)
        loader = Loader(data, 32, mean=mean, std=std, shuffle=True, rng=np.random.default_rng(1))
        plain = Loader(data, 96, mean=mean, std=std)
        optimiser = SGD(model.parameters(), 0.05, 0.9, nesterov=True)
        Trainer(model, optimiser, attack.over(loader) if adversarial else loader, None, progress=False).fit(25)
        strong = Attack(model, epsilon=8 / 255, mean=mean, std=std, steps=5)
        robust[adversarial] = (evaluate(model, CrossEntropyLoss(), plain).accuracy, attack.accuracy(plain),
                               strong.accuracy(plain))
    assert robust[False][0] > robust[False][1] + 0.1 and robust[False][2] <= robust[False][1] + 0.02
    assert robust[True][2] > robust[False][2] + 0.1, robust


def test_an_attack_leaves_the_gradients_that_stood_there(rng):
    model, (x, target) = build_model("resnet", rng=rng, **SMALL).astype(np.float64), standardised(rng)
    for parameter in model.parameters():
        parameter.grad[...] = rng.standard_normal(parameter.grad.shape)
    before = [(parameter.grad, parameter.grad.copy()) for parameter in model.parameters()]
    Attack(model, epsilon=EPSILON, mean=MEAN, std=STD, steps=2)(x, target)
    for parameter, (array, values) in zip(model.parameters(), before, strict=True):
        assert parameter.grad is array and np.array_equal(array, values)
    model.conv1.input_gradient = False
    with pytest.raises(UserError, match="backward returns None where dL/dx is asked for"):
        Attack(model, epsilon=EPSILON, mean=MEAN, std=STD)(x, target)


@pytest.mark.parametrize(("shuffle", "augment"), [(True, False), (False, False), (True, [AlternatingFlip()])])
def test_training_on_attacks_resumes_to_the_same_bits(shuffle, augment, tmp_path, monkeypatch):
    """Whose start is random, too: stopped after an epoch and a half, and gone on with by other objects."""
    def trainer(out):
        data, model = make_shapes(48, 0, 16), build_model("resnet", rng=0, blocks=(1,), channels=(4,))
        loader = Loader(data, 16, mean=MEAN, std=STD, shuffle=shuffle, augment=augment,
                        rng=np.random.default_rng(1) if shuffle else None)
        attack = Attack(model, epsilon=8 / 255, mean=MEAN, std=STD, steps=2, rng=np.random.default_rng(2))
        return Trainer(model, SGD(model.parameters(), 0.05, 0.9), attack.over(loader), Loader(data, 48, mean=MEAN, std=STD),
                       out=out, progress=False)

    whole, first = trainer(tmp_path / "whole"), trainer(tmp_path / "parts")
    whole.fit(2)
    step, done = first.optimiser.step, []

    def step_and_stop():
        step()
        done.append(1)
        if len(done) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(first.optimiser, "step", step_and_stop)
    with pytest.raises(Stopped):
        first.fit(2)
    second = trainer(tmp_path / "parts").restore()
    assert second.step == 2
    second.fit(2)
    for mine, other in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        np.testing.assert_array_equal(mine.data, other.data)


@pytest.mark.gpu
def test_a_loaders_batches_are_attacked_where_the_model_is():
    data, found = make_shapes(8, 0, 16), {}
    for device in ("cpu", "cuda"):
        model = build_model("resnet", rng=0, **SMALL).astype(np.float64).to(device)
        loader = Loader(data, 4, mean=MEAN, std=STD, dtype=np.float64)
        attack = Attack(model, epsilon=EPSILON, mean=MEAN, std=STD, steps=2, rng=0)
        batches = list(attack.over(loader))
        assert isinstance(batches[0][0], cupy.ndarray if device == "cuda" else np.ndarray)
        found[device] = [to_numpy(x) for x, _ in batches], attack.accuracy(loader)
    assert relative_error(np.concatenate(found["cuda"][0]), np.concatenate(found["cpu"][0])) < 1e-9
    assert found["cuda"][1] == found["cpu"][1]


@pytest.mark.parametrize(("options", "said"), [
    ({"epsilon": 0}, "epsilon must be a number above 0, got 0"), ({"epsilon": "x"}, "epsilon must be a number above 0"),
    ({"steps": 0}, "steps must be an int of at least 1"), ({"steps": 1.5}, "steps must be an int"),
    ({"step": -1}, "step must be a number above 0"), ({"rng": "x"}, "rng must be a numpy.random.Generator or a seed"),
    ({"mean": "x"}, "expected one number per channel"), ({"std": [0, 0, 0]}, "std above 0"),
])
def test_wrong_arguments(options, said):
    with pytest.raises(UserError, match=said):
        Attack(build_model("resnet8"), **{"epsilon": 0.1, "mean": MEAN, "std": STD, **options})


def test_an_attack_that_is_broken_off_leaves_gradients_as_they_were(monkeypatch):
    data, model = make_shapes(8, 0, 16), build_model("resnet", rng=0, blocks=(1,), channels=(4,))
    x, target = next(iter(Loader(data, 8, mean=MEAN, std=STD)))
    attack = Attack(model, epsilon=8 / 255, mean=MEAN, std=STD, steps=3)
    for parameter in model.parameters():
        parameter.grad.fill(7)
    gradient, calls = attack._gradient, []

    def broken(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return gradient(*arguments)

    monkeypatch.setattr(attack, "_gradient", broken)
    with pytest.raises(KeyboardInterrupt):
        attack(x, target)
    assert all((parameter.grad == 7).all() for parameter in model.parameters())
