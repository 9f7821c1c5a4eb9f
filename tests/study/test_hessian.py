"""Hessian-vector products against differences of gradients and the whole Hessian; eigenvalues; sharpness along training."""
import numpy as np
import pytest
from conftest import relative_error

from minires.backends import use_backend
from minires.errors import UserError
from minires.layer import Sequential
from minires.layers import (
    GELU,
    AvgPool2d,
    BasicBlock,
    BatchNorm2d,
    Bias,
    Bottleneck,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    GroupNorm,
    LayerNorm,
    LeakyReLU,
    Linear,
    MaxPool2d,
    PlainBlock,
    ReLU,
    Residual,
    Scale,
    SiLU,
)
from minires.losses import CrossEntropyLoss, MSELoss
from minires.models import build_model
from minires.study import LossHessian, distinct_nonzero, hessian, lanczos, randomise_parameters
from minires.study.forward_mode import RULES
from minires.study.gradcheck import LayerState
from minires.study.sharpness import sharpness_along_training, small_batch, small_network


@pytest.fixture(autouse=True)
def by_the_reference():
    with use_backend("reference"):
        yield


def head(channels, rng):
    return GlobalAvgPool2d(), Linear(channels, 4, rng=rng)


# name: layers from rng, on x of (3, 6, 5, 3); each is followed by global average pooling and a linear layer
NETWORKS = {
    "convolution": lambda rng: (Conv2d(3, 5, 3, 2, 1, rng=rng), *head(5, rng)),
    "batch normalisation": lambda rng: (BatchNorm2d(3), ReLU(), *head(3, rng)),
    "two batch normalisations": lambda rng: (BatchNorm2d(3), Conv2d(3, 4, 3, rng=rng), BatchNorm2d(4), *head(4, rng)),
    "layer normalisation": lambda rng: (Conv2d(3, 5, 1, rng=rng), LayerNorm(5), ReLU(), *head(5, rng)),
    "group normalisation": lambda rng: (Conv2d(3, 6, 1, rng=rng), GroupNorm(2, 6), Bias(), ReLU(), *head(6, rng)),
    "residual sums": lambda rng: (Conv2d(3, 4, 1, rng=rng), Residual(Sequential(
        Bias(4), Conv2d(4, 4, 3, 1, 1, rng=rng), GELU(), Scale())), Scale(4), *head(4, rng)),
    "activations": lambda rng: (Conv2d(3, 4, 3, rng=rng), GELU(), Conv2d(4, 4, 1, rng=rng), SiLU(), Conv2d(4, 4, 1, rng=rng),
                                LeakyReLU(0.2), *head(4, rng)),
    "pooling": lambda rng: (Conv2d(3, 4, 3, 1, 1, rng=rng), MaxPool2d(2, 1), BatchNorm2d(4), AvgPool2d(2), Flatten(),
                            Linear(16, 4, rng=rng)),
    "dropout": lambda rng: (Conv2d(3, 4, 3, rng=rng), Dropout(0.4, rng=np.random.default_rng(5)), BatchNorm2d(4),
                            *head(4, rng)),
    "basic blocks": lambda rng: (BasicBlock(3, 3, rng=rng), BasicBlock(3, 4, 2, "A", rng=rng), BasicBlock(4, 5, 2, rng=rng),
                                 *head(5, rng)),
    "bottlenecks": lambda rng: (Bottleneck(3, 2, 2, rng=rng), Bottleneck(8, 2, rng=rng), *head(8, rng)),
    "plain blocks": lambda rng: (PlainBlock(3, 4, rng=rng), PlainBlock(4, 5, 2, rng=rng), *head(5, rng)),
}
LOSSES = {
    "cross-entropy": lambda n, rng: (CrossEntropyLoss(0.1), rng.integers(0, 4, n)),
    "mse": lambda n, rng: (MSELoss(), rng.standard_normal((n, 4))),
}


def gradient(network, loss, x, target):
    """By the layers' own backward passes: (P,)."""
    state = LayerState(network)
    network.zero_grad()
    loss.forward(network.forward(x), target)
    network.backward(loss.backward())
    state.restore()
    made = np.concatenate([parameter.grad.ravel() for parameter in network.parameters()])
    network.zero_grad()
    return made


def differenced(network, loss, x, target, v, step):
    """(g(w + step v) - g(w - step v)) / 2 step."""
    starts = [parameter.data.copy() for parameter in network.parameters()]
    moves, sides = LossHessian(network, loss, x, target).split(v), []
    for signed in (step, -step):
        for parameter, start, move in zip(network.parameters(), starts, moves, strict=True):
            parameter.data[...] = start + signed * move
        sides.append(gradient(network, loss, x, target))
    for parameter, start in zip(network.parameters(), starts, strict=True):
        parameter.data[...] = start
    return (sides[0] - sides[1]) / (2 * step)


def drawn(make, loss, rng, training=True):
    network = randomise_parameters(Sequential(*make(rng)).astype(np.float64), rng).train(training)
    return network, *LOSSES[loss](3, rng), distinct_nonzero((3, 6, 5, 3), rng)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("training", [True, False])
