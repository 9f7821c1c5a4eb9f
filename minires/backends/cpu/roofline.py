"""Kernels that do nothing but compute, and nothing but move bytes: what minires.bench.roofline times."""
from functools import cache

import numpy as np

from minires.backends.cpu import jit
from minires.backends.cpu.host import lanes_of
from minires.backends.cpu.simd import load, splat, store
from minires.backends.cpu.threads import SMALL, claimed, launch, pool

CHAINS = 12  # independent accumulators in `_multiply_add`: what two units of a latency of 4 to 6 cycles need


@jit.part
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

    @jit.kernel
    def arithmetic(tasks, counter, thread, turns, out):
        for task in claimed(tasks, counter, thread):
            _multiply_add(lanes, turns, out, task * lanes)

    return arithmetic


@jit.kernel
def _triad(tasks, counter, thread, a, b, c, s):
    for task in claimed(tasks, counter, thread):
        start, end = task * a.size // tasks, (task + 1) * a.size // tasks
        a_, b_, c_ = a[start:end], b[start:end], c[start:end]
        for i in range(a_.size):
            a_[i] = b_[i] + s * c_[i]


def arithmetic(dtype, turns):
    """(A function of no arguments, the operations that it does) with all values in registers, on all threads."""
    lanes, tasks = lanes_of(np.dtype(dtype)), pool.threads
    kernel, out = arithmetic_kernel(lanes), np.ones(lanes * tasks, dtype)
    return lambda: launch(kernel, tasks, SMALL, turns, out), 2 * CHAINS * lanes * tasks * turns


def triad(size):
    """(A function of no arguments, the bytes that it moves): a = b + s * c, float32 arrays of `size` bytes together."""
    a, b, c = np.ones((3, max(1, size // 12)), np.float32)
    return lambda: launch(_triad, 4 * pool.threads, size, a, b, c, np.float32(0.5)), 3 * a.nbytes
