"""Sums in parts, so that their order is fixed: the mean and variance of each channel, and partial gradients.

Sums are taken about the part's first row, so that a large mean costs no digits, and kept in registers.
"""
import numpy as np

from minires.backends.cpu import jit
from minires.backends.cpu.host import lanes_of
from minires.backends.cpu.simd import load, splat, store, store_from, stream


def channel_lanes(channels, dtype):
    """A vector width that `channels` can fill: the host's, or the largest power of two below for few channels.

    Where it does not divide the channels, a kernel's last vector overlaps the one before and computes some twice.
    """
    return min(lanes_of(dtype), 1 << (channels.bit_length() - 1))


@jit.part
def put(STREAMS, y, offset, v, first):
    """Store the lanes of v from `first` on, those that the vector before has not; STREAMS, a constant: past the caches."""
    if STREAMS:
        stream(y, offset, v)
    elif first == 0:
        store(y, offset, v)
    else:
        store_from(y, offset, v, first)


@jit.part
def moments(LANES, x, start, end, means, squares, part):
    """means[part], squares[part]: mean and sum of squares about it of rows start .. end of x: (..., C)."""
    C = means.shape[1]
    for c0 in range(0, C, LANES):
        c = min(c0, C - LANES)
        pivot = load(LANES, x, start * C + c)
        total, square = pivot - pivot, pivot - pivot
        total_odd, square_odd = total, square  # two chains each, since an addition takes several cycles
        for row in range(start, end - 1, 2):
            even, odd = load(LANES, x, row * C + c), load(LANES, x, row * C + C + c)
            v, w = even - pivot, odd - pivot
            total, square = total + v, square + v * v
            total_odd, square_odd = total_odd + w, square_odd + w * w
        if (end - start) % 2:
            last = load(LANES, x, (end - 1) * C + c)
            v = last - pivot
            total, square = total + v, square + v * v
        total, square = total + total_odd, square + square_odd
        mean = total * splat(LANES, x.dtype.type(1 / (end - start)))
        store(means, part * C + c, pivot + mean)
        store(squares, part * C + c, square - mean * total)


@jit.part
def merge_channel(means, squares, counts, c, merged):
    """merged[:, c] = mean and biased variance of channel c in the union of parts: each part's mean, sum of squares about it,
    and count.

    means, squares: (P, C), counts: (P,). var = (sum of squares + sum of counts * (part's mean - mean)^2) / count
    (Chan, Golub & LeVeque 1983), in float64.
    """
    total, square, count = 0.0, 0.0, 0.0
    for part in range(means.shape[0]):
        total += counts[part] * np.float64(means[part, c])
        count += counts[part]
    centre = total / count
    for part in range(means.shape[0]):
        square += squares[part, c] + counts[part] * (means[part, c] - centre) ** 2
    merged[0, c] = centre
    merged[1, c] = square / count


@jit.part
def add_channel(sums, c, total):
    """total[:, c] = the sums of all parts, added in order and in float64. sums: (P, 2, C), total: (2, C)."""
    first, second = 0.0, 0.0
    for part in range(sums.shape[0]):
        first += sums[part, 0, c]
        second += sums[part, 1, c]
    total[0, c], total[1, c] = first, second
