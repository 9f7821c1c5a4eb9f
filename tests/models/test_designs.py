"""ResNets by their numbers: sizes that were published, blocks of every kind, and what does not go together."""
import runpy

import numpy as np
import pytest
from conftest import relative_error
from paths import EXAMPLES

import minires
from minires.errors import UserError
from minires.interop.torch import load_torch_weights
from minires.layer import Sequential, inference_mode
from minires.layers import BatchNorm2d, Conv2d, GroupNorm, LayerNorm, ReLU, Residual
from minires.losses import CrossEntropyLoss
from minires.models import build_model
from minires.models.blocks import BLOCKS
from minires.study import check_gradients, distinct_nonzero, randomise_parameters
from minires.study.summary import count_parameters, summarise

CIFAR = {"blocks": (2, 2, 2), "channels": (16, 32, 64)}
SMALL = {"blocks": (1, 1), "channels": (4, 8)}
# A twin of each size outside this project: torchvision's, and those of the wide networks' reference implementation.
SIZES = {
    "resnet18": (("resnet18", 1000, None, "imagenet"), {}, 11_689_512),
    "resnet34": (("resnet34", 1000, None, "imagenet"), {}, 21_797_672),
    "resnet50": (("resnet50", 1000, None, "imagenet"), {}, 25_557_032),
    "resnet101": (("resnet101", 1000, None, "imagenet"), {}, 44_549_160),
    "resnet152": (("resnet152", 1000, None, "imagenet"), {}, 60_192_808),
    "wide 16-8": (("resnet",), {**CIFAR, "block": "preactivation", "width": 8}, 10_961_370),
    "wide 28-10": (("resnet",), {**CIFAR, "blocks": (4, 4, 4), "block": "preactivation", "width": 10}, 36_479_194),
    "2, 2, 2 with projections": (("resnet",), CIFAR, 172_506 + 16 * 32 + 32 * 64 + 2 * (32 + 64)),
}


@pytest.fixture
def weights_of_zero(monkeypatch):
    """To draw sixty million random numbers takes its time."""
    monkeypatch.setattr("minires.layers.conv.he_normal", lambda shape, fan, rng: np.zeros(shape, np.float32))


@pytest.mark.parametrize("name", SIZES)
def test_parameters(name, weights_of_zero):
    arguments, design, size = SIZES[name]
    assert count_parameters(build_model(*arguments, **design)) == size


def test_the_smallest_cifar_network():
    """Depth 14: output (1, 10) for (1, 32, 32, 3); multiply-adds by hand, a third of what a block more a stage would add."""
    model = build_model("resnet", **CIFAR).eval()
    with inference_mode():
        assert model.forward(np.ones((1, 32, 32, 3), np.float32)).shape == (1, 10)
    stem, stage = 32 * 32 * 9 * 3 * 16, 32 * 32 * 9 * 16 * 16  # a 3x3 convolution of any stage inside costs as much
    halved = stage // 2  # the first convolution of the second and the third stage
    projections = 16 * 16 * 16 * 32 + 8 * 8 * 32 * 64
    assert sum(row.multiply_adds for row in summarise(model, 32)) == stem + 10 * stage + 2 * halved + projections + 640
    assert count_parameters(build_model("resnet14", shortcut="B")) == count_parameters(model)
    assert count_parameters(build_model("resnet8")) == 78_042 - 16 * 32 - 32 * 64 - 2 * (32 + 64)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_makes_a_network(block, stem, rng):
    """Planned as by its layers, forward and backward, with any weights, on an image of odd size."""
    x, target = rng.standard_normal((4, 17, 15, 3)), rng.integers(0, 10, 4)
    own, planned = (randomise_parameters(build_model("resnet", block=block, stem=stem, dropout=0.2, rng=1, **SMALL)
                                         .astype(np.float64), np.random.default_rng(2)) for _ in range(2))
    own_loss = CrossEntropyLoss()
    value = own_loss.forward(own.forward(x), target)
    own.backward(own_loss.backward())
    step = minires.compile(planned, CrossEntropyLoss())
    found, _ = step(x, target)
    assert step.opaque == [] and found == pytest.approx(value, rel=1e-10)
    for mine, other in zip(planned.parameters(), own.parameters(), strict=True):
        assert np.abs(other.grad).max() > 0 and relative_error(mine.grad, other.grad) < 1e-9


@pytest.mark.parametrize(("norm", "kind"), [("batch", BatchNorm2d), ("layer", LayerNorm), ("group", GroupNorm)])
def test_norms(norm, kind, rng):
    model = build_model("resnet", norm=norm, rng=rng, **SMALL)
    norms = [layer for _, layer in model.named_layers() if isinstance(layer, BatchNorm2d | LayerNorm | GroupNorm)]
    assert len(norms) == 6 and all(isinstance(layer, kind) for layer in norms)
    assert model.forward(rng.standard_normal((2, 8, 8, 3)).astype(np.float32)).shape == (2, 10)


