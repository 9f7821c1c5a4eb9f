"""The residual X-ray: parts add up, paths are the polynomial, cuts cut and heal, and known matrices have their rank."""
from copy import deepcopy

import numpy as np
import pytest

from minires.backends import use_backend
from minires.errors import UserError
from minires.layer import Sequential, inference_mode, listening
from minires.layers import (
    BasicBlock,
    BatchNorm2d,
    Bottleneck,
    Conv2d,
    GlobalAvgPool2d,
    Linear,
    MaxPool2d,
    PlainBlock,
    ReLU,
)
from minires.losses import CrossEntropyLoss
from minires.models import build_model
from minires.models.resnet import ResNet
from minires.study import check_gradients, distinct_nonzero, randomise_parameters
from minires.study.xray import backward_norms, decompose, effective_rank, lesion, lesion_study, observe, plain_twin
from minires.study.xray.gradients import blocks_of, body
from minires.study.xray.report import Order, xray

KINDS = {"identity A": (BasicBlock, "A"), "projection B": (BasicBlock, "B"), "bottleneck B": (Bottleneck, "B"),
         "bottleneck A": (Bottleneck, "A"), "plain": (PlainBlock, None)}
RESIDUAL = [name for name in KINDS if name != "plain"]
NAMES = ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]


class Small(ResNet):
    """Four blocks in two stages, with a stem that may pool."""

    def __init__(self, block, shortcut, rng, pooled=False):
        self.conv1, self.bn1, self.relu = Conv2d(3, 4, 3, 1, 1, bias=False, rng=rng), BatchNorm2d(4), ReLU()
        if pooled:
            self.maxpool = MaxPool2d(3, 2, 1)
        self.layer1, self.layer2 = (
            Sequential(block(inside, channels, stride, shortcut, rng=rng),
                       block(channels * block.expansion, channels, 1, shortcut, rng=rng))
            for inside, channels, stride in ((4, 4, 1), (4 * block.expansion, 8, 2)))
        self.pool = GlobalAvgPool2d()
        self.fc = Linear(8 * block.expansion, 5, rng=rng)


def small(kind, rng, training=True, pooled=False):
    network = Small(*KINDS[kind], rng, pooled).astype(np.float64)
    return randomise_parameters(network, rng).train(training)


@pytest.fixture
def batch(rng):
    return rng.standard_normal((3, 8, 8, 3)), np.array([0, 3, 4])


def measured(network, batch):
    """(parts, paths, {block: whole dL/dx}, {k: G_k})."""
    whole, by_length = {}, {}
    backward_norms(network, *batch, whole)
    return *decompose(network, *batch, whole, keep=by_length), whole, by_length


def loss_gradient(network, batch):
    loss = CrossEntropyLoss()
    value = loss.forward(network.forward(batch[0]), batch[1])
    return value, loss.backward()


