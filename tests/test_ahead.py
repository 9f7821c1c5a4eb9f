"""The second process that compiles backward's kernels while forward compiles its own."""
import os
import subprocess
import sys

import pytest

from minires.backends.cpu import threads
from minires.backends.cpu.ahead import Ahead

UNIT = (2, 8, 8, 16), "float32", (3, 3, 16, 16), (1, 1), (1, 1)
two_cores = pytest.mark.skipif(threads.MOST_THREADS < 2, reason="needs two cores: a single one is not shared")
STEP = """
import numpy as np
from numba.core import event
from minires import fuse
from minires.backends.cpu.ahead import ahead
from minires.layers.residual import BasicBlock

class Compiled(event.Listener):
    def on_start(self, event):
        names.append(event.data["dispatcher"].py_func.__qualname__)

    def on_end(self, event):
        pass

names = []
event.register("numba:compile", Compiled())
rng = np.random.default_rng(0)
block = fuse(BasicBlock(16, 16, rng=rng))
x, dy = rng.standard_normal((2, 4, 8, 8, 16)).astype(np.float32)
block(x)
dx = block.backward(dy)
own = sum(name.startswith("gradient_kernel") for name in names)
print(float(np.abs(dx).sum()), ahead._process is not None, own, len(names))
"""


def first_step(cache, threads):
    """What a new process prints of its first step: sum of dx, whether a second process was there, gradient kernels that
    it compiled itself, and all functions that it compiled."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "NUMBA_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-c", STEP], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@two_cores
def test_the_second_process_compiles_what_backward_needs(tmp_path):
    total, started, own, _ = first_step(tmp_path, 2)
    assert (started, own) == ("True", "0")
    assert first_step(tmp_path, 2) == [total, "False", "0", "0"]  # all is in the cache


def test_one_thread_compiles_for_itself(tmp_path):
    _, started, own, _ = first_step(tmp_path, 1)
    assert (started, own) == ("False", "1")


@two_cores
@pytest.mark.usefixtures("every_thread")
@pytest.mark.parametrize("executable", [None, "", "/no/such/python", sys.executable], ids=str)
def test_without_a_second_process_nothing_is_missed(executable, monkeypatch):
    monkeypatch.setattr(sys, "executable", executable)
    ahead = Ahead("minires.no_such_module")
    ahead.expect(*UNIT)
    ahead.compiling()
    for size in range(20):  # it ends meanwhile, and nobody reads
        ahead.expect((size,), *UNIT[1:])
    ahead.wait()


@two_cores
@pytest.mark.usefixtures("every_thread")
def test_it_ends_with_this_process():
    ahead = Ahead()
    ahead.compiling()
    assert ahead._process is None  # no unit is expected
    ahead.expect(*UNIT)
    ahead.compiling()
    assert ahead._process.poll() is None
    ahead.end()
    assert ahead._process.poll() is not None
    ahead.wait()
