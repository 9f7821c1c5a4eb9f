"""The kernels of a program are compiled side by side, in processes, on a machine that has none of them yet.

Numba compiles one function at a time in a process, and a first training step meets a dozen kernels. But a plan knows all its
operators before the first runs (minires.plan). So once a process begins to compile within `together`, it starts others, one
for each further core, and gives them the list. Each computes the operators on a few images of zeros, in an order of its own:
a family first, since kernels of a family are made of the same parts, which a process compiles once. What they compile comes
into the cache on disk, where the others find it, or wait for it if it is just being compiled (numba_private.py).

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
from minires.backends.cpu.algorithm import winograd_size
from minires.backends.listing import convolution_of

FEW = 8  # images for which the kernels are those of a batch: what is chosen for one may be another (algorithm.py)
MOST_PROCESSES = 3  # beside this one: there are a dozen kernels, some of which take a fifth of the time


class Ahead:
    """The processes, while a program runs for the first time."""

    def __init__(self):
        self._families, self._count, self._processes = None, 0, []

    @contextmanager
    def together(self, steps, images):
        """Inside, the kernels of steps, (operator, arguments) each, are compiled side by side, if any must be.

        images: the length of the batch, in whose place they are compiled for FEW.
        """
        self._count = min(threads.pool.threads - 1, MOST_PROCESSES)  # with one thread no core is idle
        self._families = families(steps, images) if self._count and sys.executable else None
        try:
            for job in in_order(self._families, self._count) if self._families else ():
                with suppress(Exception):  # the program meets it too
                    _compute(job)
                if not self._processes:  # nothing had to be compiled
                    break
            yield
        finally:
            self._families = None
            self.end()

    def compiling(self):
        """A kernel is being compiled in this process."""
        if not self._families:
            return
        found, self._families = self._families, None
        # One thread each, which also keeps them from starting more.
        environment = {**os.environ, "NUMBA_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        atexit.register(self.end)
        for number in range(self._count):
            with suppress(OSError):  # it could not be started, or is gone
                process = subprocess.Popen([sys.executable, "-m", __name__], env=environment, text=True,
                                           stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                self._processes.append(process)
                process.stdin.write(json.dumps(in_order(found, number, -1)))
                process.stdin.close()

    def end(self):
        """Stop the processes, wherever they are."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self._processes = []


def families(steps, images):
    """The jobs of a program's steps by what their kernels are made of: (Winograd's, the direct convolutions', others)."""
    found = [], [], []
    for step in steps:
        job = _described(step, images)
        if job is not None and job not in (jobs := found[_family(*step)]):
            jobs.append(job)
    return found


def _family(operator, arguments):
    """0 for a convolution by Winograd, 1 for any other, 2 for what is no convolution."""
    convolution = convolution_of(operator, arguments)
    return 2 if convolution is None else int(winograd_size(*convolution) is None)


def in_order(families, number, way=1):
    """All jobs in the order of process number `number`: its own convolutions first, then what is none, whose kernels are
    many and small, last the convolutions that another process begins with. way: -1 to go through those between from the end.
    """
    own, between, last = families[number:number + 1] if number < 2 else [], families[2][::way], families[:2]
    return list(dict.fromkeys(job for jobs in (*own, between, *reversed(last)) for job in jobs))


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
