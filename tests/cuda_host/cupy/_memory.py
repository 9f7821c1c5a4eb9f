"""Device memory: host memory with guards on both sides, filled with what nobody may rely on."""
import ctypes
import itertools
import weakref
from collections import defaultdict
from contextlib import contextmanager

import numpy as np

GUARD = 4096  # bytes on each side
ALIGNMENT = 512  # CuPy's
POISON = 0xFF  # what was never written reads as NaN, or as -1
# A guard holds a number of its own: huge as a float, so that a result made of it is wrong, changed by any arithmetic, and
# another one than every other array's, so that a copy of it shows too.
MARK = 0x7E000000
_serial = itertools.count(1)


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""

    def __init__(self, size, total, limit=0):
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes, limit set to: "
                         f"{limit:,} bytes).")


class Memory:
    """A block that a pool was given by its allocator."""

    def __init__(self, size):
        self.size = size


class UnownedMemory:
    """Memory at an address, which somebody else keeps."""

    used_before = False

    def __init__(self, ptr, size, owner, device_id=-1):
        self.bytes, self.owner = np.frombuffer((ctypes.c_uint8 * size).from_address(ptr), np.uint8), owner

    def intact(self):
        return True


class MemoryPointer:
    """A place in a block."""

    def __init__(self, mem, offset):
        self.mem, self.offset = mem, offset

    @property
    def ptr(self):
        return self.mem.bytes.ctypes.data + self.offset


class MemoryPool:
    """CuPy's pool. Freed memory goes back to the system at once; that of an allocator's blocks is kept, and given again."""

    def __init__(self, allocator=None):
        self.used, self.limit, self.allocator, self.free = 0, 0, allocator, defaultdict(list)

    def malloc(self, size):
        """For `using_allocator`."""
        return Buffer(size, self)

    def take(self, size):
        """(memory, whether it was used before)."""
        if self.limit and self.used + size > self.limit:
            raise OutOfMemoryError(size, self.used, self.limit)
        self.used += size
        if self.free[size]:
            return self.free[size].pop(), True
        if self.allocator:
            self.allocator(size)
        return np.full(size + 2 * GUARD + ALIGNMENT, POISON, np.uint8), False

    def give(self, size, raw):
        self.used -= size
        if self.allocator:
            self.free[size].append(raw)

    def used_bytes(self):
        return self.used

    def total_bytes(self):
        return self.used

    def set_limit(self, size=None, fraction=None):
        self.limit = size or 0

    def get_limit(self):
        return self.limit

    def free_all_blocks(self):
        pass


pool = MemoryPool()
allocators = [pool.malloc]  # the last one is asked
live = weakref.WeakSet()
damaged = []  # sizes of freed buffers whose guards were written to


class Buffer:
    """`size` bytes, poisoned, between two guards."""

    def __init__(self, size, of_pool):
        self.raw, self.used_before = of_pool.take(size)
        self.size, self.pool = size, of_pool
        self.start = GUARD + -(self.raw.ctypes.data + GUARD) % ALIGNMENT
        self.bytes = self.raw[self.start:self.start + size]
        self.mark = np.uint32(MARK + next(_serial) % 2**24)
        ends = self.start, self.start + size + GUARD
        self.guards = [self.raw[end - GUARD:end].view(np.uint32) for end in ends]
        self.mend()
        live.add(self)

    def intact(self):
        return all((guard == self.mark).all() for guard in self.guards)

    def mend(self):
        for guard in self.guards:
            guard.fill(self.mark)

    def __del__(self):
        if hasattr(self, "guards"):
            if not self.intact():
                damaged.append(self.size)
            self.pool.give(self.size, self.raw)


@contextmanager
def using_allocator(allocator):
    """Within, memory comes from `allocator`, a pool's malloc."""
    allocators.append(allocator)
    try:
        yield
    finally:
        allocators.pop()


def check_guards(buffers=None):
    """IndexError when something was written outside an array; `buffers`: those to look at, all when None."""
    hurt = [buffer for buffer in (list(live) if buffers is None else buffers) if not buffer.intact()]
    sizes = [buffer.size for buffer in hurt] + damaged
    for buffer in hurt:
        buffer.mend()
    damaged.clear()
    if sizes:
        raise IndexError(f"a kernel wrote outside an array of {sizes[0]} bytes")
