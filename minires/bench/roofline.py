"""What the machine can do: floating-point operations with nothing to load, and bytes with nothing to compute.

A kernel that does F operations on B bytes can take no less than max(F / peak, B / bandwidth) seconds. The bandwidth is
that of a triad a = b + s * c whose three arrays together are as large as the kernel's, since what fits in the last
cache moves sooner than what does not.
"""
import time
from functools import cache

import numpy as np

from minires.backends.cpu import roofline
from minires.backends.listing import rows

SMALLEST = 1 << 20  # bytes; of fewer the time to start threads would be all that is measured


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
    function, operations = roofline.arithmetic(dtype, turns)
    return operations / best_seconds(function)


@cache
def bandwidth(size):
    """Bytes a second of a triad on three float32 arrays of `size` bytes together, all threads."""
    function, moved = roofline.triad(size)
    turns = max(1, 8_000_000 // size)

    def triads():
        for _ in range(turns):
            function()

    return moved * turns / best_seconds(triads)


def least_seconds(steps):
    """For each traced step what the roofline allows: max(FLOP / peak, bytes / bandwidth)."""
    peak, found = peak_flops(), []
    for row in rows(steps):
        # A bandwidth is measured for each power of two, so that a program of many sizes does not take minutes.
        size = max(SMALLEST, 1 << max(0, row.bytes - 1).bit_length())
        found.append(max(row.flops / peak, row.bytes / bandwidth(size)))
    return found


def step_seconds(runner, inputs, repetitions=10):
    """The median seconds of each step of a plan's Runner (CPU), and those of the whole program as it is run.

    Steps run in order, a clock around each, so that each finds in the caches what the one before it left there.
    """
    runner(inputs)
    steps = [functions for _, functions in runner.operators()]
    taken, whole = np.empty((repetitions, len(steps))), []
    for row in taken:
        for index, functions in enumerate(steps):
            began = time.perf_counter()
            for function in functions:
                function()
            row[index] = time.perf_counter() - began
        began = time.perf_counter()
        runner(inputs)
        whole.append(time.perf_counter() - began)
    return np.median(taken, axis=0), float(np.median(whole))
