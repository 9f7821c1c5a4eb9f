"""Sums in parts, so that their order is fixed: the mean and variance of each channel, and partial gradients.

Sums are taken about the part's first row, so that a large mean costs no digits, and kept in registers.
"""
import numpy as np
from numba import njit

from minires.backends.cpu.host import lanes_of
from minires.backends.cpu.simd import load, splat, store
from minires.backends.cpu.threads import claim


def channel_lanes(channels, dtype):
    """A vector width that `channels` can fill: the host's, or the largest power of two below for few channels.

    Where it does not divide the channels, a kernel's last vector overlaps the one before and computes some twice.
    """
    return min(lanes_of(dtype), 1 << (channels.bit_length() - 1))


@njit
def moments(LANES, x, start, end, means, squares, part):
    """means[part], squares[part]: mean and sum of squares about it of rows start .. end of x: (..., C)."""
    C = x.shape[-1]
    for c0 in range(0, C, LANES):
        c = min(c0, C - LANES)
        pivot = load(LANES, x, start * C + c)
        total, square = pivot - pivot, pivot - pivot
        total_odd, square_odd = total, square  # two chains each, since an addition takes several cycles
        for row in range(start, end - 1, 2):
            v = load(LANES, x, row * C + c) - pivot
            total, square = total + v, square + v * v
            v = load(LANES, x, row * C + C + c) - pivot
            total_odd, square_odd = total_odd + v, square_odd + v * v
        if (end - start) % 2:
            v = load(LANES, x, (end - 1) * C + c) - pivot
            total, square = total + v, square + v * v
        total, square = total + total_odd, square + square_odd
        mean = total * splat(LANES, x.dtype.type(1 / (end - start)))
        store(means, part * C + c, pivot + mean)
        store(squares, part * C + c, square - mean * total)


def merge_moments(means, squares, counts):
    """Mean and biased variance of the union of parts: each part's mean, sum of squares about it, and count.

    means, squares: (P, C), counts: (P,). var = (sum of squares + sum of counts * (part's mean - mean)^2) / count
    (Chan, Golub & LeVeque 1983), in float64.
    """
    mean, var = np.empty((2, means.shape[1]), means.dtype)
    _merge(means, squares, counts, mean, var)
    return mean, var


@njit(cache=True)
def _merge(means, squares, counts, mean, var):
    count = counts.sum()
    for c in range(means.shape[1]):
        total, square = 0.0, 0.0
        for part in range(means.shape[0]):
            total += counts[part] * np.float64(means[part, c])
        centre = total / count
        for part in range(means.shape[0]):
            square += squares[part, c] + counts[part] * (means[part, c] - centre) ** 2
        mean[c] = centre
        var[c] = square / count


def totals(sums):
    """The sums of P parts, added in order and in float64: (P, 2, C) -> (2, C)."""
    out = np.empty(sums.shape[1:], sums.dtype)
    _total(sums, out)
    return out


@njit(cache=True)
def _total(sums, out):
    for kind in range(sums.shape[1]):
        for c in range(sums.shape[2]):
            total = 0.0
            for part in range(sums.shape[0]):
                total += sums[part, kind, c]
            out[kind, c] = total


@njit(nogil=True, cache=True)
def sum_partials(tasks, counter, thread, partial, run, dweight):
    """dweight[row] = the sum over the groups, in order, for some rows. partial: (G, runs, padded run, O)."""
    row = claim(counter)
    while row < tasks:
        for o in range(partial.shape[3]):
            dweight[row, o] = partial[0, row // run, row % run, o]
        for g in range(1, partial.shape[0]):
            for o in range(partial.shape[3]):
                dweight[row, o] += partial[g, row // run, row % run, o]
        row = claim(counter)
