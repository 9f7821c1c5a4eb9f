"""The command line: what each command prints and writes, and that a mistake is one sentence on stderr and exit 2."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from picture_folders import write_pictures
from PIL import Image

import minires
from minires.backends import use_backend
from minires.files import load_tensors, save_tensors
from minires.models import build_model

FILES = {"config.toml", "metrics.jsonl", "last.safetensors", "best.safetensors", "state.safetensors", "curves.png"}


@pytest.fixture(autouse=True)
def reference_kernels(tmp_path, monkeypatch):
    """Nothing to compile, and an empty working folder, where runs/ will be."""
    monkeypatch.chdir(tmp_path)
    with use_backend("reference"):
        yield


@pytest.fixture
def pictures(tmp_path):
    """12 training and 6 test pictures of 10 x 10 pixels in three classes."""
    return write_pictures(tmp_path / "pictures", ("red", "green", "blue"), 12, 6, (10, 10), brighter=150)


@pytest.fixture
def trained(command, pictures):
    """The arguments of a training run that was made, in runs/one."""
    arguments = ("train", "--dataset", pictures, "--epochs", 2, "--batch-size", 6, "--lr", 0.02, "--validation", 3)
    code, _, error = command(*arguments, "--out", "runs/one")
    assert (code, error) == (0, "")
    return arguments


# --- mistakes ---

MISTAKES = {
    "unknown model": (["train", "--model", "resnet21"], "unknown model 'resnet21'"),
    "unknown dataset": (["train", "--dataset", "mnist"], "dataset 'mnist' is unknown"),
    "unknown recipe": (["train", "--recipe", "adam"], "unknown recipe 'adam'"),
    "batch size 0": (["train", "--batch-size", "0"], "batch size must be an int of at least 1"),
    "batch size in words": (["train", "--batch-size", "many"], "--batch-size"),
    "epochs 0": (["train", "--epochs", "0"], "epochs must be an int of at least 1"),
    "negative seed": (["train", "--seed", "-1"], "seed must be an int of at least 0"),
    "negative learning rate": (["train", "--lr", "-0.1"], "lr must be a number above 0"),
    "too many threads": (["train", "--threads", "4096"], "4096"),
    "no threads": (["train", "--threads", "0"], "0"),
    "unknown shortcut": (["train", "--shortcut", "C"], "unknown shortcut 'C'"),
    "shortcut of a plain network": (["train", "--model", "plain20", "--shortcut", "A"], "has no shortcuts"),
    "unknown device": (["train", "--device", "tpu"], "unknown device 'tpu'"),
    "validation too large": (["train", "--validation", "9999999"], "validation size 9999999"),
    "wrong data folder": (["train", "--dataset", "cifar10", "--data-dir", "absent"], "absent is not a folder"),
    "size of CIFAR-10": (["train", "--dataset", "cifar10", "--size", "64"], "size 64 is for folders of pictures"),
    "head without weights": (["train", "--head", "2"], "give them with --from"),
    "no weights to begin from": (["train", "--from", "absent"], "absent is not a file"),
    "pattern that fits nothing": (["train", "--freeze", "layer9.*"], "fits no parameter in front of the last layer, fc"),
    "pattern of the last layer": (["train", "--freeze", "fc.*"], "fits no parameter in front of the last layer, fc"),
    "own network that is not there": (["train", "--model", "absent.py:make"], "in a file that is not there"),
    "data folder for shapes": (["train", "--data-dir", "."], "only cifar10 reads one"),
    "resume nothing": (["train", "--resume", "absent"], "absent/config.toml cannot be read"),
    "unknown option": (["train", "--bogus"], "--bogus"),
    "unknown command": (["tarin"], "tarin"),
    "no checkpoint": (["eval"], "--checkpoint"),
    "checkpoint that is not there": (["eval", "--checkpoint", "absent.th"], "absent.th is not a file"),
    "nothing to predict with": (["predict", "cat.png"], "no run in runs/"),
    "summary of nothing": (["summary", "vgg16"], "unknown model 'vgg16'"),
    "summary of a tiny image": (["summary", "resnet20", "--image-size", "0"], "image size 0"),
    "summary without classes": (["summary", "resnet20", "--num-classes", "0"], "num_classes"),
    "gradients of nothing": (["gradcheck", "Conv3d"], "unknown target 'Conv3d'"),
    "plot of nothing": (["plot", "absent"], "absent/metrics.jsonl cannot be read"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_2(command, name, tmp_path):
    arguments, part = MISTAKES[name]
    code, out, error = command(*arguments)
    assert code == 2
    assert out == ""
    assert error.startswith("minires: error: ") and error.count("\n") == 1
    assert part in error
    assert list(tmp_path.iterdir()) == []  # no half-made run


def test_cuda_without_cupy_names_what_to_install(command, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, error = command("train", "--device", "cuda")
    assert code == 2
    assert "CuPy" in error and "minires[cuda12]" in error


def test_the_program_itself_exits_with_2_and_no_traceback(tmp_path):
    result = _python("-m", "minires", "train", "--batch-size", "0")
    assert (result.returncode, result.stdout, result.stderr) == (
        2, "", "minires: error: batch size must be an int of at least 1 and at most 9,007,199,254,740,992, got 0\n")


def test_help_is_quick_to_import(tmp_path):
    check = ("import sys; import minires.cli; "
             "print([m for m in ('numba', 'numpy', 'matplotlib', 'torch', 'rich.progress') if m in sys.modules])")
    assert _python("-c", check).stdout == "[]\n"


def _python(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(minires.__file__).parents[1])}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)


# --- train ---


def test_train_writes_a_run_and_says_so(command, pictures, tmp_path):
    code, out, error = command("train", "--dataset", pictures, "--epochs", 2, "--batch-size", 6, "--lr", 0.02)
    assert (code, error) == (0, "")
    run = tmp_path / "runs" / "resnet20-pictures-seed0"
    assert {path.name for path in run.iterdir()} == FILES
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = out.splitlines()
    assert len(lines) == 4
    assert "12 training and 6 test images" in lines[0]
    for line, row in zip(lines[1:3], rows, strict=True):
        assert line.startswith(f"epoch {row['epoch']}/2")
        assert f"test {row['test_loss']:.4f} {row['test_accuracy']:7.2%}" in line
    assert f"test accuracy {rows[-1]['test_accuracy']:.2%} after 2 epochs" in lines[3]
    before = (run / "last.safetensors").read_bytes()

    code, _, _ = command("train", "--dataset", pictures, "--epochs", 2, "--batch-size", 6, "--lr", 0.02)
    assert code == 0
    assert (run / "last.safetensors").read_bytes() == before
    again = tmp_path / "runs" / "resnet20-pictures-seed0-2"
    assert (again / "last.safetensors").read_bytes() == before  # the same seed, bit by bit


def test_an_existing_run_is_not_overwritten(command, trained):
    code, _, error = command(*trained, "--out", "runs/one")
    assert code == 2 and "runs/one is there already" in error


def test_ctrl_c_is_one_sentence_and_the_run_goes_on_to_the_same_bits(command, trained, monkeypatch, tmp_path):
    from minires.training import trainer

    real, calls = trainer.evaluate, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 3:  # test, validation, and the second epoch's test
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", stopped)
        code, _, error = command(*trained, "--out", "runs/two")
    assert code == 130
    assert error == "minires: stopped after 1 of 2 epochs: go on with minires train --resume runs/two\n"

    code, out, error = command("train", "--resume", "runs/two", "--epochs", 5)
    assert code == 2 and "--epochs cannot be combined with --resume" in error
    code, out, error = command("train", "--resume", "runs/two")
    assert (code, error) == (0, "")
    assert "epoch 2/2" in out and "epoch 1/2" not in out
    one, two = (load_tensors(tmp_path / "runs" / name / "last.safetensors")[0] for name in ("one", "two"))
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name])
    assert {path.name for path in (tmp_path / "runs" / "two").iterdir()} == FILES
    code, _, error = command("train", "--resume", "runs/two")
    assert code == 2 and "is complete after 2 epochs" in error


def test_stopped_before_the_first_epoch_the_run_goes_on_from_its_first_step(command, pictures, monkeypatch, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    arguments = ("train", "--dataset", pictures, "--batch-size", 6, "--lr", 0.02, "--epochs", 1)
    with monkeypatch.context() as patch:
        patch.setattr("minires.training.trainer.evaluate", stop)
        code, _, error = command(*arguments)
    assert code == 130
    run = "runs/resnet20-pictures-seed0"
    assert error == f"minires: stopped after 0 of 1 epochs: go on with minires train --resume {run}\n"
    assert {path.name for path in (tmp_path / run).iterdir()} == {"config.toml", "metrics.jsonl", "state.safetensors"}
    assert command("train", "--resume", run)[0] == 0
    assert command(*arguments, "--out", "whole")[0] == 0
    assert (tmp_path / run / "last.safetensors").read_bytes() == (tmp_path / "whole" / "last.safetensors").read_bytes()


# --- eval and predict ---


def test_eval_repeats_the_last_epochs_numbers(command, trained, tmp_path):
    row = json.loads((tmp_path / "runs/one/metrics.jsonl").read_text().splitlines()[-1])
    code, out, error = command("eval", "--checkpoint", "runs/one/last.safetensors")
    assert (code, error) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["class", "blue", "green", "red"]
    assert f"loss {row['test_loss']:.4f}" in lines
    right = round(row["test_accuracy"] * 6)
    assert lines[-1].startswith(f"accuracy {row['test_accuracy']:.2%} ({right} of 6), 95 % interval ")
    rows = [line.split() for line in lines[lines.index(next(line for line in lines if "matrix" in line)) + 2:][:3]]
    counts = np.array([[0 if cell == "." else int(cell) for cell in cells[2:]] for cells in rows])
    assert counts.sum(1).tolist() == [2, 2, 2] and np.trace(counts) == round(row["test_accuracy"] * 6)
    said = command("eval", "--checkpoint", "runs/one", "--picture", "c.png")  # the run's folder: its best epoch
    assert said[0] == 0 and said[1].endswith("drew the confusion matrix into c.png\n") and (tmp_path / "c.png").is_file()
    code, out, _ = command("summary", "runs/one")
    assert code == 0 and "fc" in out and "10 x 10 image" in out


def test_eval_of_wrong_things(command, trained, tmp_path):
    checkpoint = tmp_path / "runs/one/last.safetensors"
    code, _, error = command("eval", "--checkpoint", checkpoint, "--model", "resnet20")
    assert code == 2 and "names its network" in error
    code, _, error = command("eval", "--checkpoint", checkpoint, "--dataset", "shapes")
    assert code == 2 and "3 classes" in error
    (tmp_path / "short.bin").write_bytes(b"1234")
    code, _, error = command("eval", "--checkpoint", checkpoint, "--records", "short.bin")
    assert code == 2 and "short.bin" in error
    code, _, error = command("eval", "--checkpoint", checkpoint, "--records", "short.bin", "--dataset", "shapes")
    assert code == 2 and "leave out --dataset" in error
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    code, _, error = command("eval", "--checkpoint", checkpoint)
    assert code == 2 and "damaged" in error


@pytest.fixture
def records(tmp_path):
    """Twelve records of CIFAR-10's binary version, random pixels."""
    data = np.random.default_rng(0).integers(0, 256, (12, 3073)).astype(np.uint8)
    data[:, 0] = np.arange(12) % 10
    (tmp_path / "records.bin").write_bytes(data.tobytes())
    return data


