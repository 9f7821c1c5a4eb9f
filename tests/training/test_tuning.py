"""Fine-tuning: what begins from trained weights, what stays as it is, and what that costs."""
import json

import numpy as np
import pytest
from picture_folders import write_pictures

from minires.backends import use_backend
from minires.errors import UserError
from minires.files import load_tensors, save_tensors
from minires.interop.torch import save_torch_weights
from minires.layers import BatchNorm2d
from minires.losses import CrossEntropyLoss
from minires.models import build_model
from minires.plan import compile
from minires.study import randomise_parameters
from minires.training import load_model, save
from minires.training.tuning import freeze, head_of, take_over


@pytest.fixture(autouse=True)
def reference_kernels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with use_backend("reference"):
        yield


@pytest.fixture
def folder(tmp_path):
    """12 training and 6 test pictures of 40 x 60 pixels in three classes."""
    return write_pictures(tmp_path / "pets", "abc", 12, 6, (40, 60))


def test_all_but_a_last_layer_of_another_size_is_taken_over(rng):
    source = randomise_parameters(build_model("resnet8", 10), rng)
    network = build_model("resnet8", 3, rng=1)
    own = network.state_dict()
    assert take_over(network, source)
    for name, array in network.state_dict().items():
        np.testing.assert_array_equal(array, own[name] if name.startswith("fc.") else source.state_dict()[name])
    same = build_model("resnet8", 10, rng=2)
    assert not take_over(same, source)
    np.testing.assert_array_equal(same.fc.weight.data, source.fc.weight.data)
    assert take_over(same, source, new_head=True)
    with pytest.raises(UserError, match=r"do not fit this ResNet: missing|unexpected"):
        take_over(build_model("resnet14", 3), source)
    assert head_of(source) == ("fc", ["fc.weight", "fc.bias"])


def test_a_frozen_beginning_costs_no_backward_pass_and_stays(rng):
    def step(patterns):
        network = randomise_parameters(build_model("resnet8", 4, rng=0), np.random.default_rng(1))
        freeze(network, patterns)
        return network, compile(network, CrossEntropyLoss())

    x, target = rng.standard_normal((6, 12, 12, 3)).astype(np.float32), rng.integers(0, 4, 6)
    for patterns, moving in (((), None), (("*",), ("fc",)), (("conv1.*", "bn1.*", "layer[12].*"), ("fc", "pool", "layer3"))):
        network, planned = step(patterns)
        before = network.state_dict()
        value, _ = planned(x, target)
        plan = planned.plan(x.shape)
        back = [each.layer for each in plan.steps if each.backward]
        if moving:
            assert back and all(layer.startswith(moving) for layer in back), back
        # Layer by layer, the same numbers.
        other = step(patterns)[0]
        loss = CrossEntropyLoss()
        assert loss.forward(other.forward(x), target) == pytest.approx(value, rel=1e-5)
        other.backward(loss.backward())
        for (name, mine), theirs in zip(network.named_parameters(), other.parameters(), strict=True):
            np.testing.assert_allclose(mine.grad, theirs.grad, rtol=2e-3, atol=2e-5)
            assert mine.frozen == (bool(moving) and not name.startswith(moving)) and mine.grad.any() != mine.frozen
        for name, layer in network.named_layers():
            if isinstance(layer, BatchNorm2d):
                moved = not np.array_equal(layer.running_mean, before[f"{name}.running_mean"])
                assert moved != layer.weight.frozen


def test_frozen_operations_are_a_fraction_of_a_whole_steps():
    def moved(patterns):
        network = build_model("resnet20")
        freeze(network, patterns)
        return compile(network, CrossEntropyLoss()).plan((64, 32, 32, 3)).totals()

    whole, frozen = (float(moved(patterns).split(" GFLOP")[0].split()[-1]) for patterns in ((), ("*",)))
    assert frozen < 0.4 * whole


def test_training_from_a_run_of_ours(command, folder, tmp_path, rng):
    source = randomise_parameters(build_model("resnet", 5, blocks=(1, 1), channels=(4, 8), shortcut="A"), rng)
    save(source, "old.safetensors", classes="vwxyz", image_size=16, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25])
    code, out, error = command("train", "--from", "old.safetensors", "--freeze", "*", "--head", 3, "--dataset", folder,
                               "--epochs", 2, "--batch-size", 6, "--lr", 0.01, "--out", "new")
    assert (code, error) == (0, "")
    assert "begins from" in out and "a new last layer, fc, for 3 classes" in out
    assert "standardised as for those weights, with mean 0.4, 0.5, 0.6 and std 0.2, 0.3, 0.25" in out
    network, card = load_model("new")
    assert (card.mean, card.image_size, card.classes, card.shortcut) == ([0.4, 0.5, 0.6], 16, ["a", "b", "c"], "A")
    assert card.options["blocks"] == [1, 1]
    for name, array in source.state_dict().items():
        if not name.startswith("fc."):
            np.testing.assert_array_equal(network.state_dict()[name], array)
    # What was stopped goes on without the weights it began from.
    (tmp_path / "old.safetensors").unlink()
    row = json.loads((tmp_path / "new/metrics.jsonl").read_text().splitlines()[-1])
    code, out, _ = command("eval", "--checkpoint", "new")
    assert code == 0 and f"loss {row['test_loss']:.4f}" in out
    code, _, error = command("train", "--resume", "new")
    assert code == 2 and "is complete after 2 epochs" in error


def test_training_from_published_weights(command, folder, rng):
    source = randomise_parameters(build_model("resnet8", 10, "B"), rng)
    save_torch_weights(source, "theirs.safetensors")
    arguments = ("train", "--from", "theirs.safetensors", "--model", "resnet8", "--shortcut", "B", "--dataset", folder,
                 "--size", 12, "--epochs", 1, "--batch-size", 6)
    code, out, error = command(*arguments, "--out", "new")
    assert code == 0 and "ImageNet's mean 0.485, 0.456, 0.406" in error and "a new last layer, fc, for 3 classes" in out
    about = load_tensors("new/last.safetensors")[1]
    assert about["mean"] == [0.485, 0.456, 0.406] and about["std"] == [0.229, 0.224, 0.225] and about["image_size"] == 12
    code, _, error = command(*arguments, "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2", "--head", 4, "--out", "newer")
    assert code == 2 and error.startswith("minires: error: --head 4 does not fit the data, which has 3 classes: give ")
    code, _, error = command("train", "--from", "theirs.safetensors", "--dataset", folder)
    assert code == 2 and "does not name its network: give --model" in error


def test_weights_that_are_not_finite_are_refused(command):
    model = build_model("resnet8", rng=0)
    model.conv1.weight.data[0, 0, 0, 0] = np.nan
    save_tensors("bad.safetensors", model.state_dict())
    save(model, "bad.safetensors")
    code, _, error = command("train", "--from", "bad.safetensors")
    assert code == 2 and "holds numbers that are not finite, in conv1.weight" in error
