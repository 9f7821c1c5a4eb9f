"""Memory for results that is used again: a training step after the second takes no fresh page from the system.

A fresh array of megabytes costs a page fault every 4 KiB, more than many a kernel. So the back end's results are views
of buffers that the arena keeps; a buffer is free again when nobody but the arena refers to it, which CPython's
reference count tells (a view holds its buffer through `.base`).
"""
import math
import sys
import threading

import numpy as np

SMALLEST = 1 << 14  # bytes; below, the allocator of NumPy is as good
ALIGNMENT = 64
# What getrefcount reports of a buffer that only the arena's list holds, asked in the same way as below.
_probe = [np.empty(1, np.uint8)]
_UNUSED = next(sys.getrefcount(buffer) for buffer in _probe)


def _view(buffer, shape, dtype):
    """An aligned array in a buffer of bytes: a vector that crosses a cache line costs two loads."""
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start:start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def aligned(array):
    """The array itself where it is C-contiguous and starts a cache line, else a copy that is and does."""
    if array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        return array
    copy = empty(array.shape, array.dtype)
    copy[...] = array
    return copy


class Arena:
    """Buffers by size. Thread-safe; counts what it holds, in bytes, for the benchmarks."""

    def __init__(self):
        self._buffers = {}
        self._lock = threading.Lock()
        self.held = 0  # bytes in all buffers, used and free

    def empty(self, shape, dtype):
        """An uninitialised C-contiguous array, aligned to cache lines, whose memory returns here when it is dropped."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size < SMALLEST:
            return _view(np.empty(size + ALIGNMENT, np.uint8), shape, dtype)
        with self._lock:
            of_size = self._buffers.setdefault(size, [])
            buffer = next((buffer for buffer in of_size if sys.getrefcount(buffer) == _UNUSED), None)
            if buffer is None:
                buffer = np.empty(size + ALIGNMENT, np.uint8)
                of_size.append(buffer)
                self.held += buffer.nbytes
            return _view(buffer, shape, dtype)

    def release(self):
        """Give every free buffer back to the system."""
        with self._lock:
            for size, of_size in self._buffers.items():
                used = [buffer for buffer in of_size if sys.getrefcount(buffer) != _UNUSED]
                self.held -= sum(buffer.nbytes for buffer in of_size) - sum(buffer.nbytes for buffer in used)
                self._buffers[size] = used


arena = Arena()
empty = arena.empty
