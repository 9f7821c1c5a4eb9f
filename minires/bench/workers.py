"""Worker processes in turns. While one works the others are stopped by a signal, so that no engine's idle threads, which
some thread pools let spin, take time from another, and every engine keeps the waiting policy its users get.
"""
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import minires

TURN = 0.1  # seconds of timed work in a turn, at least: a step of a millisecond is timed many times over


class WorkerError(RuntimeError):
    """A worker could not do what it was told: its error's first line."""


class Worker:
    """An engine in a process of its own. setup: engine, model, work, batch, threads, data, weights,
    torch_weights, and device if it is not cpu."""

    def __init__(self, setup, environment=None):
        self.setup, self.name = setup, setup["engine"]
        threads = str(setup["threads"])
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
        paths = [str(Path(minires.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with the worker
        self._began = time.time()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "minires.bench.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            text=True, bufsize=1, env={**os.environ, **dict.fromkeys(names, threads), **(environment or {}),
                                       "PYTHONPATH": os.pathsep.join(filter(None, paths))})

    def start(self):
        """Build the engine; -> seconds from the process's start until it is ready to work."""
        return self._turn(self.setup)["now"] - self._began

    def tell(self, do, **arguments):
        """Wake the worker, have it carry out one command, and stop it again; -> its reply."""
        return self._turn({"do": do, **arguments})

    def first_step(self):
        """Run one step; -> seconds from the process's start until it is done."""
        return self.tell("first")["now"] - self._began

    def _turn(self, command):
        self._process.send_signal(signal.SIGCONT)
        try:
            return self._ask(command)
        finally:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGSTOP)

    def _ask(self, command):
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            last = (self._log.read().strip().splitlines() or ["it said nothing"])[-1]
            raise WorkerError(f"the process of {self.name} ended ({last})")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(f"{self.name}: {reply['error'].strip().splitlines()[0]}")
        return reply

    def close(self):
        """End the process."""
        self._process.kill()  # reaches a stopped process too
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):  # a command it died before reading
            self._process.stdin.close()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def take_turns(workers, repetitions, tick=lambda: None):
    """{name: [seconds a step, one a round]}: every round each worker has one turn, the first of them another each round.

    workers: {name: Worker}, built. The first turn of each is not counted. tick: called after each round.
    """
    warm = [worker.tell("time", steps=1)["seconds"] for worker in workers.values()]
    steps = max(1, round(TURN / float(np.median(warm))))
    seconds = {name: [] for name in workers}
    names = list(workers)
    for turn in range(repetitions):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(workers[name].tell("time", steps=steps)["seconds"])
        tick()
    return seconds


def spread(values):
    """{"median", "min", "iqr"} of a list of numbers; iqr is the distance between the quartiles."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return {"median": float(middle), "min": float(min(values)), "iqr": float(high - low)}