def test_product_is_the_change_of_the_gradient(name, loss, training, rng):
    network, loss, target, x = drawn(NETWORKS[name], loss, rng, training)
    H = LossHessian(network, loss, x, target)
    u, v = rng.standard_normal((2, H.size))
    value, g, Hv = H.product(v)
    state = LayerState(network)
    assert value == pytest.approx(loss.forward(network.forward(x), target), rel=1e-13)
    state.restore()
    assert relative_error(g, gradient(network, loss, x, target)) < 1e-13
    assert relative_error(Hv, differenced(network, loss, x, target, v, 1e-7)) < 1e-6
    assert u @ Hv == pytest.approx(v @ (H @ u), rel=1e-12, abs=1e-12 * np.linalg.norm(u) * np.linalg.norm(Hv))


@pytest.mark.parametrize("model", ["resnet20", "plain20"])
def test_whole_network(model, rng):
    network = randomise_parameters(build_model(model, rng=rng).astype(np.float64), rng)
    x, target, loss = distinct_nonzero((4, 8, 8, 3), rng), rng.integers(0, 10, 4), CrossEntropyLoss()
    H = LossHessian(network, loss, x, target)
    u, v = rng.standard_normal((2, H.size))
    _, g, Hv = H.product(v)
    assert relative_error(g, gradient(network, loss, x, target)) < 1e-12
    assert relative_error(Hv, differenced(network, loss, x, target, v, 1e-8)) < 1e-6
    assert abs(u @ Hv - v @ (H @ u)) < 1e-12 * np.linalg.norm(u) * np.linalg.norm(Hv)


@pytest.mark.parametrize(("kind", "name"), [(Conv2d, "two batch normalisations"), (Linear, "convolution"),
                                            (LayerNorm, "layer normalisation"), (BatchNorm2d, "basic blocks"),
                                            (ReLU, "basic blocks"), (GELU, "activations"),
                                            (SiLU, "activations"), (LeakyReLU, "activations"),
                                            (GroupNorm, "group normalisation"),
                                            (Scale, "residual sums"), (Bias, "residual sums"), (Residual, "residual sums"),
                                            (MaxPool2d, "pooling")])
def test_a_rule_that_forgets_the_change_is_caught(kind, name, rng, monkeypatch):
    """dx' = 0 in one kind of layer: the product is no longer the difference, nor symmetric."""
    right = hessian.RULES[kind]

    def wrong(layer, x, v, tangents, sums):
        y, change, back = right(layer, x, v, tangents, sums)

        def forgetful(g, dg):
            dx, _ = back(g, dg)
            return dx, 0 * dx

        return y, change, forgetful

    monkeypatch.setitem(hessian.RULES, kind, wrong)
    before = {Linear: (Linear(3, 3, rng=rng), ReLU())}.get(kind, ())
    make = NETWORKS[name]
    if before:
        def make(rng):
            return Conv2d(3, 3, 1, rng=rng), GlobalAvgPool2d(), *before, Linear(3, 4, rng=rng)
    network, loss, target, x = drawn(make, "cross-entropy", rng)
    H = LossHessian(network, loss, x, target)
    u, v = rng.standard_normal((2, H.size))
    assert relative_error(H @ v, differenced(network, loss, x, target, v, 1e-7)) > 1e-3
    assert abs(u @ (H @ v) - v @ (H @ u)) > 1e-6 * np.linalg.norm(u) * np.linalg.norm(H @ v)


def test_every_layer_has_a_second_rule():
    assert set(hessian.RULES) >= {kind for kind in RULES if kind.__name__ != "LossLayer"}


def test_the_network_stays_as_it_was(rng):
    network, loss, target, x = drawn(NETWORKS["dropout"], "mse", rng)
    before, draws = network.state_dict(), network[1].rng.bit_generator.state
    H = LossHessian(network, loss, x, target)
    v = rng.standard_normal(H.size)
    assert np.array_equal(H @ v, H @ v), "dropout drops the same every time"
    assert all(np.array_equal(before[name], array) for name, array in network.state_dict().items())
    assert network[1].rng.bit_generator.state == draws
    assert not any(parameter.grad.any() for parameter in network.parameters())


def test_bad_input_is_one_sentence(rng):
    network, loss, target, x = drawn(NETWORKS["convolution"], "cross-entropy", rng)
    with pytest.raises(UserError, match=r"vectors of shape \(164,\), one number a weight, got \(3,\)"):
        LossHessian(network, loss, x, target).product(np.ones(3))
    with pytest.raises(UserError, match=r"Conv2d expects x of shape \(N, H, W, 3\)"):
        LossHessian(network, loss, x[..., :2], target)
    with pytest.raises(UserError, match="expects 3 integer targets"):
        LossHessian(network, loss, x, target[:2])


# --- eigenvalues ---


