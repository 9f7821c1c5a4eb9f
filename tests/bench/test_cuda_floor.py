"""The computed floor of the CUDA kernels: its list of launches is what the back end launches, its sums are the network's."""
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from paths import ROOT

from benchmarks import cuda_floor
from benchmarks.cuda_floor import DEVICES, END, START, Device, Launch, grouped, markdown, measured_text, training_step
from benchmarks.table import insert
from minires.backends.cuda import compiler
from minires.backends.cuda import launches as cuda_launches
from minires.bench.engines import MiniresEngine
from minires.errors import UserError
from minires.models import build_model
from minires.study.summary import summarise


@pytest.fixture(scope="module")
def launches():
    return training_step("resnet20", 2, "reference")


@pytest.mark.gpu
def test_its_launches_are_those_of_a_step_on_the_device(launches, monkeypatch, rng):
    """Kernel by kernel, with the dimensions of a real step."""
    x, target = rng.standard_normal((2, 32, 32, 3), np.float32), rng.integers(0, 10, 2)
    engine = MiniresEngine("resnet20", build_model("resnet20").state_dict(), x, target, 1, device="cuda")
    launched, trials = Counter(), []

    def recorded(device, file, name, dtype, integers, plain=compiler._function):
        launched[name] += not trials
        return plain(device, file, name, dtype, integers)

    def tried(*arguments, plain=cuda_launches._Memory.captured):
        trials.append(True)
        graph = plain(*arguments)
        trials.pop()
        return graph

    monkeypatch.setattr(cuda_launches._Memory, "captured", tried)
    monkeypatch.setattr(compiler, "_function", recorded)
    engine.step()
    expected = Counter(launch.kernel for launch in launches)
    assert launched == expected


def test_operations_are_three_forward_passes(launches):
    """The images' gradient is left out, and the stem's convolution done three times."""
    network = build_model("resnet20")
    layers = {row.name: 2 * row.multiply_adds * 2 for row in summarise(network, 32)}  # two images, two operations each
    assert sum(launch.flops for launch in launches) == 3 * sum(layers.values()) + layers["conv1"]
    forward = [launch for launch in launches if launch.kernel == "conv2d_forward"]
    assert sum(launch.flops for launch in forward) == sum(layers.values()) + 2 * layers["conv1"]


def test_bytes_of_a_stage(launches):
    """conv2d of 16 channels at 32 x 32: x and y of two images and the weight; its end reads z and the shortcut, writes y."""
    image, weight = 2 * 32 * 32 * 16 * 4, 3 * 3 * 16 * 16 * 4
    by_shape = {(launch.kernel, launch.shape): launch.bytes for launch in launches}
    assert by_shape["conv2d_forward", "3x3 16->16, y 32x32"] == 2 * image + weight
    assert by_shape["conv2d_weight_gradient", "3x3 16->16, y 32x32"] == 2 * image + weight
    assert by_shape["normalisation_gradient", "16 channels at 32x32"] == 3 * image
    assert by_shape["gate_and_sums", "16 channels at 32x32"] == 4 * image + 0
    ends = [launch.bytes for launch in launches if launch.kernel == "normalise_add_relu"][:2]
    assert ends == [2 * image, 3 * image]  # the stem's, without a shortcut, and a block's
    gated = [launch.bytes for launch in launches if launch.shape == "3x3 16->16, y 32x32"
             and launch.kernel == "conv2d_input_gradient"]
    assert sorted(set(gated)) == [3 * image + weight]  # dz, dx, and the gate's z or the shortcut's gradient
    parameters = sum(p.data.nbytes for p in build_model("resnet20").parameters())
    assert by_shape["sgd", "all parameters"] == 5 * parameters


def test_a_launch_takes_the_longer_of_both():
    device = Device("slow", 10.0, 2.0)
    assert Launch("k", "", 100, 2).seconds(device) == 10 and Launch("k", "", 10, 8).seconds(device) == 4
    (_, count, flops, size, seconds), = grouped([Launch("a", "", 19.5e12, 0), Launch("b", "", 0, 2.039e12)], lambda _: "all")
    assert (count, flops, size) == (2, 19.5e12, 2.039e12)
    assert seconds["A100"] == pytest.approx(2) and seconds["H100"] == pytest.approx(19.5 / 66.9 + 2.039 / 3.35)
    assert [device.name for device in DEVICES] == ["A100", "H100"]


def test_the_table_is_called_a_computed_floor(launches, tmp_path):
    text = markdown("resnet20", 2, launches, measured_text(None, "resnet20", 2))
    assert text.startswith("Computed floor") and "No GPU was at hand" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1 and rows[-1].startswith("| **all** | 253 |")
    readme = f"before\n{START}\nold\n{END}\nafter\n"
    assert insert(readme, text, START, END) == f"before\n{START}\n{text}\n{END}\nafter\n"


def test_a_measured_step_stands_beside_it(tmp_path):
    path = tmp_path / "cuda.json"
    cell = {"model": "resnet20", "work": "training", "batch": 128, "engines": {"minires": {"median": 0.00256}}}
    path.write_text(json.dumps({"machine": {"device": {"name": "NVIDIA A100"}}, "cells": [cell]}))
    assert measured_text(path, "resnet20", 128) == "Measured on one NVIDIA A100: 2.56 ms a step (median)."
    with pytest.raises(UserError, match="no training step of resnet56 at batch 128"):
        measured_text(path, "resnet56", 128)
    for broken in ("{", "[]", '{"machine": {}, "cells": []}'):
        path.write_text(broken)
        with pytest.raises(UserError, match="is not what minires bench --device cuda --json writes"):
            measured_text(path, "resnet20", 128)
    with pytest.raises(UserError, match="is not what minires bench"):
        measured_text(tmp_path / "none.json", "resnet20", 128)


def test_the_command(tmp_path, capsys, monkeypatch):
    launches = [Launch("k", "shape", 2e9, 1e6), Launch("s", "", 0, 0)]
    monkeypatch.setattr(cuda_floor, "training_step", lambda model, batch: launches)
    readme = tmp_path / "README.md"
    readme.write_text(f"a\n{START}\n{END}\nb\n")
    cuda_floor.main("resnet20", 4, readme, None)
    assert "| `k` | 1 | 2.00 | 1.0 | 103 | 30 |" in readme.read_text()
    assert "wrote the table" in capsys.readouterr().out
    readme.write_text("no markers")
    with pytest.raises(UserError, match="the README has no place for the table"):
        cuda_floor.main("resnet20", 4, readme, None)
    assert readme.read_text() == "no markers"


@pytest.mark.parametrize(("option", "value", "message"), [
    ("--batch", "0", "--batch 0 is too small"), ("--readme", "none.md", "--readme none.md is not there"),
    ("--measured", "none.json", "--measured none.json is not what"), ("--model", "resnet21", "resnet21")])
def test_wrong_options_are_one_sentence(option, value, message):
    done = subprocess.run([sys.executable, "-m", "benchmarks.cuda_floor", option, value], cwd=ROOT, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
