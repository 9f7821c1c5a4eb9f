"""What takes weights takes a run's folder, a file of ours and a published one; what names a model takes FILE.py:function."""
import json

import pytest

from minires.backends import use_backend
from minires.interop.torch import save_torch_weights
from minires.models import build_model
from minires.training import save


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = build_model("resnet8", rng=0)
    save(model, "ours.safetensors", dataset="shapes", mean=[0.5] * 3, std=[0.2] * 3)
    save_torch_weights(model, "theirs.safetensors")
    with use_backend("reference"):
        yield


def test_xray_of_weights(command, tmp_path):
    said = ("--images", 2, "--dataset", "shapes")
    code, out, error = command("xray", "ours.safetensors", *said[:2])
    assert code == 0, error
    assert "resnet8, as trained" in out and (tmp_path / "xray/ours").is_dir()
    code, again, error = command("xray", "theirs.safetensors", *said, "--model", "resnet8", "--mean", "0.5,0.5,0.5", "--std",
                                 "0.2,0.2,0.2")
    assert code == 0, error
    assert again.splitlines()[0] == out.splitlines()[0]  # the same weights
    code, _, error = command("xray", "theirs.safetensors", *said)
    assert code == 2 and "does not name its network: give --model" in error
    code, _, error = command("xray", "resnet8", *said, "--mean", "0.5,0.5,0.5")
    assert code == 2 and "--mean is for a file of weights" in error
    code, _, error = command("xray", "ours.safetensors", "--train-steps", 3)
    assert code == 2 and "--train-steps trains fresh models" in error


def test_summary_of_weights(command):
    code, ours, error = command("summary", "ours.safetensors")
    assert (code, error) == (0, "")
    code, theirs, _ = command("summary", "theirs.safetensors", "--model", "resnet8")
    assert code == 0 and ours.splitlines()[:-1] == theirs.splitlines()[:-1]
    code, _, error = command("summary", "resnet8", "--model", "resnet8")
    assert code == 2 and "resnet8 is not there" in error


def test_bench_of_ones_own_network(command, tmp_path):
    (tmp_path / "mine.py").write_text("""
from minires.layer import Sequential
from minires.layers import Flatten, Linear

def make(num_classes, rng=None):
    return Sequential(Flatten(), Linear(3072, num_classes, rng=rng))
""")
    code, _, error = command("bench", "--models", "mine.py:make", "--batches", 2, "--repetitions", 2, "--launches", 1,
                             "--work", "inference", "--threads", 1, "--json", "b.json")
    assert code == 0, error
    assert json.loads((tmp_path / "b.json").read_text())["cells"][0]["model"] == "mine.py:make"
    code, _, error = command("bench", "--models", "mine.py:make", "--vs", "torch")
    assert code == 2 and "of which PyTorch has no twin" in error
