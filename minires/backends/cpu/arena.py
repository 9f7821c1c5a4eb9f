"""Memory for results that is used again: a training step after the second takes no fresh page from the system.

A fresh array of megabytes costs a page fault every 4 KiB, more than many a kernel. So the back end's results are views of
pieces of a few slabs that the arena keeps. A piece is free again when nobody but the arena refers to it, which CPython's
reference count tells (a view holds its piece through `.base`). A free piece of the size asked for is taken as it is; else
neighbouring free pieces are joined and what is over is split off, so that the memory of the activations that backward has
consumed serves the larger gradients of the layers before.
"""
import math
import sys
import threading

import numpy as np

SMALLEST = 1 << 14  # bytes; below, the allocator of NumPy is as good
LARGE = 1 << 20  # bytes; smaller pieces stay as they are, since joining and splitting them takes longer than they are worth
ALIGNMENT = 64
SLAB = 1 << 28  # bytes of address space; the system gives memory only to pages that were written


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
        self._of_size, self._lock = {}, threading.Lock()

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
        for piece in self._of_size.get(size, ()):
            if piece.references() == _UNUSED:
                return piece
        if size < LARGE:
            return self._fresh(self._small, size)
        return self._joined(size) or self._fresh(self._large, size)

    def _joined(self, size):
        """A piece made of the first free neighbours that are large enough together; None if there are none."""
        for slab in self._large:
            first, total = 0, 0
            for index, piece in enumerate(slab.pieces):
                if piece.references() != _UNUSED:
                    first, total = index + 1, 0
                    continue
                total += piece.size
                if total >= size:
                    return self._join(slab, first, index + 1, size, total - size)
        return None

    def _join(self, slab, first, end, size, rest):
        start = slab.pieces[first].start
        pieces = [_Piece(slab, start, size)] + ([_Piece(slab, start + size, rest)] if rest else [])
        for piece in slab.pieces[first:end]:
            self._of_size[piece.size].remove(piece)
        for piece in pieces:
            self._of_size.setdefault(piece.size, []).append(piece)
        slab.pieces[first:end] = pieces
        return pieces[0]

    def _fresh(self, slabs, size):
        """A piece behind all others."""
        slab = next((slab for slab in slabs if slab.top + size <= slab.size), None)
        if slab is None:
            slab = _Slab(max(size, SLAB))
            slabs.append(slab)
        while size >= LARGE and slab.pieces and slab.pieces[-1].references() == _UNUSED:  # free, and too small: grow it
            last = slab.pieces.pop()
            self._of_size[last.size].remove(last)
            slab.top = last.start
        piece = _Piece(slab, slab.top, size)
        slab.top += size
        slab.pieces.append(piece)
        self._of_size.setdefault(size, []).append(piece)
        return piece


arena = Arena()
empty = arena.empty