def test_eval_of_a_foreign_checkpoint(command, records, tmp_path):
    model = build_model("resnet20", rng=np.random.default_rng(3)).eval()
    state = {name: np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T)
             for name, array in model.state_dict().items()}
    save_tensors(tmp_path / "foreign.safetensors", state)
    save_tensors(tmp_path / "script.safetensors", model.state_dict(), {"epoch": 1})
    images = records[:, 1:].reshape(12, 3, 32, 32).transpose(0, 2, 3, 1) / 255
    x = ((images - [0.5, 0.4, 0.3]) / [0.2, 0.25, 0.3]).astype(np.float32)
    right = (model.forward(x).argmax(1) == records[:, 0]).sum()

    said = ("--model", "resnet20", "--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.3", "--records", "records.bin")
    for file in ("foreign.safetensors", "script.safetensors"):
        code, out, error = command("eval", "--checkpoint", file, *said)
        assert (code, error) == (0, "")
        assert out.splitlines()[-1].startswith(f"accuracy {right / 12:.2%} ({right} of 12)")

    for left_out, part in (("--model", "give --model"), ("--mean", "--std was given alone"), ("--std", "--mean was given")):
        place = said.index(left_out)
        code, _, error = command("eval", "--checkpoint", "foreign.safetensors", *said[:place], *said[place + 2:])
        assert code == 2 and part in error
    code, _, error = command("eval", "--checkpoint", "foreign.safetensors", *said[:2], *said[-2:])
    assert code == 0 and "ImageNet's mean 0.485, 0.456, 0.406 and std 0.229" in error
    code, _, error = command("eval", "--checkpoint", "foreign.safetensors", *said, "--mean", "0.5,0.4")
    assert code == 2 and "mean '0.5,0.4' is not three numbers" in error
    code, _, error = command("eval", "--checkpoint", "foreign.safetensors", *said, "--model", "resnet32")
    assert code == 2 and "missing" in error


