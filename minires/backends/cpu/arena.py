"""Memory for results that is used again: a training step after the second takes no fresh page from the system.

A fresh array of megabytes costs a page fault every 4 KiB, more than many a kernel. So the back end's results lie in slabs
that the arena keeps. Their place is free again when the array and all its views are gone: views refer to it through `.base`,
and a weak reference tells of its end. A large result takes the first gap that holds it, and gaps that meet are one, so that
the memory of the activations which backward has consumed serves the larger gradients of the layers before. A step that
begins with all free thus lays everything where the last one did.
"""
import math
import threading
import weakref
from bisect import bisect
from collections import deque
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

SMALLEST = 1 << 14  # bytes; below, the allocator of NumPy is as good
LARGE = 1 << 19  # bytes; smaller places serve their size only: joining and splitting them takes longer than it is worth
ALIGNMENT = 64
# Bytes of address space in a slab of large and of small results. The system gives memory only to pages that were written,
# but huge pages, which NumPy asks for in arrays of 4 MiB or more, are given whole.
SLAB, SMALL_SLAB = 1 << 28, 1 << 21


_all = weakref.WeakSet()


def count(memory):
    """Let `held` count what an object holds, by its attribute `held`, while it lives."""
    _all.add(memory)


class _Slab:
    """A block of memory and its gaps, [start, end) in the order of their addresses; nothing behind `top` was used yet."""

    def __init__(self, size):
        own = np.empty(size + ALIGNMENT, np.uint8)
        start = -own.ctypes.data % ALIGNMENT
        self.memory, self.top, self.gaps = memoryview(own)[start:start + size], 0, [(0, size)]
        self.start = own.ctypes.data + start  # its address

    def take(self, size):
        """Where `size` bytes begin that nobody uses, the lowest such address, or None."""
        for index, (start, end) in enumerate(self.gaps):
            if end - start >= size:
                self.gaps[index:index + 1] = [(start + size, end)] if end - start > size else []
                self.top = max(self.top, start + size)
                return start
        return None

    def give_back(self, start, end):
        """Make bytes a gap, one with those that it meets."""
        index = last = bisect(self.gaps, (start, end))
        if index and self.gaps[index - 1][1] == start:
            index, start = index - 1, self.gaps[index - 1][0]
        if last < len(self.gaps) and self.gaps[last][0] == end:
            last, end = last + 1, self.gaps[last][1]
        self.gaps[index:last] = [(start, end)]


class _Place(weakref.ref):
    """The bytes [start, start + size) of a slab while an array lies there, which it refers to."""

    __slots__ = ("size", "slab", "start")


def _view(memory, shape, dtype):
    """An aligned array in some bytes: a vector that crosses a cache line costs two loads."""
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start:start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def aligned_zeros(shape, dtype):
    """An array of zeros, aligned to cache lines, in memory of its own."""
    dtype = np.dtype(dtype)
    return _view(np.zeros(math.prod(shape) * dtype.itemsize + ALIGNMENT, np.uint8), shape, dtype)


class Arena:
    """Places in slabs. Thread-safe; counts what it ever handed out at once, in bytes, for the benchmarks."""

    def __init__(self):
        count(self)
        self._large, self._small = [], []  # slabs; small results among the large ones would part gaps
        self._free = {}  # size: places (slab, start) of small results
        self._taken, self._ended = {}, deque()  # by id, places in use (they hash as their arrays, not at all); ended places
        self._lock = threading.Lock()

    @property
    def held(self):
        """Bytes of memory that were handed out before, used and free."""
        return sum(slab.top for slab in self._large + self._small)

    def empty(self, shape, dtype):
        """An uninitialised C-contiguous array, aligned to cache lines, whose memory returns here when it is dropped."""
        dtype = np.dtype(dtype)
        count = math.prod(shape)
        size = count * dtype.itemsize
        if size < SMALLEST:
            return _view(np.empty(size + ALIGNMENT, np.uint8), shape, dtype)
        size = -(-size // ALIGNMENT) * ALIGNMENT
        with self._lock:
            self._take_back()
            slab, start = self._large_place(size) if size >= LARGE else self._small_place(size)
            # NumPy shortens chains of views to the array that owns the memory, but not past a buffer object: to this array.
            holder = np.frombuffer(slab.memory, dtype, count, start)
            place = _Place(holder, self._ended.append)  # no more than this: an array may end at any moment, in any thread
            place.slab, place.start, place.size = slab, start, size
            self._taken[id(place)] = place
        return holder.reshape(shape)

    def _take_back(self):
        while self._ended:
            place = self._ended.popleft()
            del self._taken[id(place)]
            if place.size >= LARGE:
                place.slab.give_back(place.start, place.start + place.size)
            else:
                self._free[place.size].append((place.slab, place.start))

    def _large_place(self, size):
        for slab in self._large:
            start = slab.take(size)
            if start is not None:
                return slab, start
        return self._in_new_slab(self._large, max(size, SLAB), size)

    def _small_place(self, size):
        places = self._free.setdefault(size, [])
        if places:
            return places.pop()
        start = self._small[-1].take(size) if self._small else None
        return self._in_new_slab(self._small, SMALL_SLAB, size) if start is None else (self._small[-1], start)

    def _in_new_slab(self, slabs, slab_size, size):
        slabs.append(_Slab(slab_size))
        return slabs[-1], slabs[-1].take(size)


_shared = Arena()
_arena = ContextVar("minires_arena", default=_shared)


def empty(shape, dtype):
    """An uninitialised C-contiguous array, aligned to cache lines, of the arena that the caller uses."""
    return _arena.get().empty(shape, dtype)


@contextmanager
def using(arena):
    """Within, in the caller's thread, this object's `empty` makes results, and not the arena that all share."""
    token = _arena.set(arena)
    try:
        yield
    finally:
        _arena.reset(token)


def using_shared():
    """Within, in the caller's thread, results lie in the arena that all share."""
    return using(_shared)


def held():
    """Bytes that all arenas hold, and the memory of programs."""
    return sum(memory.held for memory in _all)
