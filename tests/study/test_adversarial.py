"""FGSM and PGD: within their bounds, by the gradient of PyTorch, and of use in training."""
import numpy as np
import pytest

from minires.data import Loader, channel_statistics
from minires.data.shapes import make_shapes
from minires.errors import UserError
from minires.losses import CrossEntropyLoss
from minires.models import build_model
from minires.optim import SGD
from minires.study.adversarial import Attack
from minires.training import Trainer, evaluate

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


@pytest.mark.parametrize("options", [{"epsilon": 0}, {"epsilon": 0.1, "steps": 0}, {"epsilon": 0.1, "step": -1}])
def test_wrong_arguments(options):
    with pytest.raises(UserError, match="an attack needs epsilon and step above 0"):
        Attack(build_model("resnet8"), mean=MEAN, std=STD, **options)
