"""What takes weights takes a run's folder, a file of ours and a published one; what names a model takes FILE.py:function."""
import numpy as np
import pytest
from PIL import Image

from minires.backends import use_backend
from minires.bench.compare import write_inputs
from minires.bench.worker import build
from minires.interop.torch import save_torch_weights
from minires.models import build_model
from minires.plots.xray import draw_training
from minires.training import save


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """A small network in a file of ours, and resnet8 in both kinds."""
    monkeypatch.chdir(tmp_path)
    model = build_model("resnet8", rng=0)
    save(model, "ours.safetensors", dataset="shapes", mean=[0.5] * 3, std=[0.2] * 3)
    save_torch_weights(model, "theirs.safetensors")
    with use_backend("reference"):
        yield


def test_xray_of_weights(command, tmp_path, rng, monkeypatch):
    def drawn(report, folder):  # one of the page's pictures: weights alone have no losses to draw
        draw_training(report["networks"], tmp_path / "training.png")
        return folder / "xray.html"

    monkeypatch.setattr("minires.study.xray.write_xray", drawn)
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(2):
            Image.fromarray(rng.integers(0, 256, (9, 14, 3), np.uint8)).save(tmp_path / "data" / name / f"{index}.png")
    model = build_model("resnet", 2, blocks=(1, 1), channels=(4, 8), rng=rng)
    save(model, "small.safetensors", dataset="data", image_size=8, classes="ab", mean=[0.5] * 3, std=[0.2] * 3)
    code, out, error = command("xray", "small.safetensors", "--images", 2)
    assert code == 0, error
    assert "resnet, as trained" in out and "xray/small/xray.html" in out
    assert (tmp_path / "training.png").is_file()
    code, _, error = command("xray", "theirs.safetensors", "--images", 2)
    assert code == 2 and "does not name its network: give --model" in error
    code, _, error = command("xray", "theirs.safetensors", "--dataset", "data", "--images", 2, "--model", "resnet8")
    assert code == 2 and "ImageNet's mean" in error and "X-ray it on the data set it was trained for" in error
    code, _, error = command("xray", "resnet8", "--mean", "0.5,0.5,0.5")
    assert code == 2 and "--mean is for a file of weights" in error
    code, _, error = command("xray", "ours.safetensors", "--train-steps", 3)
    assert code == 2 and "--train-steps trains fresh models" in error


def test_summary_of_weights(command):
    code, ours, error = command("summary", "ours.safetensors")
    assert (code, error) == (0, "")
    code, theirs, _ = command("summary", "theirs.safetensors", "--model", "resnet8")
    assert code == 0 and ours.split("ours")[0] == theirs.split("theirs")[0]
    code, _, error = command("summary", "resnet8", "--model", "resnet8")
    assert code == 2 and "resnet8 is not there" in error


def test_bench_of_ones_own_network(command, tmp_path):
    (tmp_path / "mine.py").write_text("""
from minires.layer import Sequential
from minires.layers import Flatten, Linear

def make(num_classes, rng=None):
    return Sequential(Flatten(), Linear(3072, num_classes, rng=rng))
""")
    files = write_inputs(tmp_path, "mine.py:make", 2)
    engine = build({"engine": "minires", "model": "mine.py:make", "batch": 2, "threads": 1, **files})
    assert engine.first_results("inference")["logits"].shape == (2, 10)
    code, _, error = command("bench", "--models", "mine.py:make", "--vs", "torch")
    assert code == 2 and "of which PyTorch has no twin" in error
