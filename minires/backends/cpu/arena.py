"""Memory for results that is used again: a training step after the second takes no fresh page from the system.

A fresh array of megabytes costs a page fault every 4 KiB, more than many a kernel. So the back end's results are views of
pieces of a few slabs that the arena keeps. A piece is free again when nobody but the arena refers to it, which CPython's
reference count tells (a view holds its piece through `.base`). Of large pieces the first free neighbours that are enough
together are taken and what is over is split off, so that the memory of the activations which backward has consumed serves
the larger gradients of the layers before. A step that begins with all free thus lays everything where the last one did.
"""
import math
import sys
import threading

import numpy as np

SMALLEST = 1 << 14  # bytes; below, the allocator of NumPy is as good
LARGE = 1 << 19  # bytes; smaller pieces stay as they are, since joining and splitting them takes longer than they are worth
ALIGNMENT = 64
# Bytes of address space in a slab of large and of small pieces. The system gives memory only to pages that were written, but
# huge pages, which NumPy asks for in arrays of 4 MiB or more, are given whole.
SLAB, SMALL_SLAB = 1 << 28, 1 << 21


class _Piece:
    """`size` bytes of a slab from `start` on; `holder` is the array that all views of it refer to."""

    __slots__ = ("holder", "size", "slab", "start")

    def __init__(self, slab, start, size):
        self.slab, self.start, self.size = slab, start, size
        # NumPy shortens chains of views to the array that owns the memory, but not past a buffer object: this array.
        self.holder = np.frombuffer(slab.memory, np.uint8, size, start)

    def references(self):
        return sys.getrefcount(self.holder)


class _Slab:
    """A block of memory: pieces in the order of their addresses, and behind `top` nothing handed out yet."""

    def __init__(self, size):
        own = np.empty(size + ALIGNMENT, np.uint8)
        start = -own.ctypes.data % ALIGNMENT
        self.memory, self.size, self.top, self.pieces = memoryview(own)[start:start + size], size, 0, []


_UNUSED = _Piece(_Slab(ALIGNMENT), 0, ALIGNMENT).references()  # what a piece reports that only the arena refers to


def _view(memory, shape, dtype):
    """An aligned array in some bytes: a vector that crosses a cache line costs two loads."""
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start:start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def aligned_zeros(shape, dtype):
    """An array of zeros, aligned to cache lines, in memory of its own."""
    dtype = np.dtype(dtype)
    return _view(np.zeros(math.prod(shape) * dtype.itemsize + ALIGNMENT, np.uint8), shape, dtype)


def aligned(array):
    """The array itself where it is C-contiguous and starts a cache line, else a copy that is and does."""
    if array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        return array
    copy = empty(array.shape, array.dtype)
    copy[...] = array
    return copy


class Arena:
    """Pieces of slabs. Thread-safe; counts what it ever handed out at once, in bytes, for the benchmarks."""

    def __init__(self):
        self._large, self._small = [], []  # slabs; small pieces among the large ones would part free neighbours
        self._of_size, self._lock = {}, threading.Lock()  # small pieces

    @property
    def held(self):
        """Bytes of memory that were handed out before, used and free."""
        return sum(slab.top for slab in self._large + self._small)

    def empty(self, shape, dtype):
        """An uninitialised C-contiguous array, aligned to cache lines, whose memory returns here when it is dropped."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size < SMALLEST:
            return _view(np.empty(size + ALIGNMENT, np.uint8), shape, dtype)
        with self._lock:
            holder = self._piece(-(-size // ALIGNMENT) * ALIGNMENT).holder
        return holder[:size].view(dtype).reshape(shape)

    def _piece(self, size):
        if size >= LARGE:
            return self._joined(size) or self._fresh(self._large, size, SLAB)
        of_size = self._of_size.setdefault(size, [])
        for piece in of_size:
            if piece.references() == _UNUSED:
                return piece
        of_size.append(self._fresh(self._small, size, SMALL_SLAB))
        return of_size[-1]

    def _joined(self, size):
        """A piece of the first free neighbours that are large enough together; None if there are none."""
        for slab in self._large:
            first, total = 0, 0
            for index, piece in enumerate(slab.pieces):
                if piece.references() != _UNUSED:
                    first, total = index + 1, 0
                    continue
                total += piece.size
                if total == piece.size == size:
                    return piece
                if total >= size:
                    start, rest = slab.pieces[first].start, total - size
                    whole = _Piece(slab, start, size)
                    slab.pieces[first:index + 1] = [whole, _Piece(slab, start + size, rest)] if rest else [whole]
                    return whole
        return None

    def _fresh(self, slabs, size, slab_size):
        """A piece behind all others."""
        slab = next((slab for slab in slabs if slab.top + size <= slab.size), None)
        if slab is None:
            slab = _Slab(max(size, slab_size))
            slabs.append(slab)
        while slabs is self._large and slab.pieces and slab.pieces[-1].references() == _UNUSED:  # too small: grow it
            slab.top = slab.pieces.pop().start
        slab.pieces.append(_Piece(slab, slab.top, size))
        slab.top += size
        return slab.pieces[-1]


arena = Arena()
empty = arena.empty