def test_groups_have_sixteen_channels_where_that_divides():
    groups = {C: build_model("resnet", blocks=(1,), channels=(C,), norm="group").bn1.num_groups for C in (4, 16, 32, 40, 64)}
    assert groups == {4: 1, 16: 1, 32: 2, 40: 2, 64: 4}


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_zero_initialised_last_normalisation(block, rng):
    model = build_model("resnet", blocks=(2,), channels=(16,), block=block, zero_init_residual=True, rng=rng)
    last = "bn2" if block == "basic" else "bn3"
    assert not any(getattr(each, last).weight.data.any() for each in model.layer1)
    assert all((each.bn1.weight.data == 1).all() for each in model.layer1)
    x = np.abs(rng.standard_normal((2, 4, 4, model.layer1[1].conv1.in_channels))).astype(np.float32)
    np.testing.assert_array_equal(model.layer1[1].forward(x), x)


@pytest.mark.parametrize("block", ["skipinit", "fixup"])
def test_blocks_without_normalisation_begin_as_their_shortcuts(block, rng):
    """So that the signal does not grow with depth; without either it does."""
    x = np.abs(rng.standard_normal((2, 4, 4, 8))).astype(np.float32)
    np.testing.assert_array_equal(BLOCKS[block].make(8, 8, rng=rng).forward(x), x)
    deep = {kind: Sequential(*(BLOCKS[kind].make(8, 8, rng=rng) for _ in range(30))).forward(x)
            for kind in (block, "unnormalised")}
    np.testing.assert_array_equal(deep[block], x)
    assert deep["unnormalised"].std() > 100 * x.std()  # of 40 draws 440 times at least, 3,000 in the middle


def test_fixup_scales_by_depth_and_begins_with_equal_logits(rng):
    shallow, deep = (build_model("resnet", blocks=(n,), channels=(16,), block="fixup", rng=0) for n in (1, 16))
    first = [model.layer1[0][0].branch[1].weight.data.std() for model in (shallow, deep)]
    assert first[0] == pytest.approx(4 * first[1], rel=0.1)
    assert not deep.forward(rng.standard_normal((1, 8, 8, 3)).astype(np.float32)).any()


def test_dropout_stands_in_front_of_the_last_convolution_and_draws_no_weights(rng):
    for block in ("basic", "bottleneck", "preactivation", "skipinit"):
        plain, dropped = (build_model("resnet", block=block, dropout=p, rng=0, **SMALL) for p in (0.0, 0.5))
        assert all(np.array_equal(a.data, b.data) for a, b in zip(plain.parameters(), dropped.parameters(), strict=True))
        kinds = [type(layer).__name__ for _, layer in dropped.layer1.named_layers()]
        assert kinds[kinds.index("Dropout") + 1] == "Conv2d" and "Conv2d" not in kinds[kinds.index("Dropout") + 2:][:2]


def test_torchvisions_names():
    """Their keys, and weights under them that torch computes with: the same logits."""
    torch = pytest.importorskip("torch")
    from torch_resnet import BasicBlock, Bottleneck, ResNet, from_torch, to_torch

    x = np.random.default_rng(0).standard_normal((2, 33, 40, 3)).astype(np.float32)
    one = {"blocks": (1, 1, 1, 1), "channels": (64, 128, 256, 512), "block": "bottleneck"}
    for ours, design, block, blocks in (("resnet18", {}, BasicBlock, (2, 2, 2, 2)), ("resnet", one, Bottleneck, (1,) * 4)):
        module = ResNet(block, blocks, (64, 128, 256, 512), "B", "imagenet", 7).eval()
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if name.endswith("running_var"):
                    buffer.uniform_(0.5, 2)
        state = {name.replace("shortcut", "downsample"): tensor for name, tensor in module.state_dict().items()}
        assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight",
                "layer2.0.downsample.1.running_var", "layer4.0.bn2.bias", "fc.weight", "fc.bias"} <= state.keys()
        model = load_torch_weights(build_model(ours, 7, stem="imagenet", **design), state).eval()
        assert relative_error(model.forward(x), from_torch(module(to_torch(x)))) < 1e-4


