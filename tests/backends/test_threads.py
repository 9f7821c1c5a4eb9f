"""Threads that share out a kernel's tasks: phases, failures, sleep."""
import time

import numpy as np
import pytest
from numba import njit

from minires import UserError, set_num_threads
from minires.backends.cpu import numba_private, threads
from minires.backends.cpu.threads import await_tasks, claim, claim_next, claimed, enter, leave

pytestmark = pytest.mark.usefixtures("every_thread")
kernel = njit(nogil=True, **numba_private.OPTIONS)  # jit.kernel, but compiled for this process only


@pytest.mark.parametrize("count", [0, -1, threads.MOST_THREADS + 1, 1.5])
def test_a_wrong_number_of_threads_is_refused(count):
    with pytest.raises(UserError, match="threads"):
        set_num_threads(count)


@pytest.mark.skipif(threads.MOST_THREADS < 2, reason="needs two cores")
@pytest.mark.parametrize("failing", range(2))
def test_a_failure_in_a_thread_reaches_the_caller_and_the_others_go_on(failing):
    seen, expected = np.zeros(70, np.int64), (ValueError, RuntimeError)[failing]
    with pytest.raises(expected, match=("no scratch", "failing_tasks raised an exception in another thread")[failing]):
        for _ in range(100):  # a thread that was asleep may come too late for a task
            threads.launch(failing_tasks, len(seen), threads.SMALL, seen, failing)
    seen[:] = 0
    threads.launch(count_tasks, len(seen), threads.SMALL, seen)
    assert (seen == 1).all()


@pytest.mark.parametrize("by_steps", [False, True])
def test_a_phase_begins_when_the_one_before_is_done(by_steps):
    for _ in range(200):
        done = np.zeros((2, 64), np.int64)
        threads.launch(two_phases_step_by_step if by_steps else two_phases, 128, threads.SMALL, done)
        assert (done == [[1], [64]]).all()


@pytest.mark.skipif(threads.MOST_THREADS < 2, reason="needs two cores")
def test_a_thread_that_sleeps_is_woken():
    who, launches = np.zeros(threads.MOST_THREADS, np.int64), 20
    for _ in range(launches):
        time.sleep(0.002)  # longer than SPINS looks
        threads.launch(note_threads, 8, threads.SMALL, who)
    assert who.sum() == 8 * launches and who[1:].any()


@njit
def busy(x):
    """About a millisecond of work that no compiler can leave out; at most 1."""
    for _ in range(100_000):
        x = np.sin(x + 1)
    return x


@kernel
def count_tasks(tasks, counter, thread, seen):
    for task in claimed(tasks, counter, thread):
        seen[task] += 1


@kernel
def failing_tasks(tasks, counter, thread, seen, failing):
    for task in claimed(tasks, counter, thread):
        if thread == failing:
            raise ValueError("no scratch")
        seen[task] += busy(task) < 2
    await_tasks(counter, tasks)


@kernel
def two_phases(tasks, counter, thread, done):
    first = done.shape[1]
    for task in claimed(tasks, counter, thread):
        if task < first:
            done[0, task] += 1
        else:
            await_tasks(counter, first)
            done[1, task - first] = done[0].sum()


@kernel
def two_phases_step_by_step(tasks, counter, thread, done):
    enter(counter, thread)
    task, first = claim(counter), done.shape[1]
    while task < first:
        done[0, task] += 1
        task = claim_next(counter)
    await_tasks(counter, first)
    while task < tasks:
        done[1, task - first] = done[0].sum()
        task = claim_next(counter)
    leave(counter, thread)


@kernel
def note_threads(tasks, counter, thread, who):
    for task in claimed(tasks, counter, thread):
        who[thread] += busy(task) < 2
