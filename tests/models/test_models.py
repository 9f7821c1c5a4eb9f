"""The networks: published sizes, PyTorch's keys, initial weights, output shapes, wrong arguments."""
import numpy as np
import pytest

from minires.errors import UserError
from minires.layer import inference_mode
from minires.layers import Conv2d
from minires.models import MODELS, build_model

SIZES = {"resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018, "resnet110": 1_727_962}


def parameters(network):
    return sum(p.data.size for p in network.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_cifar_sizes(name, rng):
    """Table 6 of the paper: 0.27M, 0.46M, 0.66M, 0.85M, 1.7M; shortcuts of kind A, and none, have no parameters."""
    assert parameters(build_model(name, rng=rng)) == SIZES[name]
    assert parameters(build_model(name.replace("resnet", "plain"), rng=rng)) == SIZES[name]
    # Two projections: 16 * 32 and 32 * 64 weights, and two vectors of a normalisation each.
    assert parameters(build_model(name, shortcut="B", rng=rng)) == SIZES[name] + 16 * 32 + 32 * 64 + 2 * (32 + 64)


def test_every_model_is_named():
    assert set(MODELS) == {*(f"{kind}{depth}" for kind in ("resnet", "plain") for depth in (8, 14, 20, 32, 44, 56, 110)),
                           *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)), "speedrun"}


@pytest.mark.parametrize(("name", "shortcut", "stem"), [("resnet20", "A", None), ("resnet32", "B", None),
                                                        ("plain20", None, None), ("resnet18", "B", "imagenet"),
                                                        ("resnet50", "B", "cifar")])
def test_keys_are_pytorchs(name, shortcut, stem, rng):
    pytest.importorskip("torch")
    import torch
    from torch_resnet import BasicBlock, Bottleneck, PlainBlock, ResNet, cifar_resnet

    with torch.device("meta"):
        if stem:
            layout = {"resnet18": (BasicBlock, (2, 2, 2, 2)), "resnet50": (Bottleneck, (3, 4, 6, 3))}[name]
            module = ResNet(*layout, (64, 128, 256, 512), shortcut, stem)
        else:
            module = cifar_resnet(int(name[-2:]), shortcut, PlainBlock if name.startswith("plain") else BasicBlock)
    keys = [key for key in module.state_dict() if not key.endswith("num_batches_tracked")]
    ours = list(build_model(name, shortcut=shortcut, stem=stem, rng=rng).state_dict())
    # The order is that of construction, and the modules compared with construct in pairs.
    assert sorted(ours) == sorted(keys)
    assert ours[0] == "conv1.weight" and ours[-1] == "fc.bias" and ours.index("layer1.0.conv1.weight") == 5


def test_initial_weights(rng):
    """He normal over the fan out, without a mean; normalisation at 1 and 0; drawn from the generator."""
    network = build_model("resnet20", rng=rng)
    for name, layer in network.named_layers():
        if isinstance(layer, Conv2d):
            weight, (KH, KW, _, O) = layer.weight.data, layer.weight.data.shape
            deviation = np.sqrt(2 / (KH * KW * O))
            assert abs(weight.std() / deviation - 1) < 5 / np.sqrt(2 * weight.size), name
            assert abs(weight.mean()) < 5 * deviation / np.sqrt(weight.size), name
    assert (network.bn1.weight.data == 1).all() and not network.bn1.bias.data.any()
    same, other = (build_model("resnet20", rng=np.random.default_rng(seed)) for seed in (0, 1))
    assert np.array_equal(same.conv1.weight.data, build_model("resnet20").conv1.weight.data)
    assert not np.array_equal(same.conv1.weight.data, other.conv1.weight.data)


@pytest.mark.parametrize(("name", "stem", "size", "channels"), [
    ("resnet20", None, (32, 32), 3), ("resnet20", None, (17, 31), 3), ("resnet20", None, (4, 4), 1),
    ("plain20", None, (9, 8), 3),
    ("resnet18", "imagenet", (32, 48), 3), ("resnet18", "cifar", (16, 16), 3)])
def test_output_shape(name, stem, size, channels, backend, rng):
    network = build_model(name, 7, stem=stem, in_channels=channels, rng=rng).eval()
    with inference_mode():
        y = network.forward(np.ones((2, *size, channels), np.float32))
    assert y.shape == (2, 7) and np.isfinite(y).all()


@pytest.mark.parametrize(("arguments", "reason"), [
    (("resnet21",), "unknown model 'resnet21': choose one of resnet8, resnet14, resnet20"),
    (("resnet20", 0), "num_classes must be an int of at least 1 and at most 1,048,576, got 0"),
    (("resnet20", 10, "C"), "unknown shortcut 'C'"),
    (("resnet20", 10, None, "imagenet"), "resnet20 has one stem, cifar, got stem 'imagenet'"),
    (("plain20", 10, "A"), "plain20 has no shortcuts, got shortcut 'A'"),
    (("resnet18", 10, None, "large"), "unknown stem 'large': choose cifar or imagenet"),
    (("resnet50", 10, "Z"), "unknown shortcut 'Z'"),
])
def test_wrong_arguments(arguments, reason):
    with pytest.raises(UserError, match=reason):
        build_model(*arguments)
