"""PyTorch weights in and out: every spelling, each error, and the published ResNet-20 to the last image."""
import builtins

import numpy as np
import pytest
from conftest import ON_DEVICE
from safetensors.numpy import save_file

from minires.data.cifar10 import read_records
from minires.errors import UserError
from minires.files import save_tensors
from minires.interop.torch import load_torch_weights, save_torch_weights, to_torch_state_dict
from minires.layer import Sequential, inference_mode
from minires.layers import BasicBlock, Conv2d, Flatten, Linear
from minires.models import build_model
from minires.study import randomise_parameters

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def model(rng):
    return randomise_parameters(build_model("resnet20", shortcut="B", rng=rng), rng)


@pytest.fixture
def fresh():
    return build_model("resnet20", shortcut="B")


@pytest.fixture
def without_torch(monkeypatch):
    right = builtins.__import__

    def no_torch(name, *rest):
        if name == "torch":
            raise ImportError("No module named 'torch'")
        return right(name, *rest)
    monkeypatch.setattr(builtins, "__import__", no_torch)


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_layouts(model):
    state, own = to_torch_state_dict(model), model.state_dict()
    assert list(state) == list(own)
    assert state["conv1.weight"].shape == (16, 3, 3, 3) and state["fc.weight"].shape == (10, 64)
    for o, c, h, w in [(0, 0, 0, 0), (15, 2, 1, 0), (7, 1, 2, 1)]:
        assert state["conv1.weight"][o, c, h, w] == own["conv1.weight"][h, w, c, o]
    assert state["fc.weight"][3, 60] == own["fc.weight"][60, 3]
    assert all(array.flags.c_contiguous for array in state.values())


SPELLINGS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "best_prec1": 91.7, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "both": lambda state: {"model": {"state_dict": state}},
    "module.": lambda state: {f"module.{name}": array for name, array in state.items()},
    "downsample": lambda state: {name.replace("shortcut", "downsample"): array for name, array in state.items()},
    "linear": lambda state: {name.replace("fc.", "linear."): array for name, array in state.items()},
    "batches": lambda state: {**state, "bn1.num_batches_tracked": np.array(7), "layer1.0.bn1.num_batches_tracked": 7},
    "float64": lambda state: {name: array.astype(np.float64) for name, array in state.items()},
    "reordered": lambda state: dict(reversed(state.items())),
    "all": lambda state: {"state_dict": {"module." + name.replace("shortcut", "downsample").replace("fc", "linear"): array
                                         for name, array in state.items()}},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_dict(spelling, model, fresh):
    assert load_torch_weights(fresh, SPELLINGS[spelling](to_torch_state_dict(model))) is fresh
    assert same(fresh, model)
    assert fresh.conv1.weight.data.dtype == np.float32 and fresh.conv1.weight.data.flags.c_contiguous


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("suffix", [".th", ".pth", ".pt"])
def test_torch_file(spelling, suffix, model, fresh, tmp_path):
    torch = pytest.importorskip("torch")

    def tensors(value):
        if isinstance(value, dict):
            return {name: tensors(item) for name, item in value.items()}
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    torch.save(tensors(SPELLINGS[spelling](to_torch_state_dict(model))), tmp_path / f"weights{suffix}")
    load_torch_weights(fresh, str(tmp_path / f"weights{suffix}"))
    assert same(fresh, model)


def test_safetensors_needs_no_torch(model, fresh, tmp_path, without_torch):
    save_torch_weights(model, tmp_path / "weights.safetensors")
    load_torch_weights(fresh, tmp_path / "weights.safetensors")
    assert same(fresh, model)
    named = {f"module.{name}".replace("shortcut", "downsample"): array for name, array in to_torch_state_dict(model).items()}
    save_file(named, tmp_path / "foreign.safetensors", {"note": "not JSON"})
    load_torch_weights(randomise_parameters(fresh, np.random.default_rng(9)), tmp_path / "foreign.safetensors")
    assert same(fresh, model)


def test_own_file_keeps_its_layouts(tmp_path, rng):
    """A 1x1-free square network would fit either way, and be wrong in one: the header decides."""
    network = Sequential(Linear(8, 8, rng=rng))
    save_tensors(tmp_path / "last.safetensors", network.state_dict(), {"model": "mine", "num_classes": 8})
    save_tensors(tmp_path / "theirs.safetensors", network.state_dict())
    assert same(load_torch_weights(Sequential(Linear(8, 8)), tmp_path / "last.safetensors"), network)
    turned = load_torch_weights(Sequential(Linear(8, 8)), tmp_path / "theirs.safetensors")
    assert np.array_equal(turned[0].weight.data, network[0].weight.data.T)