def test_top_eigenvalue_is_that_of_the_whole_hessian(rng):
    network, loss, target, x = drawn(NETWORKS["layer normalisation"], "cross-entropy", rng)
    H = LossHessian(network, loss, x, target)
    whole = np.stack([H @ unit for unit in np.eye(H.size)], 1)
    assert np.abs(whole - whole.T).max() < 1e-13 * np.abs(whole).max()
    values, vectors = np.linalg.eigh(whole)
    found = lanczos(H, H.size, rng, tolerance=1e-8)
    assert found.top == pytest.approx(values[-1], rel=1e-10)
    assert abs(found.vector @ vectors[:, -1]) == pytest.approx(1, abs=1e-6)
    assert found.residual <= 1e-8 * found.top
    assert np.linalg.norm(H @ found.vector - found.top * found.vector) == pytest.approx(found.residual, abs=1e-12)
    assert values[0] - 1e-12 <= found.bottom <= values[-1] and found.products < H.size
    again = lanczos(H, H.size, rng, found.vector, tolerance=1e-6)
    assert again.products == 1 and again.top == pytest.approx(found.top, rel=1e-10)


@pytest.mark.parametrize("values", [[3.0], [-2.0, -5.0, -1.0], [4.0, 4.0, 4.0, 1.0], np.linspace(-9, 7, 30)])
def test_lanczos_on_known_spectra(values, rng):
    rotation, _ = np.linalg.qr(rng.standard_normal((len(values),) * 2))
    found = lanczos(rotation @ np.diag(values) @ rotation.T, len(values), rng, tolerance=1e-10)
    assert found.top == pytest.approx(max(values), abs=1e-9)
    assert np.linalg.norm(found.vector) == pytest.approx(1)
    assert found.products <= len(values)


def test_lanczos_says_when_it_has_not_converged(rng):
    values = np.linspace(0.999, 1, 200)
    found = lanczos(np.diag(values), 200, rng, tolerance=1e-12, most=5)
    assert found.products == 5 and found.residual > 1e-12 and found.top < 1


def test_lanczos_refuses_what_is_not_finite(rng):
    with pytest.raises(UserError, match="the Hessian times a vector is not finite"):
        lanczos(np.diag([1.0, np.inf]), 2, rng)


# --- along training ---


def test_sharpness_along_training_follows_gradient_descent(rng):
    x, target = small_batch(10, 0)
    assert x.shape == (10, 16, 16, 3) and sorted(target) == list(range(10))

    def tiny():
        rng = np.random.default_rng(3)
        return Sequential(Conv2d(3, 6, 3, 2, rng=rng), BatchNorm2d(6), ReLU(), GlobalAvgPool2d(), Linear(6, 10, rng=rng))

    network, twin = tiny(), tiny()
    rows = list(sharpness_along_training(network, x, target, 0.1, 6, 3, 0))
    assert [row["step"] for row in rows] == [0, 3, 6]
    loss = CrossEntropyLoss()
    for step in range(7):
        if step % 3 == 0:
            row = rows[step // 3]
            assert row["loss"] == pytest.approx(loss.forward(twin.forward(x), target), rel=1e-4)
            H = LossHessian(twin, loss, x, target)
            assert row["top"] == pytest.approx(lanczos(H, H.size, rng, tolerance=1e-4, most=100).top, rel=0.03)
            assert row["bottom"] < row["top"] and row["products"] >= 1
        g = gradient(twin, loss, x, target)
        for parameter, part in zip(twin.parameters(), LossHessian(twin, loss, x, target).split(g), strict=True):
            parameter.data -= np.float32(0.1) * part
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize(("arguments", "sentence"), [
    ((0.0, 5, 2), "learning rate 0.0 is not above 0"),
    ((float("nan"), 5, 2), "learning rate nan is not above 0"),
    ((0.1, 5, 7), "7 measurements along 5 steps cannot be made: expected 2 to steps"),
    ((0.1, 0, 2), "2 measurements along 0 steps"),
])
def test_sharpness_refuses(arguments, sentence):
    x, target = small_batch(10, 0)
    with pytest.raises(UserError, match=sentence):
        sharpness_along_training(small_network(8, False, 0), x, target, *arguments, 0)


def test_a_loss_that_overflows_is_one_sentence():
    x, target = small_batch(10, 0)
    x = x[:, ::4, ::4]
    with pytest.raises(UserError, match=r"the loss became (nan|inf) at step \d with learning rate 1e\+30: choose a lower"):
        list(sharpness_along_training(small_network(8, True, 0), x, target, 1e30, 5, 2, 0))
    with pytest.raises(UserError, match=r"the curvature overflows at step 1 with learning rate 1e\+17: choose a lower one"):
        list(sharpness_along_training(small_network(8, True, 0), x, target, 1e17, 1, 2, 0))
    with pytest.raises(UserError, match="depth 9 is no ResNet of this family"):
        small_network(9, False, 0)
    with pytest.raises(UserError, match="seed -1 is negative"):
        small_network(8, False, -1)
    with pytest.raises(UserError, match="4 images leave classes without one"):
        small_batch(4, 0)
