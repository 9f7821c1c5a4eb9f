"""`minires bench --device cuda`: the engine on the device, its clock, its refusals. The stand-in's clock is the host's."""
import json
import os
import sys
import time
from pathlib import Path

import cupy
import numpy as np
import pytest
from conftest import ON_DEVICE
from paths import TESTS

from minires.backends.cuda import launches
from minires.bench import compare, engines, machine, tables, worker
from minires.cli import main
from minires.models import build_model

pytestmark = pytest.mark.gpu


def run_cli(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return stopped.value.code or 0


@pytest.fixture
def engine(rng):
    """A ResNet-20 on two images, on the device."""
    x, target = rng.standard_normal((2, 32, 32, 3), np.float32), rng.integers(0, 10, 2)
    return engines.MiniresEngine("resnet20", build_model("resnet20").state_dict(), x, target, 1, device="cuda")


@pytest.fixture
def processes(tmp_path, monkeypatch):
    """Processes that the test starts find the CuPy that the test has, with the kernels it has compiled."""
    if ON_DEVICE:
        return
    folder = str(cupy._module.build_folder)
    (tmp_path / "sitecustomize.py").write_text(f"import cupy._module\ncupy._module.build_folder = {folder!r}\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(TESTS / "cuda_host")]))


def test_the_command_measures_on_the_device(processes, tmp_path, capsys):
    out = tmp_path / "cuda.json"
    assert run_cli("bench", "--device", "cuda", "--models", "resnet20", "--batches", "2", "--work", "inference",
                   "--repetitions", "2", "--launches", "1", "--threads", "1", "--json", str(out)) == 0
    result = json.loads(out.read_text())
    assert result["machine"]["device"] == machine.describe_device()
    assert result["machine"]["versions"]["cupy"] == cupy.__version__
    (cell,) = result["cells"]
    row = cell["engines"]["minires"]
    assert len(row["seconds"]) == 2 and 0 < row["min"] <= row["median"]
    weights = sum(p.data.nbytes for p in build_model("resnet20").parameters())
    assert weights < row["peak_bytes"] < 50e6 or ON_DEVICE  # of the device's memory: the process itself takes more
    assert row["arena_bytes"] is None
    warm = result["first_steps"]["warm"]["minires"]
    assert 0 < warm["ready"][0] < warm["first_step"][0]
    assert machine.describe_device()["name"] in capsys.readouterr().out


def test_the_device_computes_what_the_processor_does(tmp_path):
    """The agreement that is asked for before two engines are timed, between the two devices of one."""
    files = compare.write_inputs(tmp_path, "resnet20", 4)
    setup = {"engine": "minires", "model": "resnet20", "batch": 4, "threads": 1, **files}
    for work in compare.WORK:
        host, device = (worker.build({**setup, "device": name}).first_results(work) for name in ("cpu", "cuda"))
        apart = compare.differences(device, host)
        assert set(apart) == ({"loss", "logits", "gradients"} if work == "training" else {"logits"})
        compare.require_agreement(apart, "cpu")
        assert apart["logits"] < 1e-4
    assert all(type(value) is np.ndarray for value in device.values())


def test_time_is_that_between_two_events(engine, monkeypatch):
    """Recorded before and after all steps, and read once both have happened: nothing waits in between."""
    moments, seen = [], []
    monkeypatch.setattr(cupy.cuda, "get_elapsed_time", lambda begin, end: moments.append((begin, end)) or 1250.0)
    before = 0 if ON_DEVICE else cupy.counters.synchronisations
    reply = worker.answer(engine, lambda: seen.append(len(moments)), {"do": "time", "steps": 5})
    assert reply == {"seconds": 0.25} and seen == [0] * 6  # the first is not timed
    ((begin, end),) = moments
    assert isinstance(begin, cupy.cuda.Event) and begin is not end
    assert ON_DEVICE or cupy.counters.synchronisations == before + 1


@pytest.mark.skipif(ON_DEVICE, reason="the stand-in counts how often the host waits")
def test_a_step_waits_for_nothing_and_a_first_step_for_its_end(engine):
    engine.step()
    before = cupy.counters.synchronisations
    engine.step()
    assert cupy.counters.synchronisations == before
    began = time.time()
    assert worker.answer(engine, lambda: None, {"do": "first"})["now"] >= began
    assert cupy.counters.synchronisations == before + 1


@pytest.mark.skipif(not ON_DEVICE, reason="needs a device's clock")
def test_events_and_the_host_agree_on_a_long_run(engine):
    engine.seconds(engine.step, 5)
    began = time.perf_counter()
    seconds = engine.seconds(engine.step, 50)
    assert seconds == pytest.approx(time.perf_counter() - began, rel=0.2)


def test_memory_is_the_devices(engine):
    engine.step()
    reply = worker.answer(engine, engine.step, {"do": "memory"})
    assert reply == {"peak_bytes": launches.held(), "arena_bytes": None}
    assert reply["peak_bytes"] > 2 * sum(p.data.nbytes for p in engine.model.parameters())


def test_the_machines_line_names_the_device():
    described = machine.describe_machine("cuda")
    assert "device" not in machine.describe_machine()
    line = tables.machine_text(described, 1)
    assert line.startswith(f"{described['device']['name']} (compute capability ") and described["processor"] in line
    assert "its events as clock" in line and "events" not in tables.machine_text(machine.describe_machine(), 1)


def test_what_it_refuses_is_one_sentence(monkeypatch, capsys):
    def refused(*arguments):
        assert run_cli("bench", "--device", *arguments) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and captured.out == ""
        return captured.err

    assert "choose cpu or cuda" in refused("gpu")
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--vs torch --device cuda needs a PyTorch that finds the GPU" in refused("cuda", "--vs", "torch")
    for name in [name for name in sys.modules if name.split(".")[0] == "cupy" or name.startswith("minires.backends.cuda")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not (Path(place) / "cupy").is_dir()])
    sys.path_importer_cache.clear()
    assert "device cuda needs CuPy, which is not installed: pip install 'minires[cuda12]'" in refused("cuda")