def from_stem(network, x):
    """The stem's output."""
    return network.relu.forward(network.bn1.forward(network.conv1.forward(x)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_and_the_paths_add_up_to_the_gradient(kind, training, batch, rng, backend):
    network = small(kind, rng, training)
    parts, paths, whole, by_length = measured(network, batch)
    assert [part.block for part in parts] == NAMES
    for part in parts:
        assert part.error < 1e-10
        assert part.whole == pytest.approx(np.linalg.norm(whole[part.block]))
        cosine = 0 if part.cosine is None else part.cosine
        squared = part.identity ** 2 + part.branch ** 2 + 2 * cosine * part.identity * part.branch
        assert part.whole ** 2 == pytest.approx(squared)
        assert part.share * part.whole ** 2 == pytest.approx(part.identity ** 2 + cosine * part.identity * part.branch)
    assert paths.error < 1e-10
    assert sum(paths.share) == pytest.approx(1)
    first = whole["layer1.0"]
    np.testing.assert_allclose(sum(by_length.values()), first, rtol=0, atol=1e-10 * np.abs(first).max())
    for k, part in by_length.items():
        assert paths.norm[k] == pytest.approx(np.linalg.norm(part))
        assert paths.share[k] == pytest.approx(np.vdot(part, first) / np.vdot(first, first))
    if kind == "plain":
        assert by_length.keys() == {4} and paths.count == (0, 0, 0, 0, 1)
        assert all(part.identity == 0 and part.cosine is None for part in parts)
    else:
        assert paths.count == (1, 4, 6, 4, 1) and min(paths.norm) > 0
        assert all(part.identity > 0 and part.branch > 0 for part in parts)


def test_the_whole_is_the_derivative_of_the_loss(batch, rng):
    network = small("projection B", rng, pooled=True)
    _, paths, whole, _ = measured(network, batch)
    with use_backend("reference"):
        start = network.maxpool.forward(from_stem(network, batch[0]))
    direction = rng.standard_normal(start.shape)

    def loss(y):
        for name, layer in body(network):
            y = y if name == "maxpool" else layer.forward(y)
        return CrossEntropyLoss().forward(y, batch[1])

    slope = (loss(start + 1e-6 * direction) - loss(start - 1e-6 * direction)) / 2e-6
    assert np.vdot(whole["layer1.0"], direction) == pytest.approx(slope, rel=1e-6)
    assert paths.error < 1e-10


@pytest.mark.parametrize("kind", RESIDUAL)
def test_paths_are_the_coefficients_of_the_polynomial_in_the_branches(kind, batch, rng):
    """Scale every branch's backward by t: the gradient at the stem's output becomes sum_k t^k G_k."""
    network = small(kind, rng)
    *_, by_length = measured(network, batch)
    for t in (0.0, 0.5, 1.0, -2.0):
        _, dy = loss_gradient(network, batch)
        for _, layer in reversed(body(network)):
            if hasattr(layer, "shortcut"):
                g = layer.relu.backward(dy)
                dy = layer.shortcut.backward(g) + t * layer.branch_backward(g)
            else:
                dy = layer.backward(dy)
        expected = sum(t ** k * part for k, part in by_length.items())
        np.testing.assert_allclose(dy, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("kind", RESIDUAL)
def test_the_path_without_branches_is_the_product_of_shortcuts(kind, batch, rng):
    network = small(kind, rng)
    *_, by_length = measured(network, batch)
    _, dy = loss_gradient(network, batch)
    for _, layer in reversed(body(network)):
        dy = layer.shortcut.backward(layer.relu.backward(dy)) if hasattr(layer, "shortcut") else layer.backward(dy)
    np.testing.assert_allclose(by_length[0], dy, rtol=0, atol=1e-12 * np.abs(dy).max())


@pytest.mark.parametrize("part", ["conv1", "shortcut"])  # the last of the branch on the way back, and the shortcut
def test_a_part_that_is_wrong_stops_the_measurement(part, batch, rng):
    network = small("projection B", rng)
    whole = {}
    backward_norms(network, *batch, whole)
    wrong = listening([getattr(network.layer2[0], part)],
                      lambda layer, method, dy, dx: dx * (1 + 1e-4) if method == "backward" else None)
    with wrong, pytest.raises(RuntimeError, match=r"differ from the whole by .* at layer2.0"):
        decompose(network, *batch, whole)


def test_norms_of_weights_are_those_of_a_training_step(batch, rng):
    network = small("projection B", rng)
    norms = backward_norms(deepcopy(network), *batch)
    loss, dy = loss_gradient(network, batch)
    network.backward(dy)
    assert norms.loss == pytest.approx(loss)
    assert list(norms.layers)[:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"] and "fc" in norms.layers
    for name, parameter in network.named_parameters():
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and parameter.data.ndim > 1:
            assert norms.layers[layer] == pytest.approx(np.linalg.norm(parameter.grad))


@pytest.mark.parametrize(("kind", "part"), [(kind, part) for kind in KINDS for part in ("branch", "shortcut")
                                            if (kind, part) != ("plain", "shortcut")])
def test_a_block_with_a_lesion_is_what_it_says_and_its_backward_the_derivative(kind, part, rng):
    block = small(kind, rng).layer2[0]
    x = distinct_nonzero((2, 4, 4, 4 * type(block).expansion), rng)
    before, parameters = block.forward(x), block.state_dict()
    block.forget()
    with lesion(block, part):
        y = block.forward(x)
        check_gradients(block, x, rng)
    if part == "shortcut":
        expected = block.branch_forward(x)
    elif kind == "plain":
        expected = np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2)))
    else:
        expected = block.shortcut.forward(x)
    np.testing.assert_allclose(y, np.maximum(expected, 0), atol=1e-12)
    assert not np.allclose(y, before)
    block.load_state_dict(parameters)
    np.testing.assert_allclose(block.forward(x), before, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["projection B", "plain"])
def test_the_lesion_study_is_the_loss_with_each_cut(kind, training, batch, rng):
    network = small(kind, rng, training)
    state = network.state_dict()
    study = lesion_study(network, *batch)
    for name, array in network.state_dict().items():
        np.testing.assert_array_equal(array, state[name])
    cuts = [(name, part) for name in NAMES for part in (("branch",) if kind == "plain" else ("branch", "shortcut"))]
    assert [(cut.block, cut.part) for cut in study.lesions] == cuts

    def loss():
        with inference_mode():
            y = network.forward(batch[0])
        return CrossEntropyLoss().forward(y, batch[1]), np.mean(y.argmax(1) == batch[1])

    assert (study.loss, study.accuracy) == pytest.approx(loss())
    for cut in study.lesions:
        with lesion(blocks_of(network)[cut.block], cut.part):
            assert (cut.loss, cut.accuracy) == pytest.approx(loss())
        assert cut.change == pytest.approx(cut.loss - study.loss) and abs(cut.change) > 1e-6
    assert study.loss == pytest.approx(loss()[0])


def test_a_lesion_is_undone_after_an_error_too(rng):
    block = BasicBlock(4, 4, rng=rng)
    with pytest.raises(KeyError), lesion(block, "branch"):
        raise KeyError
    block.forward(np.ones((1, 2, 2, 4), np.float32))
    assert block.conv1._kept != "nothing yet", "the branch runs again"


@pytest.mark.parametrize(("block", "part"), [(PlainBlock, "shortcut"), (BasicBlock, "relu")])
def test_a_part_that_is_not_there_cannot_be_cut(block, part, rng):
    with pytest.raises(UserError, match=f"has no part '{part}' to cut: choose"), lesion(block(4, 4, rng=rng), part):
        pass


def test_effective_rank_of_known_matrices(rng):
    column, row = rng.standard_normal((50, 1)), rng.standard_normal((1, 6))
    orthogonal = np.linalg.qr(rng.standard_normal((50, 6)))[0]
    assert effective_rank(column @ row) == pytest.approx(1, abs=1e-9)
    assert effective_rank(3 * orthogonal) == pytest.approx(6)
    assert effective_rank(orthogonal * [2, 0, 2, 0, 0, 2]) == pytest.approx(3)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert effective_rank(orthogonal[:, :2] * [3, 1]) == pytest.approx(np.exp(entropy))
    assert effective_rank(np.zeros((5, 3))) == 0
    assert effective_rank(rng.standard_normal((3, 7))) <= 3  # fewer rows than channels


@pytest.mark.parametrize("kind", ["projection B", "plain"])
def test_what_is_observed_is_what_the_layers_put_out(kind, batch, rng):
    network = small(kind, rng)
    network.layer1[1].bn1.bias.data[:3] = -1e3  # three of four channels never fire
    layers, branches = observe(deepcopy(network), batch[0])
    found = {layer.layer: layer for layer in layers}
    assert list(found)[:4] == ["conv1", "bn1", "relu", "layer1.0.conv1"] and list(found)[-1] == "fc"
    assert found["layer1.1.relu1"].dead == 0.75
    x = network.layer1[0].forward(from_stem(network, batch[0]))
    block = network.layer1[1]
    F, y = block.branch_forward(x), block.forward(x)
    output = found["layer1.1.relu"]
    assert (output.kind, output.mean, output.std) == ("ReLU", pytest.approx(y.mean()), pytest.approx(y.std()))
    assert output.active == pytest.approx((y > 0).mean())
    assert found["layer1.1.bn2"].dead is None and found["layer1.1.bn2"].std == pytest.approx(F.std())
    branch = branches[1]
    assert (branch.block, branch.channels) == ("layer1.1", 4)
    singular = np.linalg.svd(F.reshape(-1, 4), compute_uv=False)
    p = singular / singular.sum()
    assert branch.effective_rank == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert branch.branch == pytest.approx(np.sqrt(np.mean(F ** 2)))
    if kind == "plain":
        assert branch.shortcut is None and branch.ratio is None
    else:
        assert branch.ratio == pytest.approx(branch.branch / np.sqrt(np.mean(x ** 2)))
        S = network.layer2[0].shortcut.forward(y)
        assert branches[2].shortcut == pytest.approx(np.sqrt(np.mean(S ** 2)))


def test_the_plain_twin_has_the_same_weights_and_no_shortcut():
    residual, plain = (build_model(name, rng=np.random.default_rng(3)) for name in ("resnet20", "plain20"))
    twin, expected = plain_twin(residual), plain.state_dict()
    assert twin.state_dict().keys() == expected.keys()
    for name, array in twin.state_dict().items():
        np.testing.assert_array_equal(array, expected[name])
    assert all(isinstance(block, PlainBlock) for block in blocks_of(twin).values())
    twin.layer1[0].conv1.weight.data[...] = 0
    assert residual.layer1[0].conv1.weight.data.any()


def test_the_twin_of_bottlenecks_is_plain_too(batch, rng):
    network = small("bottleneck B", rng)
    twin = plain_twin(network)
    logits = twin.forward(batch[0])
    y = from_stem(network, batch[0])
    for _, layer in body(network):
        y = layer.relu.forward(layer.branch_forward(y)) if hasattr(layer, "shortcut") else layer.forward(y)
    np.testing.assert_allclose(logits, y, atol=1e-12)


@pytest.mark.parametrize("target", ["speedrun"])
def test_networks_of_other_kinds_are_refused(target):
    with pytest.raises(UserError, match=f"the X-ray looks at .* and {target} is made of something else"):
        xray(Order(target, images=4))
