"""`minires doctor` says what is there, and says what is missing without breaking on it."""
import subprocess
import sys
import types

import numba
import numpy as np
import pytest

from minires.backends.cpu import host, threads
from minires.cli import main
from minires.commands import doctor
from minires.data.cifar10 import RECORD_BYTES, RECORDS_PER_FILE


@pytest.fixture
def facts(capsys):
    """The command's lines as {name: text}."""
    def read():
        with pytest.raises(SystemExit) as stopped:
            main(["doctor"])
        captured = capsys.readouterr()
        assert (stopped.value.code or 0) == 0 and captured.err == ""
        return {line.split()[0]: line.split(maxsplit=1)[1] for line in captured.out.splitlines()}
    return read


WITHOUT = "cpu: yes; cuda: no, without a device"


class Runtime(types.ModuleType):
    """cupy.cuda.runtime on a machine with `devices` GPUs, or without a driver."""

    class CUDARuntimeError(RuntimeError):
        """As CuPy's."""

    def __init__(self, devices):
        super().__init__("cupy.cuda.runtime")
        self.devices = devices

    def getDeviceCount(self):
        if self.devices is None:
            raise self.CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")
        return self.devices

    def getDevice(self):
        return 0

    def getDeviceProperties(self, number):
        return {"name": b"NVIDIA H100", "major": 9, "minor": 0, "multiProcessorCount": 132, "totalGlobalMem": 80 * 2**30}

    def runtimeGetVersion(self):
        return 12090


@pytest.fixture
def with_cupy(monkeypatch):
    def install(devices):
        cupy = types.ModuleType("cupy")
        cupy.__version__, cupy.cuda = "14.2.0", types.SimpleNamespace(runtime=Runtime(devices))
        monkeypatch.setitem(sys.modules, "cupy", cupy)
    return install


def test_says_what_is_there(facts, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    found = facts()
    assert set(found) == set(doctor.PROBES)
    assert found["python"].startswith(sys.version.split()[0])
    assert found["numpy"] == np.__version__ and found["numba"].startswith(f"{numba.__version__}, compiles for ")
    assert found["threads"].startswith(f"{threads.pool.threads} threads of minires' own")
    assert numba.config.THREADING_LAYER in found["threads"] and "workqueue" in found["threads"]
    assert found["vectors"].startswith(f"{8 * host.VECTOR_BYTES} bits")
    assert found["cores"].startswith(f"{threads.MOST_THREADS} of ") or "NUMBA_NUM_THREADS" in found["cores"]
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    assert found["blas"].startswith(blas)
    assert found["cupy"].startswith("not installed: pip install 'minires[cuda12]'")
    assert found["device"] == "none without CuPy" and found["--device"] == "cpu: yes; cuda: no, without cupy"


@pytest.mark.parametrize("library", ["numpy", "numba", "llvmlite.binding", "pooch", "cupy"])
def test_works_without(library, facts, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delenv("MINIRES_CACHE", raising=False)
    found = facts()
    assert set(found) == set(doctor.PROBES) and all(found.values())
    line = found[{"llvmlite.binding": "numba", "pooch": "data"}.get(library, library)]
    assert line.startswith(("not installed: pip install ", "unknown (ModuleNotFoundError"))
    assert ("cpu: yes" in found["--device"]) == (library not in ("numpy", "numba"))


def test_works_in_a_process_without_any_of_them():
    """Nothing is imported yet there, so that minires' own modules fail as well."""
    script = ("import sys; sys.modules.update(dict.fromkeys(['numpy', 'numba', 'llvmlite', 'cupy', 'pooch'])); "
              "from minires.cli import main; main(['doctor'])")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "" and len(done.stdout.splitlines()) == len(doctor.PROBES)
    assert done.stdout.count("not installed: pip install") >= 4
    last = done.stdout.splitlines()[-1]
    assert last.endswith("  cpu: no, without numpy and numba; cuda: no, without numpy and cupy")


def test_a_library_that_does_not_load(facts, monkeypatch):
    def load(name, plain=doctor.importlib.import_module):
        if name == "cupy":
            raise ImportError("libcublas.so.12: cannot open shared object file\nmore lines")
        return plain(name)

    monkeypatch.setattr(doctor.importlib, "import_module", load)
    line = facts()["cupy"]
    assert line.startswith("installed, but does not load (ImportError: libcublas.so.12: cannot open") and "more" not in line


@pytest.mark.parametrize(("devices", "device", "trains"), [
    (1, "NVIDIA H100, sm_90, 132 multiprocessors, 80.0 GiB", "cpu: yes; cuda: yes"),
    (2, "NVIDIA H100, sm_90, 132 multiprocessors, 80.0 GiB; 2 devices, CUDA_VISIBLE_DEVICES chooses", "cpu: yes; cuda: yes"),
    (0, "none (CuPy counts 0 devices)", WITHOUT),
    (None, "none (cudaErrorInsufficientDriver: CUDA driver version is insufficient)", WITHOUT)])
def test_devices(devices, device, trains, with_cupy, facts):
    with_cupy(devices)
    found = facts()
    assert (found["cupy"], found["device"], found["--device"]) == ("14.2.0", device, trains)


class Driver:
    """libcuda of a machine whose driver is for CUDA 12.8, or does not answer."""

    def __init__(self, error):
        self.error = error

    def cuDriverGetVersion(self, version):
        version._obj.value = 12080
        return self.error


def test_the_driver(with_cupy, facts, monkeypatch):
    with_cupy(1)
    monkeypatch.setattr(doctor.ctypes, "CDLL", lambda name: Driver(0))
    assert facts()["cuda"] == "driver for CUDA 12.8, CuPy's runtime 12.9"
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert facts()["cuda"] == "driver for CUDA 12.8"
    monkeypatch.setattr(doctor.ctypes, "CDLL", lambda name: Driver(3))
    assert facts()["cuda"] == "an NVIDIA driver that does not answer: nvidia-smi may say why"

    def none(name):
        raise OSError(name)

    monkeypatch.setattr(doctor.ctypes, "CDLL", none)
    assert facts()["cuda"].startswith("no NVIDIA driver")


def test_the_data_sets_cache(facts, monkeypatch, tmp_path):
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path))
    assert facts()["data"].startswith(f"{tmp_path} holds no CIFAR-10: minires train --dataset cifar10 downloads it")
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    for name in names:
        with (folder / name).open("wb") as file:
            file.truncate(RECORDS_PER_FILE * RECORD_BYTES)
    assert facts()["data"] == f"CIFAR-10 in {folder}, whole"
    (folder / names[2]).write_bytes(b"cut")
    assert facts()["data"] == f"CIFAR-10 in {folder}, 5 of 6 files whole: the next use downloads it again"
