"""The kernels of a program are compiled side by side, in processes, on a machine that has none of them yet.

Numba compiles one function at a time in a process, and a first training step meets two dozen kernels. But a plan knows all
its operators before the first runs (minires.plan). So once a process begins to compile within `together`, it starts others,
one for each further core, and gives them the list. This process goes through it from the first operator on, the others from
the last, each computing an operator on one image of zeros; what they compile comes into the cache on disk. Whoever takes an
operator first leaves a file that says so, and this process, where it finds one, waits until its kernel is there.

Nothing that is computed comes from there. Should a process fail, kernels are compiled where they are met.
"""
import atexit
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from minires.backends.cpu import threads

PATIENCE = 120  # seconds; no kernel takes so long that it should not be given up
MOST_PROCESSES = 3  # beside this one: there are two dozen kernels, some of which take a fifth of the time
LOOK = 0.005  # seconds between two looks for a kernel


class Ahead:
    """The processes, while a program runs for the first time."""

    def __init__(self):
        self._jobs, self._folder, self._processes = None, None, []

    @contextmanager
    def together(self, steps, images):
        """Inside, the kernels of steps, (operator, arguments) each, are compiled side by side, if any must be.

        images: the length of the batch, in whose place they are compiled for one image.
        """
        self._jobs = [_described(step, images) for step in steps]
        try:
            yield
        finally:
            self._jobs = None
            self.end()

    def compiling(self):
        """A kernel is being compiled in this process. With one thread no core is idle."""
        if self._jobs and sys.executable and self._folder is None and threads.pool.threads > 1:
            self._folder = tempfile.TemporaryDirectory(prefix="minires-kernels-", ignore_cleanup_errors=True)
            jobs = json.dumps([str(self._folder.name), list(dict.fromkeys(job for job in self._jobs if job))])
            # One thread each, which also keeps them from starting more.
            environment = {**os.environ, "NUMBA_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
            atexit.register(self.end)
            for _ in range(min(threads.pool.threads - 1, MOST_PROCESSES)):
                try:
                    process = subprocess.Popen([sys.executable, "-m", __name__], env=environment, text=True,
                                               stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                    self._processes.append(process)
                    process.stdin.write(jobs)
                    process.stdin.close()
                except OSError:  # it could not be started, or is gone
                    break

    def begin(self, index):
        """This process comes to a step of the program: it takes it, or waits for who did."""
        if self._folder is None or not self._jobs or not self._jobs[index]:
            return
        claimed = Path(self._folder.name, _name(self._jobs[index]))
        if _claim(claimed):
            claimed.with_suffix(".done").touch()  # met again, it is there
            return
        end = time.monotonic() + PATIENCE
        while not claimed.with_suffix(".done").exists() and time.monotonic() < end and (
                any(process.poll() is None for process in self._processes)):
            time.sleep(LOOK)

    def end(self):
        """Stop the processes, wherever they are."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        if self._folder is not None:
            self._folder.cleanup()
        self._processes, self._folder = [], None


def _name(job):
    return hashlib.blake2b(job.encode(), digest_size=16).hexdigest() + ".claimed"


def _claim(path):
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _described(step, images):
    """An operator and its arguments as JSON, for one image; None where an argument is no array and no number."""
    def told(value):
        if hasattr(value, "dtype") and hasattr(value, "shape"):
            batch = not isinstance(value, np.ndarray) and value.shape[:1] == (images,)  # a value of the program
            return {"shape": (1, *value.shape[1:]) if batch else value.shape, "dtype": str(value.dtype)}
        if isinstance(value, tuple | list):
            if len(value) == 4 and all(isinstance(size, int) for size in value) and value[0] == images:
                value = (1, *value[1:])  # the shape of a batch
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
    """A further process: compile from the end of the list what nobody has taken."""
    folder, jobs = json.load(sys.stdin)
    for job in reversed(jobs):
        claimed = Path(folder, _name(job))
        if _claim(claimed):
            try:
                _compute(job)
            finally:  # whoever waits goes on
                claimed.with_suffix(".done").touch()


ahead = Ahead()

if __name__ == "__main__":
    _serve()