def test_the_published_checkpoint_scores_915_of_1000(command, published):
    pytest.importorskip("torch")
    with use_backend("cpu"):
        code, out, error = command(
            "eval", "--checkpoint", published / "pretrained" / "resnet20-12fca82f.th", "--model", "resnet20",
            "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225",
            "--records", published / "lossless" / "test_batch_first1000.bin")
    assert code == 0, error
    assert out.splitlines()[-1] == "accuracy 91.50% (915 of 1,000), 95 % interval 89.61% to 93.07%"


def test_predict_names_the_classes(command, trained, pictures, tmp_path):
    Image.new("L", (31, 20), 128).save("grey.png")
    own = pictures / "test" / "red" / "0.png"
    code, out, error = command("predict", own, "grey.png")
    assert code == 0
    assert error == "using runs/one/best.safetensors\n"
    first, second = out.splitlines()
    assert first.startswith(f"{own}: ") and "resized" not in first
    assert second.startswith("grey.png: ")
    assert second.endswith("(resized from 31 x 20 and cropped to the middle 10 x 10 pixels)")
    parts = first.removeprefix(f"{own}: ").split("   ")
    assert {part.split()[0] for part in parts} == {"red", "green", "blue"}
    percentages = [float(part.split()[1].rstrip("%")) for part in parts]
    assert percentages == sorted(percentages, reverse=True)
    assert sum(percentages) == pytest.approx(100, abs=0.2)
    code, again, error = command("predict", own, "--checkpoint", "runs/one/best.safetensors")
    assert (code, again, error) == (0, first + "\n", "")


