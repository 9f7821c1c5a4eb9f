"""Sharing the tasks of a kernel out among threads.

    launch(kernel, tasks, work, *arguments)

calls kernel(tasks, counter, thread, *arguments), compiled by `jit.kernel`, which runs in several threads at once:

    for task in claimed(tasks, counter, thread):    # the other threads enter here too, with their number as `thread`
        ...                                         # the caller's is 0; it waits until the others are out

Each takes the next task that nobody has, from an atomic counter, until none is left, so a thread that the system starts
late, or slows down, holds nobody up. What a task computes never depends on who runs it: results are the same bits for any
number of threads. A kernel may have phases, of which each reads what the one before wrote (transform weights, convolve, add
up partial sums):

    for task in claimed(tasks, counter, thread):
        if task < first:
            ...
        else:
            await_tasks(counter, first)  # until all of them are done, whoever runs them
            ...

The same in single steps, for what is no such loop: `enter`, then `claim`, or `claim_next`, which tells that the task before
is done.

A training step is some sixty launches of a millisecond, and between two of them the caches hold what the kernel left there,
not Python: what takes Python 10 microseconds in a loop takes it 60 then. So the threads meet once a kernel and not once a
phase, and only the caller's thread comes back to Python: the others look for the next kernel in memory, without Python's
lock, and sleep when none came for a moment (`SPINS`). Numba's own `prange` would share work out as well, but it compiles
every kernel three times over, and the first training step of a new machine waits for the compiler.

How the others enter: `enter` writes all arguments of the function that it stands in, and the address of a function that
calls it with them and another `thread`, into the counter's memory, and opens its gate; whoever launched the kernel closes it
and waits for those inside (`leave`). Who keeps a copy of what `enter` wrote can run it again without Python: launches.py.
"""
import os
import threading
from contextvars import ContextVar
from queue import SimpleQueue

import numpy as np

from minires.backends.cpu import arena, counter, numba_private
from minires.backends.cpu.counter import ARGUMENTS, BUSY, CLOSED, ENTRY, FAILED, GATE, SIZE, THREADS, WORDS
from minires.backends.cpu.counter import await_tasks as await_tasks  # what kernels are written with
from minires.backends.cpu.counter import claim as claim
from minires.backends.cpu.counter import claim_next as claim_next
from minires.backends.cpu.counter import claimed as claimed
from minires.backends.cpu.counter import enter as enter
from minires.backends.cpu.counter import leave as leave
from minires.backends.cpu.environment import MOST_THREADS

SMALL = 1 << 16  # operations: below, handing work to another thread takes longer than doing it


class _Pool:
    """The worker threads, started when first needed. The caller's thread takes part as thread 0."""

    def __init__(self):
        self.threads, self.after_launch = MOST_THREADS, None  # the latter: a function of the kernel's arguments, for tests
        self._lock, self._state, self._workers, self._known = threading.RLock(), np.zeros(WORDS, np.int64), [], set()
        self._state[GATE] = CLOSED

    def launch(self, kernel, tasks, work, *arguments):
        """See the module's docstring. work: about how many operations all tasks are."""
        most, state, notes = (min(tasks, MOST_THREADS) if work >= SMALL else 1), self._state, recorder.get()
        threads = min(self.threads, most)
        with self._lock:  # for one thread too: scratch memory is one set for all callers
            state[THREADS] = threads
            if threads > 1:
                self._wake(threads - 1)
            try:
                kernel(tasks, state, 0, *arguments)
            except BaseException:  # others may wait for tasks of this thread, and write into the caller's arrays
                state[FAILED] = 1
                leave(state, 0)
                state[FAILED] = 0
                raise
            if threads > 1:
                leave(state, 0)
            if kernel not in self._known:
                self._known.add(kernel)
                numba_private.forget_bitcode(kernel)
            if state[FAILED]:
                state[FAILED] = 0
                raise RuntimeError(f"the kernel {kernel.__name__} raised an exception in another thread than the caller's")
            if self.after_launch is not None:
                self.after_launch(arguments)
            if notes is not None:
                notes.note(state[ENTRY], state[ARGUMENTS:ARGUMENTS - (-state[SIZE] // 8)], most, arguments)

    def repeat(self, entries, frames, most):
        """Run kernels again: their entries, addresses of their arguments, and how many threads each may have at most."""
        with self._lock:
            self._state[BUSY] = 1  # whoever is about to sleep does not
            if self.threads > 1:
                self._wake(self.threads - 1)
            if counter.repeat(self._state, entries, frames, most, self.threads) < len(entries):
                self._state[FAILED] = 0
                raise RuntimeError("a recorded kernel raised an exception")

    def _wake(self, count):
        while len(self._workers) < count:
            worker = _Worker(self._state, len(self._workers) + 1)
            self._workers.append(worker)
            worker.start()
        for worker in self._workers[:count]:
            if worker.asleep:
                worker.bell.put(None)


class _Worker(threading.Thread):
    """A thread that runs kernels."""

    def __init__(self, state, number):
        super().__init__(name=f"minires kernel {number}", daemon=True)
        self.asleep, self.bell, self._state, self._number = False, SimpleQueue(), state, number

    def run(self):
        last = -1
        while True:
            last = counter.serve(self._state, self._number, last)
            self.asleep = True
            if self._state[GATE] & CLOSED and not self._state[BUSY]:  # else the caller took it to be awake still
                self.bell.get()
            self.asleep = False


pool = _Pool()
recorder = ContextVar("minires_recorder", default=None)  # who notes what the caller launches


def launch(kernel, tasks, work, *arguments):
    """Run all tasks of a kernel: see the module's docstring."""
    pool.launch(kernel, tasks, work, *arguments)


def here(function, *arguments):
    """What a function returns that is no single launch, an array (or None) or several: a program calls it again."""
    notes = recorder.get()
    if notes is None:
        return function(*arguments)
    token = recorder.set(None)
    try:
        with arena.using_shared():  # what the function needs for itself is no result that has its place
            results = function(*arguments)
    finally:
        recorder.reset(token)
    return notes.note_function(function, arguments, results)


def _after_fork():
    global pool
    before, pool = pool, _Pool()
    pool.threads, pool.after_launch = before.threads, before.after_launch


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)  # a fork's child has none of the threads
