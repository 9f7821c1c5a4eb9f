"""Networks for other programs: ONNX as onnxruntime computes it, and torchvision's names."""
import numpy as np
import pytest

from minires.errors import UserError
from minires.files import load_tensors
from minires.interop.onnx import save_onnx
from minires.interop.torch import load_torch_weights, save_torch_weights
from minires.layer import Layer, Sequential, inference_mode
from minires.layers import (
    GELU,
    AvgPool2d,
    BatchNorm2d,
    Bias,
    Conv2d,
    Dropout,
    Flatten,
    GroupNorm,
    LayerNorm,
    LeakyReLU,
    Linear,
    MaxPool2d,
    Residual,
    Scale,
    SiLU,
)
from minires.models import build_model
from minires.study import randomise_parameters
from minires.training import save

NEEDS = "the file is written by onnx and held against onnxruntime: pip install 'minires[onnx]'"


class Gate(Layer):
    """NumPy's arithmetic."""

    def forward(self, x):
        return np.square(x) / (np.abs(x) + 1.0) - 0.5 * x


class Numbers(Layer):
    def forward(self, x):
        return x * float(x.max())


def flat(rng):
    return Sequential(Conv2d(3, 5, (3, 2), (2, 1), (1, 0), (1, 2), rng=rng), LeakyReLU(0.2), AvgPool2d(3, 2, 1),
                      Dropout(0.5), MaxPool2d(2, 1, 1), Flatten(), Linear(5 * 4 * 6, 7, bias=False, rng=rng), LayerNorm(7),
                      Bias(7))


def mixed(rng):
    return Sequential(Conv2d(3, 6, 3, 1, 1, rng=rng), GroupNorm(2, 6), GELU(), Residual(Conv2d(6, 6, 3, 1, 1, rng=rng)),
                      LayerNorm(6), SiLU(), Scale(6), Gate(), BatchNorm2d(6), AvgPool2d(3), Flatten(),
                      Linear(96, 4, rng=rng))


NETWORKS = {
    "resnet20 A": (lambda rng: build_model("resnet20", rng=rng), 32), "resnet18": (
        lambda rng: build_model("resnet18", 9, stem="imagenet", rng=rng), 40),
    "preactivation": (lambda rng: build_model("resnet", 5, blocks=(1, 1), channels=(8, 16), block="preactivation", width=2,
                                              rng=rng), 13),
    "fixup": (lambda rng: build_model("resnet", 5, blocks=(1, 1), channels=(8, 16), block="fixup", shortcut="A",
                                      rng=rng), 9),
    "flat": (flat, 12), "mixed": (mixed, 12),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_gives_the_same_logits_for_any_batch(name, rng, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason=NEEDS)
    pytest.importorskip("onnx", reason=NEEDS)
    make, size = NETWORKS[name]
    network = randomise_parameters(make(rng), rng).eval()
    save_onnx(network, tmp_path / "n.onnx", size, about={"classes": "a\nb"})
    session = onnxruntime.InferenceSession(tmp_path / "n.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {"classes": "a\nb"}
    for count in (1, 4, 7):
        x = rng.standard_normal((count, size, size, 3)).astype(np.float32)
        with inference_mode():
            expected = network.forward(x)
        (found,) = session.run(None, {"images": x})
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


def test_the_published_network_by_command(command, published, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason=NEEDS)
    pytest.importorskip("onnx", reason=NEEDS)
    pytest.importorskip("torch")
    from minires.data.cifar10 import read_records
    from minires.evaluation import open_checkpoint

    weights = published / "pretrained" / "resnet20-12fca82f.th"
    code, out, _ = command("export", weights, "--to", "onnx", tmp_path / "r.onnx", "--model", "resnet20")
    assert code == 0 and "images (N, 32, 32, 3) float32 to logits (N, 10)" in out
    network, card = open_checkpoint(weights, "resnet20")
    test = read_records(published / "lossless" / "test_batch_first1000.bin").subset(np.arange(64))
    (x, target), = card.loader(test)
    session = onnxruntime.InferenceSession(tmp_path / "r.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": x})
    with inference_mode():
        assert np.abs(found - network.eval().forward(x)).max() < 1e-4
    assert (found.argmax(1) == target).mean() > 0.85


def test_what_onnx_has_no_words_for(rng, tmp_path):
    pytest.importorskip("onnx", reason=NEEDS)
    with pytest.raises(UserError, match="layer 1 is not what ONNX can be told"):
        save_onnx(Sequential(Conv2d(3, 4, 3, rng=rng), Numbers()), tmp_path / "n.onnx", 8)
    with pytest.raises(UserError, match=r"expected logits \(N, K\)"):
        save_onnx(Conv2d(3, 4, 3, rng=rng), tmp_path / "n.onnx", 8)
    assert not list(tmp_path.iterdir())


def test_without_onnx_one_sentence(monkeypatch, command, tmp_path, rng):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    save(build_model("resnet8", rng=rng), tmp_path / "m.safetensors")
    code, _, error = command("export", tmp_path / "m.safetensors", tmp_path / "n.onnx", "--to", "onnx")
    assert code == 2 and "pip install 'minires[onnx]'" in error
    code, _, error = command("export", tmp_path / "m.safetensors", tmp_path / "n.onnx", "--to", "keras")
    assert code == 2 and "unknown --to 'keras': choose torch, torchvision or onnx" in error


def test_torchvisions_names(command, rng, tmp_path):
    network = build_model("resnet18", 11, stem="imagenet", rng=rng)
    save(network, tmp_path / "m.safetensors", image_size=64)
    code, out, _ = command("export", tmp_path / "m.safetensors", tmp_path / "t.safetensors", "--to", "torchvision")
    assert code == 0 and "a state_dict of 102 tensors" in out
    tensors, _ = load_tensors(tmp_path / "t.safetensors")
    projections = sorted(name for name in tensors if "downsample" in name)
    assert projections == sorted(f"layer{stage}.0.downsample.{name}" for stage in (2, 3, 4) for name in (
        "0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var"))
    assert not any("shortcut" in name for name in tensors) and tensors["fc.weight"].shape == (11, 512)
    again = load_torch_weights(build_model("resnet18", 11, stem="imagenet"), tmp_path / "t.safetensors")
    assert all(np.array_equal(array, network.state_dict()[name]) for name, array in again.state_dict().items())
    with pytest.raises(UserError, match="torchvision has no network such as this ResNet"):
        save_torch_weights(build_model("resnet20"), tmp_path / "t.safetensors", torchvision=True)
