"""The kernels of a program are compiled side by side, in processes, on a machine that has none of them yet.

Numba compiles one function at a time in a process, and a first training step meets a dozen kernels. But a plan knows all its
operators before the first runs (minires.plan). So once a process begins to compile within `together`, it starts others, one
for each further core, and gives them the list. This process goes through it from the first operator on, the others from the
last, each computing an operator on a few images of zeros; what they compile comes into the cache on disk, where this process
finds it, or waits for it if it is just being compiled (numba_private.py).

Nothing that is computed comes from there. Should a process fail, kernels are compiled where they are met.
"""
import atexit
import importlib
import json
import os
import subprocess
import sys
from contextlib import contextmanager, suppress

import numpy as np

from minires.backends.cpu import threads

FEW = 8  # images for which the kernels are those of a batch: what is chosen for one may be another (algorithm.py)
MOST_PROCESSES = 3  # beside this one: there are a dozen kernels, some of which take a fifth of the time


class Ahead:
    """The processes, while a program runs for the first time."""

    def __init__(self):
        self._jobs, self._processes = None, []

    @contextmanager
    def together(self, steps, images):
        """Inside, the kernels of steps, (operator, arguments) each, are compiled side by side, if any must be.

        images: the length of the batch, in whose place they are compiled for FEW.
        """
        self._jobs = [_described(step, images) for step in steps]
        try:
            yield
        finally:
            self._jobs = None
            self.end()

    def compiling(self):
        """A kernel is being compiled in this process. With one thread no core is idle."""
        if not self._jobs or not sys.executable or threads.pool.threads == 1:
            return
        jobs, self._jobs = list(dict.fromkeys(job for job in reversed(self._jobs) if job)), None
        # One thread each, which also keeps them from starting more.
        environment = {**os.environ, "NUMBA_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        atexit.register(self.end)
        count = min(threads.pool.threads - 1, MOST_PROCESSES)
        for number in range(count):
            first = number * len(jobs) // count
            with suppress(OSError):  # it could not be started, or is gone
                process = subprocess.Popen([sys.executable, "-m", __name__], env=environment, text=True,
                                           stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                self._processes.append(process)
                process.stdin.write(json.dumps(jobs[first:] + jobs[:first]))
                process.stdin.close()

    def end(self):
        """Stop the processes, wherever they are."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self._processes = []


def _described(step, images):
    """An operator and its arguments as JSON, for FEW images; None where an argument is no array and no number."""
    few = min(images, FEW)

    def told(value):
        if hasattr(value, "dtype") and hasattr(value, "shape"):
            batch = not isinstance(value, np.ndarray) and value.shape[:1] == (images,)  # a value of the program
            return {"shape": (few, *value.shape[1:]) if batch else value.shape, "dtype": str(value.dtype)}
        if isinstance(value, tuple | list):
            if len(value) == 4 and all(isinstance(size, int) for size in value) and value[0] == images:
                value = (few, *value[1:])  # the shape of a batch
            return [told(part) for part in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        raise TypeError

    operator, arguments = step
    try:
        return json.dumps([operator, told(arguments)])
    except TypeError:
        return None


def _compute(job):
    """Run an operator on zeros."""
    def made(value):
        if isinstance(value, dict):
            return np.zeros(value["shape"], value["dtype"])
        return tuple(map(made, value)) if isinstance(value, list) else value

    operator, arguments = json.loads(job)
    with np.errstate(all="ignore"):
        getattr(importlib.import_module("minires.backends.cpu"), operator)(*made(arguments))


def _serve():
    """A further process: compile what the list needs."""
    for job in json.load(sys.stdin):
        with suppress(Exception):  # the next may be computed all the same
            _compute(job)


ahead = Ahead()

if __name__ == "__main__":
    _serve()