def test_half_precision_tensors(model, fresh):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(array).bfloat16() for name, array in to_torch_state_dict(model).items()}
    load_torch_weights(fresh, state)
    np.testing.assert_allclose(fresh.conv1.weight.data, model.conv1.weight.data, rtol=1e-2)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_pytorch_reads_what_is_written(suffix, model, tmp_path, rng):
    torch = pytest.importorskip("torch")
    from torch_resnet import cifar_resnet

    save_torch_weights(model, tmp_path / f"weights{suffix}")
    if suffix == ".pth":
        state = torch.load(tmp_path / "weights.pth", weights_only=True)
    else:
        from safetensors.torch import load_file
        state = load_file(tmp_path / "weights.safetensors")
    module = cifar_resnet(20, "B")
    module.load_state_dict(state)
    x = rng.standard_normal((3, 32, 32, 3)).astype(np.float32)
    expected = module.eval()(torch.from_numpy(x).permute(0, 3, 1, 2)).detach().numpy()
    np.testing.assert_allclose(model.eval().forward(x), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_every_misfit_is_listed_once(model, fresh):
    state = to_torch_state_dict(model)
    del state["conv1.weight"], state["layer3.2.bn2.running_var"]
    state["conv9.weight"] = np.ones((2, 2), np.float32)
    state["linear.weight"] = state["fc.weight"]
    state["fc.bias"] = np.ones(11, np.float32)
    state["layer1.0.conv1.weight"] = np.ones((3, 3, 16, 16), np.float32)
    before = fresh.state_dict()
    with pytest.raises(UserError) as caught:
        load_torch_weights(fresh, state)
    message = str(caught.value)
    for part in ["do not fit this ResNet", "missing conv1.weight", "missing layer3.2.bn2.running_var",
                 "unexpected conv9.weight", "linear.weight is there twice, as fc.weight",
                 "fc.bias has shape (11,), expected (10,)",
                 "layer1.0.conv1.weight has shape (3, 3, 16, 16), expected (16, 16, 3, 3)"]:
        assert message.count(part) == 1, part
    assert message.count(";") == 5 and "\n" not in message
    assert all(np.array_equal(before[name], array) for name, array in fresh.state_dict().items())


def test_shortcut_a_has_no_parameters(model, rng):
    identity = build_model("resnet20", shortcut="A", rng=rng)
    assert not any("shortcut" in name for name in to_torch_state_dict(identity))
    with pytest.raises(UserError, match=r"unexpected layer2\.0\.shortcut\.0\.weight; unexpected layer2"):
        load_torch_weights(identity, to_torch_state_dict(model))


@pytest.mark.parametrize("name", ["absent.pth", "absent.safetensors", "weights.h5", "."])
def test_absent_or_unknown_file(name, fresh, tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"x")
    with pytest.raises(UserError, match=r"is not a file|neither a safetensors file"):
        load_torch_weights(fresh, tmp_path / name)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "noise", "cut"])
def test_damaged_file(suffix, damage, model, fresh, tmp_path):
    if suffix == ".pth":
        pytest.importorskip("torch")
    path = tmp_path / f"weights{suffix}"
    save_torch_weights(model, path)
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "noise": b"\x07noise" * 99, "cut": content[:len(content) // 2]}[damage])
    with pytest.raises(UserError, match="damaged") as caught:
        load_torch_weights(fresh, path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


class Attack:
    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_is_not_executed(fresh, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": Attack()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="hold more than weights"):
        load_torch_weights(fresh, tmp_path / "weights.pth")
    assert capsys.readouterr().out == ""


def test_not_a_state_dict(fresh, tmp_path):
    with pytest.raises(UserError, match="no weights were found under the keys epoch: expected a state_dict"):
        load_torch_weights(fresh, {"epoch": 3})
    with pytest.raises(UserError, match="a path or a dict of arrays, got ResNet"):
        load_torch_weights(fresh, fresh)
    with pytest.raises(UserError, match=r"missing conv1\.weight"):
        load_torch_weights(fresh, {})
    torch = pytest.importorskip("torch")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="hold a list, expected a state_dict"):
        load_torch_weights(fresh, tmp_path / "list.pt")


def test_torch_files_name_the_extra(model, fresh, tmp_path, without_torch):
    (tmp_path / "weights.pth").write_bytes(b"anything")
    with pytest.raises(UserError, match=r"install minires\[torch\]"):
        load_torch_weights(fresh, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"install minires\[torch\]"):
        save_torch_weights(model, tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_writing_to_a_wrong_place(model, tmp_path):
    with pytest.raises(UserError, match=r"choose a name that ends in \.safetensors"):
        save_torch_weights(model, tmp_path / "weights.onnx")
    with pytest.raises(UserError, match="choose a folder you may write to"):
        save_torch_weights(model, tmp_path / "absent" / "weights.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_flatten_is_refused():
    network = Sequential(Conv2d(3, 2, 1), Flatten(), Linear(8, 2))
    with pytest.raises(UserError, match=r"Flatten \(1\) have another order in PyTorch"):
        to_torch_state_dict(network)
    with pytest.raises(UserError, match="use GlobalAvgPool2d"):
        load_torch_weights(network, {})


def test_any_layer_is_a_model(rng):
    block = randomise_parameters(BasicBlock(3, 5, 2, rng=rng), rng)
    assert same(load_torch_weights(BasicBlock(3, 5, 2), to_torch_state_dict(block)), block)


def test_published_resnet20(published, backend):
    """The published weights on the first 1,000 test images: 915 right, and PyTorch's logits.

    Of cuda without a GPU the first 40: its kernels then take a minute for all.
    """
    torch = pytest.importorskip("torch")
    from torch_resnet import cifar_resnet

    path = published / "pretrained" / "resnet20-12fca82f.th"
    data = read_records(published / "lossless" / "test_batch_first1000.bin")
    count = 40 if backend == "cuda" and not ON_DEVICE else 1000
    x = ((data.images[:count] / np.float32(255) - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).astype(np.float32)
    network = load_torch_weights(build_model("resnet20"), path).eval()
    with inference_mode():
        logits = np.concatenate([network.forward(batch) for batch in np.split(x, 4)])
    assert count < 1000 or (logits.argmax(1) == data.labels).sum() == 915

    module = cifar_resnet(20).eval()
    state = torch.load(path, "cpu", weights_only=True)["state_dict"]
    module.load_state_dict({name.removeprefix("module.").replace("linear", "fc"): value for name, value in state.items()})
    with torch.no_grad():
        expected = module(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    assert np.abs(logits - expected).max() < 1e-4
