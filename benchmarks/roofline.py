"""What the machine can do: floating-point operations with nothing to load, and bytes with nothing to compute.

A kernel that does F operations on B bytes can take no less than max(F / peak, B / bandwidth) seconds. The bandwidth is
that of a triad a = b + s * c whose three arrays together are as large as the kernel's, since what fits in the last
cache moves sooner than what does not.
"""
import time
from functools import cache

import numpy as np
from numba import get_num_threads, njit, prange

from minires.backends.cpu.host import lanes_of
from minires.backends.cpu.simd import load, splat, store
from minires.backends.cpu.threads import SMALL, claim, enter, launch, leave, pool

CHAINS = 12  # independent accumulators in `_multiply_add`: what two units of a latency of 4 to 6 cycles need


@njit
def _multiply_add(LANES, turns, out, at):
    """`turns` rounds of CHAINS multiply-adds on vectors in registers; stored to out at `at`, or they would be left out."""
    a, b = splat(LANES, out.dtype.type(0.999)), splat(LANES, out.dtype.type(0.001))
    v0 = load(LANES, out, at)
    v1 = v2 = v3 = v4 = v5 = v6 = v7 = v8 = v9 = v10 = v11 = v0
    for _ in range(turns):
        v0, v1, v2, v3 = v0 * a + b, v1 * a + b, v2 * a + b, v3 * a + b
        v4, v5, v6, v7 = v4 * a + b, v5 * a + b, v6 * a + b, v7 * a + b
        v8, v9, v10, v11 = v8 * a + b, v9 * a + b, v10 * a + b, v11 * a + b
    store(out, at, v0 + v1 + v2 + v3 + v4 + v5 + v6 + v7 + v8 + v9 + v10 + v11)


@cache
def arithmetic_kernel(lanes):
    """A kernel for `minires.backends.cpu.threads.launch`: `turns` rounds in registers a task. out: (tasks * lanes,)."""

    @njit(nogil=True)
    def arithmetic(tasks, counter, thread, turns, out):
        enter(counter, thread)
        task = claim(counter)
        while task < tasks:
            _multiply_add(lanes, turns, out, task * lanes)
            task = claim(counter)
        leave(counter, thread)

    return arithmetic


@njit(parallel=True, fastmath=True)
def _triad(a, b, c, s, parts):
    for part in prange(parts):
        start, end = part * a.size // parts, (part + 1) * a.size // parts
        a_, b_, c_ = a[start:end], b[start:end], c[start:end]
        for i in range(a_.size):
            a_[i] = b_[i] + s * c_[i]


def best_seconds(function, patience=0.3):
    """The least of the timings within `patience` seconds: a ceiling is what the machine does when nobody disturbs it."""
    function()
    least, end = np.inf, time.perf_counter() + patience
    while (began := time.perf_counter()) < end:
        function()
        least = min(least, time.perf_counter() - began)
    return least


def peak_flops(dtype=np.float32, turns=100_000):
    """Operations a second (an addition and a multiplication each count) with all values in registers, all threads."""
    lanes, tasks = lanes_of(np.dtype(dtype)), pool.threads
    kernel, out = arithmetic_kernel(lanes), np.ones(lanes * tasks, dtype)
    return 2 * CHAINS * lanes * tasks * turns / best_seconds(lambda: launch(kernel, tasks, SMALL, turns, out))


@cache
def bandwidth(size):
    """Bytes a second of a triad on three float32 arrays of `size` bytes together, all threads."""
    a, b, c = np.ones((3, max(1, size // 12)), np.float32)
    turns = max(1, 8_000_000 // size)

    def triads():
        for _ in range(turns):
            _triad(a, b, c, np.float32(0.5), 4 * get_num_threads())

    return a.nbytes * 3 * turns / best_seconds(triads)