MISTAKES = {
    "a stage too many": ({"blocks": (1, 1), "channels": (4,)}, r"blocks \(1, 1\) and channels \(4,\) do not fit"),
    "no stage": ({"blocks": (), "channels": ()}, "do not fit"),
    "no blocks": ({"blocks": (0,), "channels": (4,)}, "must be an int of at least 1 and at most 1,048,576, got 0"),
    "a block": ({**SMALL, "block": "cubic"}, "unknown block 'cubic': choose one of basic, bottleneck"),
    "a norm": ({**SMALL, "norm": "instance"}, "unknown norm 'instance': choose batch, layer or group"),
    "norms": ({**SMALL, "norm": ["batch"]}, r"unknown norm \['batch'\]: choose batch"),
    "a norm where none is": ({**SMALL, "block": "fixup", "norm": "group"}, "fixup has no normalisation, got norm 'group'"),
    "nothing to start at zero": ({**SMALL, "block": "skipinit", "zero_init_residual": True}, "blocks that end in a norm"),
    "no channels": ({"blocks": (1,)}, "resnet needs blocks and channels"),
    "numbers for lists": ({"blocks": 2, "channels": 16}, "blocks 2 and channels 16 do not fit: expected two lists"),
    "arrays": ({"blocks": np.array([1, 1]), "channels": np.array([4, 8])}, r"blocks array\(\[1, 1\]\) .* two lists"),
    "a list of blocks": ({**SMALL, "block": ["basic"]}, r"unknown block \['basic'\]: choose one of basic"),
    "a shortcut that is not used": ({**SMALL, "block": "plain", "shortcut": "Z"}, "has no shortcuts, got shortcut 'Z'"),
    "a shortcut": ({**SMALL, "shortcut": "Z"}, "unknown shortcut 'Z': choose A or B"),
    "a stem": ({**SMALL, "stem": 3}, "stem must be text, got 3"),
    "no dropout": ({**SMALL, "dropout": ""}, "p, the probability of dropping, must be a number"),
    "a word": ({**SMALL, "depth": 20}, "resnet has no depth: its arguments are blocks, channels, num_classes, block"),
    "a width": ({**SMALL, "width": 0}, "width must be an int of at least 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_does_not_go_together(name):
    design, reason = MISTAKES[name]
    with pytest.raises(UserError, match=reason):
        build_model("resnet", **design)


def test_a_named_network_has_its_own_design():
    with pytest.raises(UserError, match="resnet20 has its own blocks: leave that out"):
        build_model("resnet20", blocks=(1,))


def test_a_sum_of_two_shapes_names_the_layer_and_both(rng):
    layer = Residual(Conv2d(3, 4, 3, 2, rng=rng), Conv2d(3, 4, 1, 2, rng=rng))
    with pytest.raises(UserError, match=r"Residual got x of shape \(1, 8, 8, 3\).* \(1, 3, 3, 4\), .* \(1, 4, 4, 4\)"):
        layer.forward(np.ones((1, 8, 8, 3), np.float32))


def test_squeeze_and_excitation_is_a_block_of_ones_own(rng):
    """The example's layer against differences, and its network planned as by its layers."""
    example = runpy.run_path(str(EXAMPLES / "squeeze_and_excitation.py"))
    layer = example["SqueezeExcitation"](3, 1, rng=rng).astype(np.float64)
    assert check_gradients(layer, distinct_nonzero((2, 4, 3, 3), rng), rng).error < 1e-7
    x, target = rng.standard_normal((4, 8, 8, 3)), rng.integers(0, 10, 4)
    models = [build_model("resnet", block=example["block"], rng=1, **SMALL).astype(np.float64) for _ in range(2)]
    loss, step = CrossEntropyLoss(), minires.compile(models[1], CrossEntropyLoss())
    value = loss.forward(models[0].forward(x), target)
    models[0].backward(loss.backward())
    for _ in range(2):
        assert step(x, target)[0] == pytest.approx(value, rel=1e-10)
    assert step.opaque == []
    for mine, other in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert relative_error(mine.grad, other.grad) < 1e-9


def test_frozen_statistics_stay_and_are_used_in_training(rng):
    norm, x = BatchNorm2d(3).astype(np.float64), rng.standard_normal((1, 1, 1, 3))
    norm.frozen = True
    norm.running_var[:] = 4
    np.testing.assert_allclose(norm.forward(x), x / np.sqrt(4 + norm.eps))  # one value a channel is enough
    assert not norm.running_mean.any()
    model = Sequential(Conv2d(3, 3, 3, 1, 1, rng=rng), norm, ReLU()).astype(np.float64)
    step = minires.compile(model, minires.MSELoss())
    x, target = rng.standard_normal((2, 2, 4, 4, 3))
    step(x, target)
    assert not norm.running_mean.any()
    norm.frozen = False  # noticed
    step(x, target)
    assert norm.running_mean.all()
