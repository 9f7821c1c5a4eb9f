"""Fixtures every test may use: a seeded generator, and the back ends that NumPy arrays can be computed by.

`cuda` is one of them. Where CuPy finds a device it is used; where it does not, the stand-in of tests/cuda_host runs the same
Python and the same .cu files on the host. `pytest -m gpu` runs the tests of `cuda` alone, and only with a device.
"""
import importlib
import importlib.util
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis.configuration import set_hypothesis_home_dir
from paths import DATA, TESTS

import minires
from minires import backends
from minires.backends import HOST_BACKENDS, set_num_threads, use_backend
from minires.backends.cpu.images import poison_scratch
from minires.backends.cpu.threads import MOST_THREADS

BACKENDS = (*HOST_BACKENDS, "cuda")

poison_scratch()  # a kernel that reads scratch memory which it has not written meets a NaN


def _device_is_there():
    if importlib.util.find_spec("cupy") is None:
        return False
    import cupy

    try:
        return cupy.cuda.runtime.getDeviceCount() > 0
    except cupy.cuda.runtime.CUDARuntimeError:
        return False


ON_DEVICE = _device_is_there()
if not ON_DEVICE:
    for _name in [name for name in sys.modules if name.split(".")[0] == "cupy"]:
        del sys.modules[_name]
    sys.path.insert(0, str(TESTS / "cuda_host"))


def pytest_configure(config):
    set_hypothesis_home_dir(config.cache.mkdir("hypothesis"))
    if ON_DEVICE:
        return
    if config.getoption("markexpr") == "gpu":
        raise pytest.UsageError("-m gpu runs the tests of the cuda back end on a device, and CuPy finds none here")
    import cupy

    # Of every process of pytest-xdist: a library is built once a machine, as long as its source stays.
    cupy._module.build_folder = config.cache.mkdir("cuda_on_host")


def each_backend(*names):
    """Parameters for tests of the back ends called `names`, those of cuda marked gpu."""
    return [pytest.param(name, marks=pytest.mark.gpu) if name == "cuda" else name for name in names]


def operators(name):
    """The operators of a back end as functions of NumPy arrays."""
    if name != "cuda":
        return importlib.import_module(f"minires.backends.{name}")
    import carried

    return carried.module


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def weights_of_its_own():
    """What a test makes without `rng` does not depend on the tests before it."""
    minires.seed(0)


@pytest.fixture
def command(capsys):
    """command("train", "--epochs", 2) -> (exit code, stdout, stderr) of minires."""
    from minires.cli import main

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return stop.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def figures(monkeypatch):
    """The figures that are made, to look into."""
    from matplotlib.figure import Figure

    made = []

    class Kept(Figure):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr("minires.plots.style.Figure", Kept)
    return made


@pytest.fixture
def every_thread():
    """The cpu back end uses all threads, in the test and after it."""
    set_num_threads(MOST_THREADS)
    yield
    set_num_threads(MOST_THREADS)


@pytest.fixture(params=each_backend(*BACKENDS))
def backend(request):
    """The test runs once inside each back end, with NumPy arrays; the value is its name."""
    if request.param != "cuda":
        with use_backend(request.param):
            yield request.param
        return
    sys.modules["minires.backends.carried"] = operators("cuda")
    token = backends._host_backend.set("carried")
    try:
        yield request.param
    finally:
        backends._host_backend.reset(token)


@pytest.fixture
def published():
    """The folder with the published weights and the lossless images."""
    if not DATA.is_dir():
        pytest.skip(f"needs the published weights and images in {DATA}, which is not there")
    return DATA


@pytest.fixture(autouse=True)
def nothing_written_outside(request):
    """After a test of cuda on the host: no kernel has written beside an array."""
    yield
    if not ON_DEVICE and _backend_of(request.node) == "cuda":
        import cupy

        cupy.check_guards()


def relative_error(found, expected):
    """max |found - expected| / max |expected|; infinite when shape, dtype or the places of NaN or inf differ."""
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return np.inf
    finite = np.isfinite(expected)
    if not np.array_equal(found[~finite], expected[~finite], equal_nan=True) or not np.isfinite(found[finite]).all():
        return np.inf
    scale = np.abs(expected[finite]).max(initial=0)
    return np.abs(found[finite] - expected[finite]).max(initial=0) / (scale or 1)


# --- the number of tests a back end ---


def _backend_of(item):
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    for parameter in ("backend", "module"):
        if parameters.get(parameter) in BACKENDS:
            return parameters[parameter]
    return "cuda" if item.path.name.startswith("test_cuda") else None


def pytest_collection_modifyitems(items):
    for item in items:
        name = _backend_of(item)
        if name:
            item.user_properties.append(("backend", name))


def pytest_terminal_summary(terminalreporter):
    counts = {name: Counter() for name in BACKENDS}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            name = dict(getattr(report, "user_properties", ())).get("backend")
            if name and (report.when == "call" or outcome != "passed"):
                counts[name][outcome] += 1
    told = [f"{name} {', '.join(f'{count} {outcome}' for outcome, count in counts[name].items())}"
            for name in BACKENDS if counts[name]]
    if told:
        where = "a device" if ON_DEVICE else "the host stand-in"
        terminalreporter.write_line(f"back ends: {'; '.join(told)} (cuda on {where})")
