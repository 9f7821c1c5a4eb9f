"""The network of the speedrun: its shape, whitened patches, convolutions that begin as the identity, PyTorch's gradients."""
import numpy as np
import pytest

from minires.backends import use_backend
from minires.errors import UserError
from minires.init import begin_as_identity, whitening
from minires.layers import Conv2d
from minires.losses import CrossEntropyLoss
from minires.models import Speedrun, build_model
from minires.models.speedrun import ConvGroup
from minires.plan import compile


def small(rng):
    return Speedrun(5, (4, 6, 5), rng=rng)


def test_its_parameters_and_their_names(rng):
    network = build_model("speedrun", rng=rng)
    learned = [p.data.size for p in network.whiten_by(rng.standard_normal((9, 8, 8, 3))).parameters() if not p.frozen]
    assert sum(learned) == 24 + 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256) + 2 * (64 + 256 + 256) + 2560
    assert {"whiten.weight", "group1.conv1.weight", "group3.bn2.running_var", "fc.weight"} <= network.state_dict().keys()
    with use_backend("reference"):
        assert small(rng).forward(np.ones((2, 32, 32, 3), np.float32)).shape == (2, 5)


def test_whitened_patches_are_uncorrelated_and_of_size_one(rng):
    mixing = rng.standard_normal((3, 3))
    images = rng.standard_normal((300, 9, 8, 1)) + rng.standard_normal((300, 9, 8, 3)) @ mixing
    conv = Conv2d(3, 24, 2, bias=False)
    conv.weight.data = whitening(images)
    with use_backend("reference"):
        z = conv.forward(images.astype(np.float32)).reshape(-1, 24)
    np.testing.assert_allclose(z.T[:12] @ z[:, :12] / len(z), np.eye(12), atol=0.02)
    np.testing.assert_array_equal(z[:, 12:], -z[:, :12])


def test_directions_that_do_not_occur_are_not_blown_up():
    assert np.abs(whitening(np.ones((2, 5, 5, 3)))).max() <= 1 / np.sqrt(5e-4) * 1.001


@pytest.mark.parametrize("channels", [(3, 5), (5, 3)], ids=str)
def test_a_convolution_begins_as_the_identity(channels, rng):
    conv = Conv2d(*channels, 3, padding=1, bias=False, rng=rng)
    x = rng.standard_normal((2, 5, 4, channels[0])).astype(np.float32)
    before = conv.weight.data.copy()
    begin_as_identity(conv.weight.data)
    with use_backend("reference"):
        np.testing.assert_array_equal(conv.forward(x)[..., :3], x[..., :3])
    np.testing.assert_array_equal(conv.weight.data[..., 3:], before[..., 3:])


def test_only_what_may_learn_gets_a_gradient(rng):
    """The factors of normalisations and of logits and whitened filters do not; a plan computes what layers do."""
    network = small(rng).astype(np.float64).begin_as_identity().whiten_by(rng.standard_normal((9, 8, 8, 3)))
    x, target = rng.standard_normal((3, 25, 26, 3)), rng.integers(0, 5, 3)
    loss = CrossEntropyLoss(0.2)
    with use_backend("reference"):
        compile(network, loss)(x, target)
    planned = {name: p.grad.copy() for name, p in network.named_parameters()}
    still = {name for name, gradient in planned.items() if not gradient.any()}
    norms = {f"group{g}.bn{n}.weight" for g in (1, 2, 3) for n in (1, 2)}
    assert still == {"whiten.weight", "scale.weight", *norms} and not network.group1.bn1.frozen
    network.zero_grad()
    with use_backend("reference"):
        loss.forward(network.forward(x), target)
        network.backward(loss.backward())
    for name, parameter in network.named_parameters():
        np.testing.assert_allclose(planned[name], parameter.grad, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("make, size", [(lambda rng: ConvGroup(3, 5, rng=rng), 7), (small, 26)], ids=["group", "network"])
def test_gradients_are_pytorchs(make, size, rng):
    pytest.importorskip("torch")
    import torch_twin
    from torch_resnet import from_torch, to_torch

    layer = make(rng).astype(np.float64)
    module, x = torch_twin.of(layer), rng.standard_normal((3, size, size, 3))
    with use_backend("reference"):
        y = layer.forward(x)
        dy = rng.standard_normal(y.shape)
        dx = layer.backward(dy)
    their_x = to_torch(x)
    their_y = module(their_x)
    their_y.backward(to_torch(dy).detach())
    np.testing.assert_allclose(y, from_torch(their_y), atol=1e-9)
    np.testing.assert_allclose(dx, from_torch(their_x.grad), atol=1e-9)
    theirs = torch_twin.gradients(module)
    for name, parameter in layer.named_parameters():
        if not parameter.frozen:
            np.testing.assert_allclose(parameter.grad, theirs[name], atol=1e-9, err_msg=name)
    for name, statistic in torch_twin.statistics(module).items():
        np.testing.assert_allclose(layer.state_dict()[name], statistic, atol=1e-10, err_msg=name)


@pytest.mark.parametrize(("design", "message"), [
    ({"width": 2}, "speedrun has no width"), ({"shortcut": "A"}, "speedrun has no shortcut"),
    ({"channels": 5}, "each of the three groups, got 5"), ({"channels": (8, 8)}, "each of the three groups"),
    ({"channels": (8, 0, 8)}, "each of channels must be an int of at least 1")])
def test_designs_that_are_none(design, message):
    with pytest.raises(UserError, match=message):
        build_model("speedrun", **design)


def test_images_of_other_channels_whiten_nothing(rng):
    with pytest.raises(UserError, match=r"expected \(N, H, W, 3\)"):
        build_model("speedrun", channels=(8, 8, 8)).whiten_by(rng.standard_normal((4, 8, 8, 1), np.float32))
