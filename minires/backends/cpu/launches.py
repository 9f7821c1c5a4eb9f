"""The launches of a program, written down once and run again and again without Python.

    launches = Launches(bytes of the slab)
    with launches.noting([(operator, arguments), ...], images):
        for each operator:
            launches.expect([offsets of its results])
            operator(...)                        # computes, and is noted
    launches.run()                               # computes it all again, on the same memory

A training step is some sixty launches of a millisecond. Between two of them Python prepares the next: 100 operations of the
interpreter, in caches that a kernel just emptied, take 0.1 ms, of which the threads compute nothing. Here the arguments
stay as `enter` wrote them (see threads.py), and one call of compiled code runs kernel after kernel. NumPy's few functions
(`threads.here`) stand between them.

Arguments are addresses, so what lay there must stay. Results of operators lie in one slab, where the program has a place for
each; what an operator needs while it runs lies in memory that the next one uses again; all other arrays are kept.
"""
import math
from contextlib import contextmanager

import numpy as np

from minires.backends.cpu import arena, threads
from minires.backends.cpu.ahead import ahead


class Launches:
    """A program's launches in order, and their memory. Not thread-safe, like the layers."""

    def __init__(self, slab_bytes):
        self._slab, self._scratch = arena.aligned_zeros((slab_bytes,), np.uint8), []
        self._expected, self._used, self._pool = [], 0, None
        self._kept, self._noted, self._parts, self._operator = [], [], None, -1
        arena.count(self)

    @contextmanager
    def noting(self, steps, images):
        """Inside, in the caller's thread, what is launched is noted, and results lie where they are expected.

        steps: all operators that are to come, each with its arguments; images: the length of the batch (see ahead.py).
        """
        with ahead.together(steps, images):
            self._pool, token = threads.pool, threads.recorder.set(self)
            try:
                with arena.using(self):
                    yield
            finally:
                threads.recorder.reset(token)
        self._parts = self._grouped(self._noted)

    def expect(self, offsets):
        """An operator begins: where its results are to lie, [(bytes of the result, offset in the slab), ...]."""
        self._expected, self._used, self._operator = list(offsets), 0, self._operator + 1

    def empty(self, shape, dtype):
        """Memory for an array: a result's place, or scratch until the operator's end. As `arena.empty`."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size < arena.SMALLEST:
            return arena.aligned_zeros(shape, dtype)
        for index, (expected, offset) in enumerate(self._expected):
            if expected == size:
                del self._expected[index]
                return self._slab[offset:offset + size].view(dtype).reshape(shape)
        while len(self._scratch) <= self._used or self._scratch[self._used].size < size:
            self._scratch.insert(self._used, arena.aligned_zeros((size,), np.uint8))
        self._used += 1
        return self._scratch[self._used - 1][:size].view(dtype).reshape(shape)

    def lies_well(self, array, offset):
        """Whether a result is safe from later operators: at its place in the slab, or in memory of its own."""
        address = array.ctypes.data
        for memory in (self._slab, *self._scratch):
            if 0 <= address - memory.ctypes.data < memory.size:
                return memory is self._slab and address - memory.ctypes.data == offset
        return True

    @property
    def usable(self):
        """Whether this process still has the threads that launches were noted of: a fork's child has not."""
        return self._pool is threads.pool

    @property
    def held(self):
        """Bytes of the slab and of scratch."""
        return self._slab.size + sum(memory.size for memory in self._scratch)

    def run(self):
        """Compute everything again."""
        for part in self._parts:
            part()

    def operators(self):
        """For each operator, in order, a function that runs what it launched: for timing them one by one."""
        noted = [[note for note in self._noted if note[0] == index] for index in range(self._operator + 1)]
        return [self._grouped(notes) for notes in noted]

    # --- what threads.py tells ---

    def note(self, entry, frame, most, arguments):
        """A kernel was launched: where it is entered, its arguments as it reads them, how many threads it may have."""
        self._noted.append((self._operator, int(entry), frame.copy(), most))
        self._keep(arguments)

    def note_function(self, function, arguments, results):
        """A function was called; -> its results, as the arrays that the next run fills again."""
        several = isinstance(results, tuple)
        fixed = tuple(map(self._own, results if several else (results,)))

        def again():
            found = function(*arguments)
            for target, result in zip(fixed, found if several else (found,), strict=True):
                if target is not None:
                    target[...] = result

        self._noted.append((self._operator, again))
        return fixed if several else fixed[0]

    def _own(self, result):
        """A function's result in memory of the program's."""
        if result is None:
            return None
        result = np.asarray(result)
        own = self.empty(result.shape, result.dtype)
        own[...] = result
        return own

    def _grouped(self, notes):
        """Functions that run some notes: launches that follow one another in one call."""
        parts, group = [], []
        for note in [*notes, None]:
            if note is not None and len(note) == 4:
                group.append(note[1:])
                continue
            if group:
                entries, frames, most = zip(*group, strict=True)
                self._kept.append(frames)
                numbers = [np.array(row, np.int64) for row in (entries, [frame.ctypes.data for frame in frames], most)]
                parts.append(lambda pool=self._pool, numbers=numbers: pool.repeat(*numbers))
                group = []
            if note is not None:
                parts.append(note[1])
        return parts

    def _keep(self, arguments):
        for value in arguments:
            if isinstance(value, tuple):
                self._keep(value)
            elif isinstance(value, np.ndarray):
                self._kept.append(value)

