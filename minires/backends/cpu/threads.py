"""Sharing the tasks of a kernel out among threads.

    launch(kernel, tasks, work, *arguments)

calls kernel(first, last, thread, *arguments) so that the ranges first .. last - 1 together are 0 .. tasks - 1, each range in
a thread of its own and `thread` telling them apart. Kernels are compiled by Numba with `nogil=True`, so they run at once.
Numba's own `prange` would do the same, but it compiles every kernel three times over, and the first training step of a
new machine waits for the compiler. What a task computes never depends on who runs it: results are the same bits for any
number of threads.
"""
import os
import threading
from queue import SimpleQueue

SMALL = 1 << 16  # operations: below, handing work to another thread takes longer than doing it


def _most_threads():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(os.environ.get("NUMBA_NUM_THREADS", cores))))


MOST_THREADS = _most_threads()


class _Pool:
    """The worker threads, started when first needed. The caller's thread takes part as thread 0."""

    def __init__(self):
        self.threads = MOST_THREADS
        self._lock = threading.RLock()
        self._inboxes, self._done = [], SimpleQueue()

    def launch(self, kernel, tasks, work, *arguments):
        """See the module's docstring. work: about how many operations all tasks are."""
        threads = min(self.threads, tasks) if work >= SMALL else 1
        if threads <= 1:
            kernel(0, tasks, 0, *arguments)
            return
        with self._lock:
            self._start(threads - 1)
            bounds = [thread * tasks // threads for thread in range(threads + 1)]
            for thread in range(1, threads):
                self._inboxes[thread - 1].put((kernel, bounds[thread], bounds[thread + 1], thread, arguments))
            failures = []
            try:
                kernel(0, bounds[1], 0, *arguments)
            finally:  # whatever happens here, the others write into the caller's arrays until they are done
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
        kernel, *place, arguments = inbox.get()
        failure = None
        try:
            kernel(*place, *arguments)
        except BaseException as error:
            failure = error
        del kernel, arguments  # an idle thread must not keep the last arrays from being used again
        done.put(failure)


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
