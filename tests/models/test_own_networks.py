"""Networks of the user's own, FILE.py:function: wherever a model is named, and rebuilt from a file of weights."""

import numpy as np
import pytest
from picture_folders import write_pictures

import minires
from minires.backends import use_backend
from minires.errors import UserError
from minires.files import load_tensors
from minires.models import build_model
from minires.training import load_model

NETWORK = """
from minires.layer import Sequential
from minires.layers import BatchNorm2d, Conv2d, GlobalAvgPool2d, Linear, ReLU

def make(num_classes, rng=None):
    return Sequential(Conv2d(3, 4, 3, padding=1, rng=rng), BatchNorm2d(4), ReLU(), GlobalAvgPool2d(),
                      Linear(4, num_classes, rng=rng))

def plain(k):
    return make(k)

def broken(num_classes):
    return [].missing

def nothing(num_classes):
    return None
"""


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    """mine.py in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(NETWORK)
    with use_backend("reference"):
        yield tmp_path / "mine.py"


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("function", ["make", "plain"])
def test_weights_come_from_rng_whether_or_not_it_is_taken(function, capsys):
    name = f"mine.py:{function}"
    first = build_model(name, 5, rng=1)
    assert same(first, build_model(name, 5, rng=1)) and not same(first, build_model(name, 5, rng=2))
    assert first[4].out_features == 5
    assert capsys.readouterr().err == "minires: the code of mine.py is run, since it makes the network\n"  # once


@pytest.mark.parametrize(("name", "part"), [
    ("absent.py:make", "in a file that is not there"), ("mine.py:absent", "mine.py defines no function 'absent'"),
    ("mine.py:broken", r"fails at line 13 of mine.py \(AttributeError"), ("mine.py:nothing", "returned a NoneType"),
    ("wrong.py:make", r"fails at line 1 of wrong.py \(SyntaxError")])
def test_what_is_wrong_is_one_sentence(name, part, tmp_path):
    (tmp_path / "wrong.py").write_text("def make(:\n")
    with pytest.raises(UserError, match=part) as caught:
        build_model(name)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="says itself what it makes, got shortcut"):
        build_model("mine.py:make", shortcut="A")


def test_a_run_of_ones_own_network_is_rebuilt_anywhere(command, tmp_path, monkeypatch):
    write_pictures(tmp_path / "data", "ab", 6, 6, (8, 8))
    code, out, error = command("train", "--model", "mine.py:make", "--dataset", "data", "--epochs", 1, "--batch-size", 3)
    assert code == 0 and f"the code of {tmp_path}/mine.py is run" in error and "runs/mine-make-data-seed0" in out
    said = load_tensors("runs/mine-make-data-seed0/best.safetensors")[1]
    assert said["model"] == f"{tmp_path}/mine.py:make"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = tmp_path / "runs/mine-make-data-seed0"
    for arguments in (("eval", "--checkpoint", run), ("summary", run), ("plot", "filters", run)):
        code, out, error = command(*arguments)
        assert code == 0, error
    (tmp_path / "mine.py").write_text(NETWORK + "\n# changed\n")
    assert "is not what it was when the weights were trained" in command("eval", "--checkpoint", run)[2]
    (tmp_path / "mine.py").rename(tmp_path / "elsewhere/moved.py")
    code, _, error = command("eval", "--checkpoint", run)
    assert code == 2 and "in a file that is not there" in error
    assert command("eval", "--checkpoint", run, "--model", "moved.py:make")[0] == 0
    assert command("plan", "moved.py:make", "--batch-size", 2)[0] == 0


DESIGN = {"blocks": (1, 1), "channels": (4, 8), "block": "preactivation", "norm": "group"}


def test_any_design_is_saved_and_made_again(rng, tmp_path):
    model = build_model("resnet", 3, **DESIGN, rng=rng)
    minires.save(model, "m.safetensors", classes=["a", "b", "c"], image_size=16, mean=[0.5] * 3, std=[0.2] * 3)
    again, card = load_model("m.safetensors")
    assert same(again, model) and card.classes == ["a", "b", "c"] and card.image_size == 16
    assert same(minires.load("m.safetensors"), model)
    for name, options in (("resnet18", {"stem": "imagenet"}), ("resnet8", {"shortcut": "B", "in_channels": 1}),
                          ("mine.py:make", {})):
        model = build_model(name, 3, rng=rng, **options)
        minires.save(model, tmp_path / "n.safetensors")
        assert same(minires.load(tmp_path / "n.safetensors"), model)


def test_a_network_that_nothing_rebuilds_is_loaded_into_one(rng):
    from minires.layer import Sequential
    from minires.layers import Linear

    model = Sequential(Linear(3, 2, rng=rng))
    minires.save(model, "w.safetensors")
    with pytest.raises(UserError, match=r"pass it as in load\('w.safetensors', model\)"):
        minires.load("w.safetensors")
    assert same(minires.load("w.safetensors", Sequential(Linear(3, 2))), model)
    with pytest.raises(UserError, match="is no FILE"):
        minires.save(model, "w.safetensors", name="mine")
    minires.save(build_model("mine.py:make", 6, rng=rng), "f.safetensors", name="mine.py:plain")
    assert load_model("f.safetensors")[1].num_classes == 6
    block = build_model("resnet", blocks=(1,), channels=(4,), block=lambda *a, **k: Sequential())
    with pytest.raises(UserError, match="block of the network is a function, which no file of weights holds"):
        minires.save(block, "w.safetensors")


def test_helpers_beside_files_are_their_own_and_failures_name_the_right_line(tmp_path):
    for name, width in (("one", 3), ("two", 7)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "helper.py").write_text(f"WIDTH = {width}")
        (tmp_path / name / "net.py").write_text("from minires.layers import Linear\nfrom helper import WIDTH\n"
                                                "def make(num_classes):\n    return Linear(WIDTH, num_classes)\n")
    assert [build_model(f"{tmp_path}/{name}/net.py:make", 2).in_features for name in ("one", "two")] == [3, 7]
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)")
    with pytest.raises(UserError, match=r"fails at line 2 of .*leaves.py \(SystemExit: 3\)"):
        build_model(f"{tmp_path}/leaves.py:make")
    (tmp_path / "json_inside.py").write_text("import json\njson.loads('\\n\\n\\n{')")
    with pytest.raises(UserError, match=r"fails at line 2 of .*json_inside.py"):
        build_model(f"{tmp_path}/json_inside.py:make")
