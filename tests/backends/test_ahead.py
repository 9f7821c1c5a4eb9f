"""The processes that compile a plan's kernels beside this one."""
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from minires.backends.cpu import threads
from minires.backends.cpu.ahead import Ahead

module = sys.modules[Ahead.__module__]
two_cores = pytest.mark.skipif(threads.MOST_THREADS < 2, reason="needs two cores: a single one is not shared")
STEP = """
import time
from pathlib import Path
import numpy as np
from numba.core import event
from minires import MSELoss, compile
from minires.backends.cpu.ahead import Ahead
from minires.layers.residual import BasicBlock

class Compiled(event.Listener):
    def on_start(self, event):
        names.append(event.data["dispatcher"].py_func.__qualname__)

    def on_end(self, event):
        pass

def compiling(self):  # and gives the others time, so that it does not depend on the machine who compiles what
    right(self)
    end = time.monotonic() + 60
    while self._processes and not list(Path(self._folder.name).glob("*.done")) and time.monotonic() < end:
        time.sleep(0.01)

names, started, right, right_end = [], [], Ahead.compiling, Ahead.end
Ahead.compiling, Ahead.end = compiling, lambda self: started.append(len(self._processes)) or right_end(self)
event.register("numba:compile", Compiled())
rng = np.random.default_rng(0)
block = BasicBlock(16, 16, rng=rng)
x, target = rng.standard_normal((2, 4, 8, 8, 16)).astype(np.float32)
step = compile(block, MSELoss())
loss, y = step(x, target)
own = sum(name.startswith("gradient_kernel") for name in names)
print(float(np.abs(block.conv1.weight.grad).sum()), max(started), own, len(names))
"""
RELU = "relu_forward", (np.zeros((2, 3, 5)),)


def first_step(cache, threads):
    """What a new process prints of its first step: sum of a gradient, how many processes were there, gradient kernels that
    it compiled itself, and all functions that it compiled."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "NUMBA_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-c", STEP], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@two_cores
def test_a_further_process_compiles_from_the_other_end(tmp_path):
    total, started, own, functions = first_step(tmp_path, 2)
    assert (started, own) == ("1", "0") and int(functions) > 0
    assert first_step(tmp_path, 2) == [total, "0", "0", "0"]  # all is in the cache


def test_one_thread_compiles_for_itself(tmp_path):
    _, started, own, _ = first_step(tmp_path, 1)
    assert (started, own) == ("0", "1")


@two_cores
@pytest.mark.usefixtures("every_thread")
@pytest.mark.parametrize("executable", [None, "", "/no/such/python", sys.executable], ids=str)
def test_without_further_processes_nothing_is_missed(executable, monkeypatch):
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(module, "__name__", "minires.no_such_module")
    ahead = Ahead()
    with ahead.together([RELU] * 3, 2):
        ahead.compiling()
        for index in range(3):
            ahead.begin(index)
    assert ahead._processes == []


@two_cores
@pytest.mark.usefixtures("every_thread")
def test_what_another_process_has_taken_is_waited_for(monkeypatch):
    ahead = Ahead()
    monkeypatch.setattr(module.subprocess, "Popen", lambda *_, **__: Idle())
    with ahead.together([RELU], 2):
        ahead.compiling()
        folder = module.Path(ahead._folder.name)
        claimed = folder / module._name(ahead._jobs[0])
        claimed.touch()
        threading.Timer(0.2, lambda: claimed.with_suffix(".done").touch()).start()
        began = time.perf_counter()
        ahead.begin(0)
        assert time.perf_counter() - began >= 0.19
    assert not folder.exists()


@two_cores
@pytest.mark.usefixtures("every_thread")
def test_a_process_that_is_gone_is_not_waited_for(monkeypatch):
    ahead = Ahead()
    monkeypatch.setattr(module.subprocess, "Popen", lambda *_, **__: Idle(ended=True))
    with ahead.together([RELU], 2):
        ahead.compiling()
        module.Path(ahead._folder.name, module._name(ahead._jobs[0])).touch()
        began = time.perf_counter()
        ahead.begin(0)
        assert time.perf_counter() - began < 5


def test_an_operator_is_described_for_one_image_and_computed_so():
    x = np.zeros((4, 8, 8, 3), np.float32)
    job = module._described(("conv2d_input_gradient", (x, np.zeros((3, 3, 3, 3), np.float32), (4, 8, 8, 3), (1, 1), (1, 1),
                                                       (1, 1))), 4)
    assert "[1, 8, 8, 3]" in job
    module._compute(module._described(RELU, 2))
    assert module._described(("opaque", (lambda x: x, x)), 4) is None


class Idle:
    """A process that does nothing."""

    def __init__(self, ended=False):
        self.stdin, self._ended = type("Pipe", (), {"write": lambda *_: None, "close": lambda *_: None})(), ended

    def poll(self):
        return 0 if self._ended else None

    def kill(self):
        self._ended = True

    def wait(self):
        """It is over."""
