"""Choosing a back end, threads and devices; and an import that costs nothing it need not."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minires
from minires.backends import HOST_BACKENDS, cpu, device_of, ops_for, set_num_threads, to_device, to_numpy, use_backend
from minires.backends.cpu import threads
from minires.errors import UserError

IMPORT = """
import json, sys, time
start = time.perf_counter()
import minires
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted({name.split(".")[0] for name in sys.modules})]))
"""


def test_import_is_fast_and_clean():
    runs = []
    for _ in range(3):
        result = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
        runs.append(json.loads(result.stdout))
    assert min(seconds for seconds, _ in runs) < 0.3
    heavy = {"numba", "cupy", "matplotlib", "typer", "rich", "torch", "safetensors", "pooch", "llvmlite"}
    assert not heavy & set(runs[0][1])


def test_training_parts_import_without_what_they_do_not_use():
    code = ("import sys, minires.models, minires.optim, minires.losses, minires.data, minires.study, minires.interop.torch\n"
            "print(*sorted({name.split('.')[0] for name in sys.modules}))")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numba", "cupy", "matplotlib", "typer", "torch"} & set(result.stdout.split())


def test_public_names_exist():
    for name in minires.__all__:
        assert getattr(minires, name) is not None
    assert set(dir(minires)) >= set(minires.__all__)
    with pytest.raises(AttributeError, match="module 'minires' has no attribute 'nothing'"):
        minires.nothing  # noqa: B018


def test_help_is_a_map():
    """Each public name and each room has its line in what help(minires) begins with."""
    rooms = {path.stem for path in Path(minires.__file__).parent.iterdir() if not path.name.startswith("_")} - {"cli"}
    for name in {*minires.__all__} - {"__version__"} | {f"minires.{room}" for room in rooms}:
        assert f"\n    {name}  " in minires.__doc__, name
    told = {line.split()[0] for line in minires.__doc__.splitlines() if line.startswith("    ")}
    assert told == {*minires.__all__} - {"__version__"} | {f"minires.{room}" for room in rooms}


def test_where_an_array_lives():
    import cupy

    assert device_of(np.ones(2)) == "cpu"
    assert device_of(cupy.ones(2)) == "cuda"


def test_numpy_arrays_go_to_the_chosen_backend():
    x = np.ones(2)
    assert ops_for(x).__name__ == "minires.backends.cpu"
    with use_backend("reference"):
        assert ops_for(x).__name__ == "minires.backends.reference"
        with use_backend("cpu"):
            assert ops_for(x).__name__ == "minires.backends.cpu"
        assert ops_for(x).__name__ == "minires.backends.reference"
    with pytest.raises(ZeroDivisionError), use_backend("reference"):
        _ = 1 / 0
    assert ops_for(x).__name__ == "minires.backends.cpu"
    assert HOST_BACKENDS == ("reference", "cpu")


def test_wrong_choices():
    with pytest.raises(UserError, match="unknown back end 'cuda' for NumPy arrays: choose one of reference, cpu"), \
            use_backend("cuda"):
        pass
    with pytest.raises(TypeError, match=r"NumPy and CuPy arrays, got list: .*numpy.asarray"):
        ops_for([1.0])
    with pytest.raises(UserError, match="unknown device 'tpu'"):
        to_device(np.ones(1), "tpu")


def test_no_copy_on_the_same_device():
    x = np.ones(3)
    assert to_device(x, "cpu") is x and to_numpy(x) is x


@pytest.fixture
def restored_threads():
    yield
    set_num_threads(threads.MOST_THREADS)


def test_threads(restored_threads):
    set_num_threads(1)
    assert threads.pool.threads == 1
    for wrong in (0, -1, threads.MOST_THREADS + 1, 1.5, "2"):
        with pytest.raises(UserError, match="threads: choose 1 to"):
            set_num_threads(wrong)
    assert threads.pool.threads == 1


def test_results_do_not_depend_on_the_number_of_threads(rng, restored_threads):
    x, dy = rng.standard_normal((2, 7, 16, 16, 16)).astype(np.float32)
    weight, channel = rng.standard_normal((3, 3, 16, 16)).astype(np.float32), np.ones(16, np.float32)
    geometry, found = ((1, 1), (1, 1), (1, 1)), []
    for count in (1, threads.MOST_THREADS):
        set_num_threads(count)
        y, mean, var = cpu.batchnorm_forward(x, channel, channel, 1e-5)
        found.append([cpu.conv2d_forward(x, weight, channel, *geometry),
                      cpu.conv2d_weight_gradient(dy, x, (3, 3), *geometry),
                      cpu.conv2d_input_gradient(dy, weight, x.shape, *geometry), y, mean, var,
                      *cpu.batchnorm_backward(dy, x, mean, var, channel, 1e-5, True), cpu.channel_sum(dy)])
    assert all(np.array_equal(one, many) for one, many in zip(*found, strict=True))
