"""Sharing the tasks of a kernel out among threads.

    launch(kernel, tasks, work, *arguments)

calls kernel(tasks, counter, thread, *arguments) in several threads at once, `thread` telling them apart (kernels are
compiled by Numba with `nogil=True`). Each takes the next task that nobody has from `counter`, an atomic one, until none is
left:

    task = claim(counter)
    while task < tasks:
        ...
        task = claim(counter)

so a thread that the system starts late, or slows down, holds nobody up. What a task computes never depends on who runs it:
results are the same bits for any number of threads. Numba's own `prange` would share work out as well, but it compiles every
kernel three times over, and the first training step of a new machine waits for the compiler.

A training step is a hundred launches of half a millisecond, and waking a sleeping thread takes a tenth of that. So a thread
that has nothing to do looks for work in memory for a moment (`SPINS`) before it sleeps, without Python's lock. It is let
go only when the caller's kernel claims its first task, since by then the caller has given up the lock that the other needs.
"""
import os
import platform
import threading
from queue import SimpleQueue

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

SMALL = 1 << 16  # operations: below, handing work to another thread takes longer than doing it
SPINS = 5000  # looks before a thread sleeps, about 0.1 ms
CLAIMED, LAUNCH, FINISHED, WORDS = 0, 8, 16, 24  # places in a pool's state, a cache line apart from each other


def _pointer(context, builder, kind, array, index):
    return builder.gep(context.make_array(kind)(context, builder, array).data, [ir.Constant(ir.IntType(64), index)])


def _adding(index, order):
    @intrinsic
    def add_one(typingctx, state):
        def codegen(context, builder, sig, args):
            return builder.atomic_rmw("add", _pointer(context, builder, state, args[0], index),
                                      ir.Constant(ir.IntType(64), 1), order)

        return types.int64(state), codegen

    return add_one


def _reading(index):
    @intrinsic
    def read(typingctx, state):
        def codegen(context, builder, sig, args):
            return builder.load_atomic(_pointer(context, builder, state, args[0], index), "acquire", 8)

        return types.int64(state), codegen

    return read


claim = _adding(CLAIMED, "monotonic")  # the number of the next task that nobody has
_finished = _adding(FINISHED, "release")
_claimed, _launch, _done = _reading(CLAIMED), _reading(LAUNCH), _reading(FINISHED)


@intrinsic
def _pause(typingctx):
    """Tell the processor that this is a waiting loop."""
    def codegen(context, builder, sig, args):
        if platform.machine().lower() in ("x86_64", "amd64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@njit(nogil=True, cache=True)
def _await_launch(state, last):
    """Say that this thread is done with launch `last`, and look for the next one."""
    _finished(state)
    for _ in range(SPINS):
        if _launch(state) != last and _claimed(state) > 0:
            break
        _pause()


@njit(nogil=True, cache=True)
def _await_others(state, others):
    """Look until `others` threads are done."""
    for _ in range(SPINS):
        if _done(state) >= others:
            break
        _pause()


def _most_threads():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(os.environ.get("NUMBA_NUM_THREADS", cores))))


MOST_THREADS = _most_threads()


class _Pool:
    """The worker threads, started when first needed. The caller's thread takes part as thread 0."""

    def __init__(self):
        self.threads = MOST_THREADS
        self._lock, self._state = threading.RLock(), np.zeros(WORDS, np.int64)
        self._inboxes, self._done, self._launches = [], SimpleQueue(), 0

    def launch(self, kernel, tasks, work, *arguments):
        """See the module's docstring. work: about how many operations all tasks are."""
        threads, state = (min(self.threads, tasks) if work >= SMALL else 1), self._state
        with self._lock:  # for one thread too: scratch memory is one set for all callers
            state[CLAIMED] = 0
            if threads <= 1:
                kernel(tasks, state, 0, *arguments)
                return
            self._start(threads - 1)
            state[FINISHED], self._launches = 0, self._launches + 1
            state[LAUNCH] = self._launches
            for thread in range(1, threads):
                self._inboxes[thread - 1].put((kernel, tasks, state, thread, self._launches, arguments))
            try:
                kernel(tasks, state, 0, *arguments)
            finally:  # whatever happens here, the others write into the caller's arrays until they are done
                _await_others(state, threads - 1)
                failures = [failure for failure in (self._done.get() for _ in range(threads - 1)) if failure]
            if failures:
                raise failures[0]

    def _start(self, count):
        while len(self._inboxes) < count:
            inbox = SimpleQueue()
            self._inboxes.append(inbox)
            threading.Thread(target=_work, args=(inbox, self._done), name="minires kernel", daemon=True).start()


def _work(inbox, done):
    while True:
        kernel, tasks, state, thread, launch, arguments = inbox.get()
        failure = None
        try:
            kernel(tasks, state, thread, *arguments)
        except BaseException as error:
            failure = error
        del kernel, arguments  # an idle thread must not keep the last arrays from being used again
        done.put(failure)
        _await_launch(state, launch)


pool = _Pool()


def launch(kernel, tasks, work, *arguments):
    """Run all tasks of a kernel: see the module's docstring."""
    pool.launch(kernel, tasks, work, *arguments)


def _after_fork():
    global pool
    threads, pool = pool.threads, _Pool()
    pool.threads = threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)  # a fork's child has none of the threads
