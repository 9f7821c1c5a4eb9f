"""`minires plot`: curves by default, and each picture of a trained network from the command line."""
from functools import partial

import numpy as np
import pytest
from PIL import Image

from minires.backends import use_backend
from minires.data.cifar10 import CLASSES
from minires.files import load_tensors, save_tensors
from minires.models import build_model
from minires.study.gradcheck import randomise_parameters
from minires.training.card import ModelCard


@pytest.fixture(autouse=True)
def reference_kernels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with use_backend("reference"):
        yield


@pytest.fixture
def command(command):
    """command("filters", "run") -> (exit code, stdout, stderr) of minires plot."""
    return partial(command, "plot")


@pytest.fixture
def run(tmp_path, rng):
    """A run's folder with random weights, and records.bin: 12 random images."""
    card = ModelCard("resnet20", 10, None, "cifar10", CLASSES, 32, [0.5] * 3, [0.25] * 3)
    network = randomise_parameters(build_model("resnet20", rng=rng), rng)
    (tmp_path / "run").mkdir()
    save_tensors(tmp_path / "run" / "best.safetensors", network.state_dict(), {**card.about(), "epoch": 1})
    records = rng.integers(0, 256, (12, 3073), np.uint8)
    records[:, 0] = np.arange(12) % 10
    (tmp_path / "records.bin").write_bytes(records.tobytes())
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / "cat.png")
    return tmp_path / "run"


def assert_picture(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 300
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


RECORDS = ["--records", "records.bin"]
PICTURES = {
    "filters": (["filters", "run"], "drew 16 filters into filters.png"),
    "filters of a file": (["filters", "run/best.safetensors"], "drew 16 filters"),
    "features": (["features", "run", "--layer", "layer2", *RECORDS], "drew 32 of 32 channels of layer2 into features.png"),
    "features of a picture": (["features", "run", "--layer", "conv1", "--image", "cat.png"], "16 of 16 channels"),
    "gradcam": (["gradcam", "run", *RECORDS], "drew Grad-CAM of layer1, layer2, layer3 for 6 images into gradcam.png"),
    "gradcam of one": (["gradcam", "run", *RECORDS, "--index", "11", "--layer", "conv1", "--class", "frog"],
                       "drew Grad-CAM of conv1 for 1 image"),
    "saliency": (["saliency", "run", *RECORDS, "--index", "3", "--index", "5"], "drew the saliency of 2 images"),
    "confusion": (["confusion", "run", *RECORDS], "of 12 images; drew the confusion matrix and"),
    "confusion alone": (["confusion", "run", *RECORDS, "--mistakes", "0"], "the 0 worst mistakes"),
    "landscape": (["landscape", "run", *RECORDS, "--images", "1", "--points", "3"], "drew 1 landscape into landscape.png"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(command, run, tmp_path, name):
    arguments, message = PICTURES[name]
    code, out, error = command(*arguments)
    assert (code, error) == (0, "") and message in out
    assert_picture(tmp_path / f"{arguments[0]}.png")


def test_the_class_that_is_asked_about_counts(command, run, tmp_path):
    asked = ("saliency", "run", *RECORDS, "--index", 0, "--class")
    for class_name, out in (("cat", "cat.png"), ("ship", "ship.png"), ("cat", "again.png")):
        assert command(*asked, class_name, "--out", out)[0] == 0
    cat, ship, again = ((tmp_path / name).read_bytes() for name in ("cat.png", "ship.png", "again.png"))
    assert cat == again != ship


METRICS = '{"epoch": 1, "train_loss": 2, "train_accuracy": 0.1, "test_loss": 2, "test_accuracy": 0.1, "lr": 0.1}\n'


@pytest.mark.parametrize("arguments", [["run"], ["curves", "run"], ["./run", "run", "--out", "comparison.png"],
                                       ["--out", "comparison.png", "run"], ["./filters"]])
def test_curves_are_the_default(command, tmp_path, arguments):
    for folder in ("run", "filters"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "metrics.jsonl").write_text(METRICS)
    code, out, error = command(*arguments)
    assert (code, error) == (0, "") and out.startswith("drew ") and out.endswith("into comparison.png\n")
    assert_picture(tmp_path / "comparison.png")


def test_help_lists_the_pictures(command):
    code, out, _ = command("--help")
    assert code == 0
    assert all(name in out for name in ("curves", "filters", "features", "gradcam", "saliency", "confusion", "landscape"))


MISTAKES = {
    "nothing": ([], "runs"),
    "no run": (["absent"], "absent/metrics.jsonl cannot be read"),
    "no checkpoint": (["filters", "absent.th"], "absent.th is not a file"),
    "run without weights": (["filters", "."], "holds no best.safetensors"),
    "unknown layer": (["gradcam", "run", *RECORDS, "--layer", "layer9"], "layer 'layer9' is not in this"),
    "no layer": (["features", "run", *RECORDS], "--layer"),
    "no image": (["gradcam", "run", *RECORDS, "--layer", "fc"], "'fc' puts out (6, 10)"),
    "unknown class": (["saliency", "run", *RECORDS, "--class", "lion"], "class 'lion' is unknown"),
    "image out of range": (["saliency", "run", *RECORDS, "--index", "12"], "no test image 12: expected 0 to 11"),
    "negative image": (["saliency", "run", *RECORDS, "--index", "-1"], "no test image -1"),
    "two images": (["features", "run", *RECORDS, "--layer", "conv1", "--index", "0", "--index", "1"], "got 2"),
    "no picture": (["gradcam", "run", "--image", "run/best.safetensors"], "cannot be read as a picture"),
    "two sources": (["gradcam", "run", "--image", "cat.png", *RECORDS], "--records"),
    "too many mistakes": (["confusion", "run", *RECORDS, "--mistakes", "41"], "--mistakes"),
    "no span": (["landscape", "run", *RECORDS, "--span", "0"], "span 0.0"),
    "weights that are not finite": (["gradcam", "diverged.safetensors", *RECORDS],
                                    "diverged.safetensors holds numbers that are not finite, in bn1.bias: its training"),
    "two data sets": (["landscape", "run", *RECORDS, "--dataset", "shapes"], "--records records.bin is the data: leave out"),
    "no png": (["filters", "run", "--out", "x.pdf"], "--out writes a PNG, got x.pdf: choose a name that ends in .png"),
    "no png, before the work": (["landscape", "absent", "--out", "x"], "--out writes a PNG, got x"),
    "a folder": (["saliency", "absent", "--out", "folder.png"], "folder.png cannot be written: it is a folder"),
    "an epoch without its numbers": (["half"], "half/metrics.jsonl has an epoch without train_accuracy: expected"),
    "place that is not there": (["filters", "run", "--out", "absent/x.png"], "absent/x.png cannot be written"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_2(command, run, tmp_path, name):
    arguments, message = MISTAKES[name]
    for folder in ("folder.png", "half"):
        (tmp_path / folder).mkdir()
    (tmp_path / "half" / "metrics.jsonl").write_text(METRICS + METRICS.replace("train_accuracy", "accuracy"))
    tensors, about = load_tensors(run / "best.safetensors")
    save_tensors(tmp_path / "diverged.safetensors", tensors | {"bn1.bias": tensors["bn1.bias"] * np.nan}, about)
    before = set(tmp_path.iterdir())
    code, out, error = command(*arguments)
    assert (code, out) == (2, "")
    assert error.startswith("minires: error: ") and error.count("\n") == 1 and message in error
    assert set(tmp_path.iterdir()) == before
