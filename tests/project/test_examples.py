"""The examples run as they stand: one to its end, one on data small enough for a test."""
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import EXAMPLES

import minires
from minires.data import Dataset
from minires.training.metrics import read_metrics


def run_example(folder, name, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(minires.__file__).parents[1])}
    return subprocess.run([sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True,
                          cwd=folder, check=False, env=environment)


def test_residual_block_by_hand(tmp_path):
    result = run_example(tmp_path, "residual_block_by_hand.py")
    assert result.returncode == 0, result.stderr
    lines = [line.strip() for line in result.stdout.splitlines()]
    names = ["x", "F(x)", "S(x)", "y", "dy", "g", "dx, branch", "dx, shortcut", "dx", "numerical dx"]
    assert [line.split(" = ")[0] for line in lines if " = [[" in line] == names
    # By hand: w1 = 2, w2 = -0.25, so F(1) = -0.5, and where both relus pass dx = g * w1 * w2 + g.
    rows = {line.split(" = ")[0]: line.split("[[")[1].split("]")[0].split() for line in lines if " = [[" in line}
    assert rows["y"] == ["0.500", "1.000"]
    assert rows["g"] == ["1.000", "-2.000"]
    assert rows["dx, branch"] == ["-0.500", "1.000"]
    assert rows["dx"] == rows["numerical dx"] == ["0.500", "-1.000"]
    assert any(line.endswith("the same") for line in lines)


def test_residual_block_by_hand_compiles_nothing(tmp_path):
    code = ("import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__'); "
            "raise SystemExit('numba was loaded' if 'numba' in sys.modules else 0)")
    environment = {**os.environ, "PYTHONPATH": str(Path(minires.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code, str(EXAMPLES / "residual_block_by_hand.py")], check=True, cwd=tmp_path,
                   env=environment, capture_output=True)


def test_residual_block_by_hand_can_fail(monkeypatch, capsys):
    from minires.layers import Conv2d

    right = Conv2d.backward
    monkeypatch.setattr(Conv2d, "backward", lambda self, dy: right(self, dy) * 1.01)
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(EXAMPLES / "residual_block_by_hand.py"), run_name="__main__")
    assert "WRONG" in capsys.readouterr().out


def test_squeeze_and_excitation(capsys):
    runpy.run_path(str(EXAMPLES / "squeeze_and_excitation.py"))["main"](steps=2)
    first, *losses, last = capsys.readouterr().out.splitlines()
    assert float(first.partition("relative error ")[2]) < 1e-7 and last == "all of it is planned"
    values = [float(line.partition("loss ")[2]) for line in losses]
    assert len(values) == 1 and 2 < values[0] < 4  # about log(10)


def test_train_cifar10(tmp_path, monkeypatch):
    def few(name, data_dir=None):
        assert (name, data_dir) == ("cifar10", "my/data")
        rng = np.random.default_rng(0)
        return [Dataset(rng.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8), np.arange(count) % 10,
                        tuple("abcdefghij")) for count in (20, 10)]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minires.data.load_dataset", few)
    monkeypatch.setattr("sys.argv", ["train_cifar10.py", "my/data"])
    with minires.use_backend("reference"):
        runpy.run_path(str(EXAMPLES / "train_cifar10.py"))
    assert len(read_metrics(tmp_path / "runs" / "example" / "metrics.jsonl")) == 10


def test_train_cifar10_without_data_says_so_in_one_sentence(tmp_path):
    result = run_example(tmp_path, "train_cifar10.py", "absent")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith(
        "data directory absent is not a folder: expected it to hold cifar-10-batches-bin/ or cifar-10-batches-py/")
