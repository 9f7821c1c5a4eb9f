"""The command `minires doctor`: what this machine offers minires, whatever is missing."""
import ctypes
import importlib
import os
import platform
from pathlib import Path
from typing import Annotated

import typer

import minires
from minires.commands.options import require_picture
from minires.errors import UserError


def doctor(
    run: Annotated[Path | None, typer.Argument(help="A run's folder: look for mistakes in how it was trained.",
                                               show_default=False)] = None,
    picture: Annotated[Path | None, typer.Option(help="A .png for the run's learning rate range test.",
                                                 show_default=False)] = None,
):
    """Print what minires finds here: Python, libraries, threads, CUDA, data; or which classic mistakes a run shows."""
    if run is not None:
        return _look_at(run, picture)
    if picture is not None:
        raise UserError(f"--picture {picture} is of a run's range test: name the run")
    facts = [(name, _said_by(probe)) for name, probe in PROBES.items()]
    width = max(len(name) for name, _ in facts)
    for name, text in facts:
        typer.echo(f"{name:{width}}  {text}")


def _look_at(run, picture):
    from minires import arguments
    from minires.study.doctor import doctor_run

    if picture is not None:
        require_picture(picture, "--picture")
    found = doctor_run(arguments.path("run", run), picture)
    for finding in found:
        typer.echo(f"{finding}")
    if found:
        raise typer.Exit(1)
    typer.echo("none of the experiments found a mistake")


class _Missing(Exception):
    """What a probe looks for is not here: the message says so, and what to do."""


def _said_by(probe):
    """The probe's line. One that fails says why: a doctor that breaks on a broken installation is of no use."""
    try:
        return probe()
    except _Missing as error:
        return str(error)
    except Exception as error:
        reason = str(error).strip().splitlines() or [""]
        return f"unknown ({type(error).__name__}: {reason[0]})"


def _library(name, install):
    """The imported library. _Missing when it is not installed or does not load."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise _Missing(f"not installed: pip install {install}") from None
    except Exception as error:  # an extension built for another Python or NumPy, a library that it needs
        raise _Missing(f"installed, but does not load ({type(error).__name__}: {str(error).splitlines()[0]}): "
                       f"pip install --force-reinstall {install}") from None


def _python():
    system = f"{platform.system()} {platform.machine()}"
    return f"{platform.python_version()} ({platform.python_implementation()}, {system})"


def _minires():
    return f"{minires.__version__} in {Path(minires.__file__).parent}"


def _numpy():
    return _library("numpy", "numpy").__version__


def _blas():
    blas = _library("numpy", "numpy").show_config(mode="dicts")["Build Dependencies"]["blas"]
    details = blas.get("openblas configuration") or blas.get("version", "")
    if not blas.get("found", True):
        return "none: NumPy multiplies in loops of its own"
    return f"{blas['name']}, {details}".rstrip(", ")


def _numba():
    config = _library("numba", "numba").config
    processor = config.CPU_NAME or importlib.import_module("llvmlite.binding").get_host_cpu_name()
    cache = f", keeps its kernels in {config.CACHE_DIR}" if config.CACHE_DIR else ""
    return f"{importlib.import_module('numba').__version__}, compiles for {processor}{cache}"


def _threading():
    numba = _library("numba", "numba")
    from minires.backends.cpu.threads import pool

    layers = [name for name, module in (("tbb", "tbbpool"), ("omp", "omppool"), ("workqueue", "workqueue"))
              if _loads(f"numba.np.ufunc.{module}")]
    layer, threads = numba.config.THREADING_LAYER, numba.config.NUMBA_NUM_THREADS
    return (f"{pool.threads} threads of minires' own share out a kernel's work; Numba's layer ({layer}: "
            f"{', '.join(layers) or 'none'}, {threads} threads) stays idle")


def _loads(module):
    try:
        importlib.import_module(module)
    except Exception:
        return False
    return True


def _vectors():
    _library("numba", "numba")
    from minires.backends.cpu.host import VECTOR_BYTES, VECTOR_REGISTERS

    return (f"{8 * VECTOR_BYTES} bits, {VECTOR_BYTES // 4} float32 or {VECTOR_BYTES // 8} float64; {VECTOR_REGISTERS} "
            "registers")


def _cores():
    from minires.machine import cores, memory_bytes, processor

    limit = f", NUMBA_NUM_THREADS={os.environ['NUMBA_NUM_THREADS']}" if "NUMBA_NUM_THREADS" in os.environ else ""
    return f"{cores()} of {os.cpu_count()} usable{limit}, {processor()}, {memory_bytes() / 2**30:.1f} GiB of memory"


def _cupy():
    return _library("cupy", "'minires[cuda12]' (or cuda13, after the driver's version)").__version__


def _dotted(version):
    return f"{version // 1000}.{version % 1000 // 10}"


def _cuda():
    """The driver's CUDA version, asked without CuPy, and CuPy's runtime if it is there."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise _Missing("no NVIDIA driver: libcuda is not on this machine") from None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)):
        raise _Missing("an NVIDIA driver that does not answer: nvidia-smi may say why")
    runtime = "" if not _loads("cupy") else f", CuPy's runtime {_dotted(_cupy_runtime().runtimeGetVersion())}"
    return f"driver for CUDA {_dotted(version.value)}{runtime}"


def _cupy_runtime():
    return importlib.import_module("cupy").cuda.runtime


def _device():
    if not _loads("cupy"):
        raise _Missing("none without CuPy")
    runtime = _cupy_runtime()
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        raise _Missing(f"none ({str(error).splitlines()[0]})") from None
    if not count:
        raise _Missing("none (CuPy counts 0 devices)")
    found = runtime.getDeviceProperties(runtime.getDevice())
    others = f"; {count} devices, CUDA_VISIBLE_DEVICES chooses" if count > 1 else ""
    return (f"{found['name'].decode()}, sm_{found['major']}{found['minor']}, {found['multiProcessorCount']} "
            f"multiprocessors, {found['totalGlobalMem'] / 2**30:.1f} GiB{others}")


def _datasets():
    from minires.data.cifar10 import RECORD_BYTES, RECORDS_PER_FILE, find_layout

    cache = Path(os.environ.get("MINIRES_CACHE") or _library("pooch", "pooch").os_cache("minires"))
    found = find_layout(cache)
    if found is None:
        return (f"{cache} holds no CIFAR-10: minires train --dataset cifar10 downloads it (170 MB), or --data-dir names a "
                "copy")
    folder, suffix = found
    whole = sum(path.stat().st_size == RECORD_BYTES * RECORDS_PER_FILE for path in folder.glob("*_batch*.bin"))
    state = "" if not suffix else ", whole" if whole == 6 else f", {whole} of 6 files whole: the next use downloads it again"
    return f"CIFAR-10 in {folder}{state}"


def _train_on():
    devices = []
    for name, needs in (("cpu", ("numpy", "numba")), ("cuda", ("numpy", "cupy"))):
        missing = [library for library in needs if not _loads(library)]
        if missing:
            devices.append(f"{name}: no, without {' and '.join(missing)}")
        elif name == "cuda" and _said_by(_device).startswith(("none", "unknown")):
            devices.append("cuda: no, without a device")
        else:
            devices.append(f"{name}: yes")
    return "; ".join(devices)


PROBES = {
    "python": _python, "minires": _minires, "numpy": _numpy, "blas": _blas, "numba": _numba, "threads": _threading,
    "vectors": _vectors, "cores": _cores, "cupy": _cupy, "cuda": _cuda, "device": _device, "data": _datasets,
    "--device": _train_on,
}
