"""The processes that compile a plan's kernels beside this one."""
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from minires.backends.cpu import numba_private, threads
from minires.backends.cpu.ahead import Ahead

module = sys.modules[Ahead.__module__]
two_cores = pytest.mark.skipif(threads.MOST_THREADS < 2, reason="needs two cores: a single one is not shared")
STEP = """
import os
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
    while self._processes and not list(Path(os.environ["NUMBA_CACHE_DIR"]).rglob("*gradient_kernel*.nbc")) and (
            time.monotonic() < end):
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
        ahead.compiling()  # the next kernel starts no more
    assert ahead._processes == []


LOCKS = pytest.mark.skipif(os.name == "nt", reason="files are locked by fcntl")
COMPILES = """
import sys, time
from numba.core import event
from minires.backends.cpu import relu_forward
import numpy as np

class Compiled(event.Listener):
    def on_start(self, event):
        names.append(event.data["dispatcher"].py_func.__qualname__)

    def on_end(self, event):
        pass

names = []
event.register("numba:compile", Compiled())
print("ready", flush=True)
sys.stdin.readline()
relu_forward(np.ones(7, np.float32))
print(names.count("_relu"))
"""


@LOCKS
def test_of_two_processes_that_need_a_kernel_one_compiles_it(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_NUM_THREADS": "1"}
    both = [subprocess.Popen([sys.executable, "-c", COMPILES], env=environment, text=True, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    counts = sorted(process.communicate()[0].split()[-1] for process in both)
    assert counts == ["0", "1"]


@LOCKS
def test_a_process_that_is_gone_is_not_waited_for(tmp_path):
    path = tmp_path / "kernel.lock"
    program = ("import sys, time; from pathlib import Path; from minires.backends.cpu.numba_private import _lock; "
               "file = _lock(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    threading.Timer(0.3, process.kill).start()
    began = time.perf_counter()
    numba_private._lock(path).close()
    assert 0.2 < time.perf_counter() - began < 20
    process.communicate()


def test_an_operator_is_described_for_a_few_images_and_computed_so():
    x = np.zeros((40, 8, 8, 3), np.float32)
    job = module._described(("conv2d_input_gradient", (x, np.zeros((3, 3, 3, 3), np.float32), (40, 8, 8, 3), (1, 1), (1, 1),
                                                       (1, 1))), 40)
    assert "[8, 8, 8, 3]" in job
    module._compute(module._described(RELU, 2))
    assert module._described(("opaque", (lambda x: x, x)), 4) is None


def test_each_process_begins_with_a_family_of_its_own():
    x, wide, narrow = (np.zeros(shape, np.float32) for shape in ((16, 8, 8, 16), (3, 3, 16, 16), (1, 1, 16, 8)))
    ways = (1, 1), (0, 0), (1, 1)
    steps = [("conv2d_forward", (x, narrow, None, *ways)), ("relu_forward", (x,)),
             ("conv2d_forward", (x, wide, None, (1, 1), (1, 1), (1, 1))), ("relu_forward", (x,)),
             ("conv2d_input_gradient", (x[..., :8], narrow, x.shape, *ways)), ("global_avgpool_forward", (x,))]
    found = module.families(steps, 16)
    assert [len(jobs) for jobs in found] == [1, 2, 2], "Winograd's, the direct ones', the others; each once"
    orders = [module.in_order(found, number, way) for number, way in ((0, -1), (1, -1), (2, -1), (1, 1), (3, 1))]
    assert all(sorted(order) == sorted(job for jobs in found for job in jobs) for order in orders)
    assert [order[0] for order in orders] == [found[0][0], found[1][0], found[2][1], found[1][0], found[2][0]]