def test_predict_of_wrong_things(command, trained, pictures):
    own = pictures / "test" / "red" / "0.png"
    for name in ("absent.png", "runs/one/config.toml", "runs"):
        code, out, error = command("predict", own, name)
        assert (code, out) == (2, "")
        assert f"{name} cannot be read as a picture" in error
    save_tensors("bare.safetensors", {"a": np.ones(3)})
    code, _, error = command("predict", own, "--checkpoint", "bare.safetensors")
    assert code == 2 and "does not name its network: give --model" in error


# --- summary, gradcheck, plot ---


def test_summary_prints_layers_and_totals(command):
    code, out, error = command("summary", "resnet20", "--shortcut", "B")
    assert (code, error) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert rows["conv1"] == ["Conv2d", "32", "x", "32", "x", "16", "432", "442,368"]
    assert rows["layer3.0.shortcut.0"] == ["Conv2d", "8", "x", "8", "x", "64", "2,048", "131,072"]
    assert rows["total"] == ["272,474", "40,813,184"]
    code, out, _ = command("summary", "resnet20", "--num-classes", 100, "--image-size", 64)
    assert "6,400" in out and "275,572" in out


def test_gradcheck_prints_a_certificate(command):
    code, out, error = command("gradcheck", "Linear")
    assert (code, error) == (0, "")
    assert "Linear" in out and "every gradient is the derivative" in out
    code, detailed, _ = command("gradcheck", "Linear", "--details")
    assert code == 0 and len(detailed.splitlines()) > len(out.splitlines())


def test_gradcheck_exits_with_1_when_a_gradient_is_wrong(command, monkeypatch):
    from minires.layers import Linear

    right = Linear.backward
    monkeypatch.setattr(Linear, "backward", lambda self, dy: right(self, dy) * 1.001)
    code, out, _ = command("gradcheck", "Linear")
    assert code == 1
    assert "FAILED" in out


def test_plot_draws_runs(command, trained, tmp_path):
    code, out, _ = command("plot", "runs/one", "runs/one", "--out", "both.png")
    assert code == 0 and out == "drew 1 run into both.png\n"
    with Image.open(tmp_path / "both.png") as picture:
        assert picture.format == "PNG"
    (tmp_path / "runs/one/metrics.jsonl").write_text("")
    code, _, error = command("plot", "runs/one")
    assert code == 2 and "holds no epoch yet" in error
    assert not (tmp_path / "comparison.png").exists()
