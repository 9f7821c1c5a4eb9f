"""What a function launches, written down, to be run again on the same memory without Python.

    recording = Recording(Recording.new_memory())
    with recording.memory(), recording:
        function()                # computes, and is noted
    recording.finish()
    recording.run()               # computes it again

A training step is some sixty launches of a millisecond. Between two of them Python prepares the next: 100 operations of the
interpreter, in caches that a kernel just emptied, take 0.1 ms, of which the threads compute nothing. Here the arguments
stay as `enter` wrote them (see threads.py), and one call of compiled code runs kernel after kernel. NumPy's few functions
(`threads.here`) stand between them.

Arguments are addresses, so what lay there must stay. Results lie in an arena of the recording's own, from which nothing
else is taken while it runs: each run lays them where the first one did, one on another, as that dropped them. All other
arrays are kept, those of the parameters, of inputs and the kernels' scratch.
"""
import numpy as np

from minires.backends.cpu import arena, threads


class Recording:
    """The launches of a function in order, and the arrays that they need. Not thread-safe, like the layers."""

    new_memory = arena.Arena

    def __init__(self, memory):
        self._arena, self._pool, self._token = memory, None, None
        self._kept, self._launches, self._parts = [], [], []

    def memory(self):
        """Within, the results of operators lie in the recording's memory."""
        return arena.using(self._arena)

    def __enter__(self):
        self._pool, self._token = threads.pool, threads.recorder.set(self)

    def __exit__(self, *exception):
        threads.recorder.reset(self._token)

    def finish(self):
        """Everything is noted."""
        self._end_part()

    @property
    def usable(self):
        """Whether this process still has the threads that launches were noted of: a fork's child has not."""
        return self._pool is threads.pool

    def run(self):
        """Compute everything again."""
        for part in self._parts:
            part()

    # --- what threads.py tells ---

    def note(self, entry, frame, most, arguments):
        """A kernel was launched: where it is entered, its arguments as it reads them, how many threads it may have."""
        self._launches.append((int(entry), frame.copy(), most))
        self._keep(arguments)

    def note_function(self, function, arguments, results):
        """A function was called; -> its results, as the arrays that the next run fills again."""
        several = isinstance(results, tuple)
        fixed = tuple(None if result is None else np.asarray(result) for result in (results if several else (results,)))
        targets, arguments = self._unheld(fixed), self._unheld(arguments)

        def again():
            found = function(*arguments)
            for target, result in zip(targets, found if several else (found,), strict=True):
                if target is not None and not _same_memory(target, np.asarray(result)):
                    target[...] = result

        self._end_part()
        self._parts.append(again)
        return fixed if several else fixed[0]

    def _end_part(self):
        """Put the launches so far into one call."""
        if self._launches:
            entries, frames, most = zip(*self._launches, strict=True)
            self._kept.append(frames)
            numbers = [np.array(row, np.int64) for row in (entries, [frame.ctypes.data for frame in frames], most)]
            pool = self._pool  # no reference to this recording, which would keep its memory
            self._parts.append(lambda: pool.repeat(*numbers))
            self._launches = []

    def _keep(self, arguments):
        for value in arguments:
            if isinstance(value, tuple):
                self._keep(value)
            elif isinstance(value, np.ndarray) and self._arena.unheld(value) is None:
                self._kept.append(value)

    def _unheld(self, values):
        """Values, those inside tuples and lists too, with arrays that keep no place in the arena from later results."""
        if isinstance(values, tuple | list):
            return type(values)(map(self._unheld, values))
        unheld = self._arena.unheld(values) if isinstance(values, np.ndarray) else None
        return values if unheld is None else unheld


def _same_memory(array, other):
    return array.ctypes.data == other.ctypes.data and array.strides == other.strides
