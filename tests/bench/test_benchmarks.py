"""The benchmarks: what they measure is written down, what disagrees is refused, and each command runs to its end."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT

import benchmarks
from benchmarks import kernels, methods, rewrites, scaling, table
from minires.bench import compare, roofline, tables
from minires.bench.workers import Worker, WorkerError, spread, take_turns
from minires.cli import main
from minires.errors import UserError
from minires.plan.rewrites import TRAINING

THREADS = 1  # what is tested here does not depend on it, and one thread waits for no other on a busy machine


def run_cli(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return stopped.value.code or 0


@pytest.fixture
def results(tmp_path, monkeypatch):
    """The folder that results go to."""
    for module in (benchmarks, kernels, scaling):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    return tmp_path


def small_setup(folder, **changes):
    return {"engine": "minires", "model": "resnet20", "work": "inference", "batch": 2, "threads": 1,
            **compare.write_inputs(folder, "resnet20", 2), **changes}


# --- side by side ---

def test_side_by_side_writes_every_field(tmp_path, capsys):
    pytest.importorskip("torch")
    out = tmp_path / "result.json"
    code = run_cli("bench", "--vs", "torch", "--models", "resnet20", "--batches", "4", "--work", "training", "--variants",
                   "eager", "--repetitions", "2", "--launches", "1", "--threads", str(THREADS), "--json", str(out))
    assert code == 0
    result = json.loads(out.read_text())
    assert result["threads"] == THREADS and result["machine"]["processor"] and result["machine"]["versions"]["torch"]
    (cell,) = result["cells"]
    assert (cell["model"], cell["work"], cell["batch"], cell["best"]) == ("resnet20", "training", 4, "eager")
    for row in cell["engines"].values():
        assert len(row["seconds"]) == 2 and 0 < row["min"] <= row["median"]
        assert 50e6 < row["peak_bytes"] < 4e9
    own, other = cell["engines"]["minires"], cell["engines"]["eager"]
    assert 1e5 < own["arena_bytes"] < own["peak_bytes"] and other["arena_bytes"] is None
    assert other["minires_ratio"]["median"] == pytest.approx(np.median(np.divide(own["seconds"], other["seconds"])))
    assert set(cell["agreement"]["eager"]) == {"loss", "logits", "gradients"}
    for times in result["first_steps"]["warm"].values():
        assert len(times["ready"]) == 1 and all(np.less(times["ready"], times["first_step"]))
    printed = capsys.readouterr().out
    assert "minires / it" in printed and "PyTorch eager" in printed and "first step done" in printed


def test_engines_that_disagree_are_not_timed(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")

    def write_other_weights(folder, model, batch):
        setup = write_inputs(folder, model, batch)
        with np.load(setup["torch_weights"]) as weights:
            changed = dict(weights)
        changed["layer2.0.conv1.weight"] = changed["layer2.0.conv1.weight"] * np.float32(1.1) + np.float32(0.01)
        np.savez(setup["torch_weights"], **changed)
        return setup

    write_inputs = compare.write_inputs
    monkeypatch.setattr(compare, "write_inputs", write_other_weights)
    out = tmp_path / "result.json"
    code = run_cli("bench", "--vs", "torch", "--models", "resnet20", "--batches", "2", "--work", "inference", "--variants",
                   "eager", "--json", str(out))
    captured = capsys.readouterr()
    assert code == 1 and "differ in logits" in captured.err and "nothing was timed" in captured.err
    assert not out.exists() and "median" not in captured.out


def agreeing():
    rng = np.random.default_rng(0)
    return {"loss": np.array(2.3), "logits": rng.standard_normal((4, 10)), "grad fc.weight": rng.standard_normal((10, 64))}


@pytest.mark.parametrize(("name", "change", "kind"), [
    ("loss", lambda loss: loss + 0.01, "loss"), ("logits", lambda y: y + 0.02, "logits"),
    ("grad fc.weight", lambda g: g * 1.1, "gradients"), ("grad fc.weight", lambda g: g * np.nan, "gradients")])
def test_each_kind_of_difference_is_found(name, change, kind):
    expected = agreeing()
    compare.require_agreement(compare.differences(expected, expected), "itself")
    apart = compare.differences({**expected, name: change(expected[name])}, expected)
    with pytest.raises(compare.Disagreement, match=f"differ in {kind} by"):
        compare.require_agreement(apart, "another")


def test_a_missing_gradient_and_another_shape_are_differences():
    expected = agreeing()
    with pytest.raises(compare.Disagreement, match=r"grad fc\.weight"):
        compare.differences({"loss": expected["loss"], "logits": expected["logits"]}, expected)
    with pytest.raises(compare.Disagreement, match="shape"):
        compare.differences({**expected, "grad fc.weight": expected["grad fc.weight"].T}, expected)


# --- workers ---

def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_workers_take_turns_and_use_no_processor_between_them(tmp_path):
    with Worker(small_setup(tmp_path)) as one, Worker(small_setup(tmp_path, threads=THREADS)) as two:
        for worker in (one, two):
            worker.start()
        seconds = take_turns({"one": one, "two": two}, 2)
        assert all(len(values) == 2 and min(values) > 0 for values in seconds.values())
        if Path("/proc/self/stat").exists():
            before = [cpu_seconds(worker._process.pid) for worker in (one, two)]
            time.sleep(0.1)
            assert [cpu_seconds(worker._process.pid) for worker in (one, two)] == before


def test_a_worker_reports_its_error_and_its_death(tmp_path):
    setup = small_setup(tmp_path, model="resnet21")
    with Worker(setup) as worker, pytest.raises(WorkerError, match="resnet21 is unknown"):
        worker.start()
    with Worker(small_setup(tmp_path)) as worker:
        worker._process.send_signal(signal.SIGKILL)
        worker._process.wait()
        with pytest.raises(WorkerError, match="the process of minires ended"):
            worker.start()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot tell a stopped process that its parent ended")
def test_a_stopped_worker_ends_with_its_parent(tmp_path):
    script = ("import json, sys; from minires.bench.workers import Worker; worker = Worker(json.loads(sys.argv[1])); "
              "worker.start(); print(worker._process.pid, flush=True); sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", script, json.dumps(small_setup(tmp_path))], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        status = Path(f"/proc/{int(parent.stdout.readline())}/stat")

        def state():
            return status.read_text().rsplit(")", 1)[1].split()[0]

        end = time.monotonic() + 5
        while state() != "T" and time.monotonic() < end:  # the signal takes effect a moment after it was sent
            time.sleep(0.01)
        assert state() == "T"
        parent.kill()
    end = time.monotonic() + 5
    while status.exists() and state() != "Z" and time.monotonic() < end:
        time.sleep(0.02)
    assert not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_spread_is_of_the_quartiles():
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3.0, "min": 1.0, "iqr": 2.0}


@pytest.mark.parametrize(("arguments", "message"), [
    (("--vs", "jax"), "--vs jax is unknown"), (("--models", "resnet20,resnet21"), "--models resnet21 is unknown"),
    (("--models", "resnet20@224"), "a size goes with resnet18"), (("--models", "resnet50@x"), "is a number from 32 to 512"),
    (("--batches", "128,x"), "--batches 128,x is not a list"), (("--batches", "0"), "--batches 0 is not a list"),
    (("--repetitions", "1"), "--repetitions 1 is too small"), (("--threads", "0"), "cannot use 0 threads"),
    (("--launches", "0"), "--launches 0 is too small"),
    (("--work", "rest"), "--work rest is unknown"), (("--json", "no/such/folder.json"), "--json no/such/folder.json")])
def test_wrong_options_are_one_sentence(arguments, message, capsys):
    assert run_cli("bench", *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""


@pytest.mark.parametrize("model", ["plain8", "resnet14", "resnet34", "resnet50", "resnet50@64"])
def test_every_network_has_its_twin(model, tmp_path, rng):
    torch = pytest.importorskip("torch")
    from minires.bench.networks import build_network, parts
    from minires.bench.torch_resnet import build_torch_model
    from minires.interop.torch import to_torch_state_dict

    network, size = build_network(model, rng).eval(), parts(model)[2]
    twin = build_torch_model(model, to_torch_state_dict(network)).eval()
    x = rng.standard_normal((2, size, size, 3), np.float32)
    with torch.inference_mode():
        expected = twin(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(network.forward(x), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


# --- the README's table ---

def cell(work, batch, own, eager, channels_last):
    def row(median, **more):
        return {"median": median, "min": median, "iqr": 0.0, "peak_bytes": 250e6, "arena_bytes": None, **more}

    def ratio(other):
        return {"minires_ratio": {"median": own / other, "min": own / other, "iqr": 0.02}}

    return {"model": "resnet20", "work": work, "batch": batch, "agreement": {"eager": {}, "channels_last": {}},
            "left_out": {"compiled": "compiled: no compiler"}, "best": "eager" if eager < channels_last else "channels_last",
            "engines": {"minires": row(own), "eager": row(eager, **ratio(eager)),
                        "channels_last": row(channels_last, **ratio(channels_last))}}


RESULT = {"machine": {"processor": "A processor", "llvm_name": "znver5", "features": ["avx2", "avx512f"], "cores": 2,
                      "versions": {"minires": "0.1.0", "torch": "2.13"}, "date": "2026-01-02"}, "threads": 2,
          "cells": [cell("training", 128, 0.1, 0.4, 0.2), cell("inference", 1, 0.001, 0.0021, 0.004)],
          "first_steps": {"model": "resnet20", "batch": 128,
                          "warm": {"minires": {"ready": [1.0, 1.1, 0.9], "first_step": [2.0, 2.1, 1.9]}}}}


def test_the_table_is_that_of_the_results():
    text = tables.markdown(RESULT)
    assert text == tables.markdown(json.loads(json.dumps(RESULT)))
    assert "A processor (znver5, avx512f), 2 of 2 cores, minires 0.1.0, torch 2.13, 2026-01-02." in text
    assert "| resnet20 | 128 | 100 | 400 | 200 | **0.50** ± 0.01 | 250 / 250 |" in text
    assert "| resnet20 | 1 | 1.00 | 2.10 | 4.00 | **0.48** ± 0.01 | 250 / 250 |" in text
    assert "warm cache (resnet20): minires 2.0 s." in text
    assert "compiled: left out" in tables.cell_text(RESULT["cells"][0]).replace("PyTorch ", "")


def test_the_table_replaces_what_stands_between_the_markers(tmp_path):
    readme, results = tmp_path / "README.md", tmp_path / "vs_torch.json"
    results.write_text(json.dumps(RESULT))
    readme.write_text(f"before\n{table.START}\nan older table\n{table.END}\nafter\n")
    table.main(results, readme)
    once = readme.read_text()
    table.main(results, readme)
    assert readme.read_text() == once == f"before\n{table.START}\n{tables.markdown(RESULT)}\n{table.END}\nafter\n"
    readme.write_text("no markers")
    with pytest.raises(UserError, match="no place for the table"):
        table.main(results, readme)
    with pytest.raises(UserError, match="is not there"):
        table.main(tmp_path / "other.json", readme)
    assert readme.read_text() == "no markers"


# --- the other commands ---

@pytest.mark.parametrize(("kernel", "stride", "H", "C", "O", "winograd"), [
    (3, 1, 6, 5, 6, True), (3, 2, 7, 5, 6, False), (1, 2, 6, 5, 6, False), (3, 1, 8, 16, 16, True)])
def test_all_methods_compute_the_same_convolution(kernel, stride, H, C, O, winograd, rng):
    x, weight = rng.standard_normal((2, H, H, C)), rng.standard_normal((kernel, kernel, C, O))
    size, step, padding = (kernel, kernel), (stride, stride), (kernel // 2, kernel // 2)
    dy = rng.standard_normal(methods.METHODS["direct"].forward(x, weight, step, padding).shape)
    fitting = {name: m for name, m in methods.METHODS.items() if m.fits(x, weight, step, padding)}
    assert {"naive", "im2col", "direct"} <= set(fitting) and ("winograd2" in fitting) == ("winograd4" in fitting) == winograd
    for name, method in fitting.items():
        y, dx = method.forward(x, weight, step, padding), method.input_gradient(dy, weight, x.shape, step, padding)
        dweight = method.weight_gradient(dy, x, size, step, padding)
        # Each is the adjoint of the others: <dy, conv(x, w)> = <dx, x> = <dweight, w>.
        products = [(dy * y).sum(), (dx * x).sum(), (dweight * weight).sum()]
        np.testing.assert_allclose(products, products[0], rtol=1e-10, err_msg=name)
        np.testing.assert_allclose(y, methods.METHODS["im2col"].forward(x, weight, step, padding), atol=1e-10, err_msg=name)


def test_kernels_are_measured_against_the_roofline(results, rng, monkeypatch):
    monkeypatch.setattr(kernels, "SHAPES", (kernels.Shape(8, 16, 16, 3, 1),))
    monkeypatch.setattr(kernels, "ALONE", (kernels.Shape(8, 16, 16, 3, 1),))
    monkeypatch.setattr(kernels, "MAPS", ((8, 16),))
    kernels.main(batch=2, repetitions=1, threads=1, stem="kernels")
    result = json.loads((results / "kernels.json").read_text())
    assert (results / "kernels.png").stat().st_size > 10_000
    assert 1e9 < result["peak_flops"] < 1e13 and all(1e8 < rate < 1e13 for rate in result["bandwidth"].values())
    convolutions = [row for row in result["rows"] if "error" in row and "one image" not in row["shape"]]
    alone = [row for row in result["rows"] if "one image" in row["shape"]]
    assert len(alone) == len(convolutions) and all(row["flops"] == 2 * 8 * 8 * 16 * 9 * 16 for row in alone)
    assert {row["method"] for row in convolutions} == set(methods.METHODS)
    assert all(row["error"] < 1e-4 and row["flops"] == 2 * 2 * 8 * 8 * 16 * 9 * 16 for row in convolutions)
    for row in result["rows"]:
        least = max(row["flops"] / result["peak_flops"], row["bytes"] / roofline.bandwidth(int(row["bytes"])))
        assert row["fraction"] == pytest.approx(least / row["seconds"])


def test_scaling_compares_threads_batches_and_depths(results):
    scaling.main(repetitions=2, threads=1, batch=2, largest_batch=32, deepest=32, stem="scaling")
    result = json.loads((results / "scaling.json").read_text())
    assert [row["batch"] for row in result["batches"]] == [16, 32] and [row["depth"] for row in result["depths"]] == [20, 32]
    assert set(result["threads"]) == {"resnet20", "resnet32"}
    assert result["batches"][1]["median"] > result["batches"][0]["median"] > 0
    assert (results / "scaling.png").stat().st_size > 10_000
    with pytest.raises(UserError, match="two points"):
        scaling.main(2, 1, 2, 16, 32, "scaling")


def test_each_rewrite_is_left_out_once(results, capsys):
    rewrites.main("resnet20", 2, 1, THREADS, "rewrites")
    rows = json.loads((results / "rewrites.json").read_text())["rows"]
    assert next(iter(rows)) == "all" and list(rows)[-1] == "none" and len(rows) == len(TRAINING) + 2
    assert rows["all"]["ratio"] == 1 and all(row["seconds"] > 0 for row in rows.values())
    assert rows["none"]["peak_bytes"] > rows["all"]["peak_bytes"]
    with pytest.raises(UserError, match="1 or more"):
        rewrites.main("resnet20", 0, 1, THREADS, "rewrites")


def test_a_users_mistake_in_a_script_is_one_sentence(tmp_path):
    done = subprocess.run([sys.executable, "-m", "benchmarks.table", "--results", str(tmp_path / "none.json")], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("benchmarks: error: ") and done.stderr.count("\n") == 1
