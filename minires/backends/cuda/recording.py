"""What a function launches, captured as a CUDA graph, to be launched again at once (see minires.replay).

    recording = Recording(Recording.new_memory())
    with recording.memory(), recording:
        function()                # launches nothing: the stream notes what it would
    recording.finish()            # computes it
    recording.run()               # computes it again

A training step of a small network is some two hundred launches of a few microseconds, and Python takes 50 to prepare one. A
graph goes to the device in one call. Its arguments are addresses: results come from a pool of the recording's own, which
keeps what was freed, and from which nothing else is taken while the graph runs. CuPy lets no stream note what cuBLAS
launches, so networks of more channels than conv.NARROW are not recorded.
"""
import weakref
from contextlib import contextmanager

import cupy

from minires.backends import NotRecordable

_REFUSALS = (NotImplementedError, cupy.cuda.runtime.CUDARuntimeError)  # what CuPy and CUDA say to what no graph can hold
_memories = weakref.WeakSet()


def held():
    """Bytes of the device that CuPy's pool and those of recordings keep."""
    return cupy.get_default_memory_pool().total_bytes() + sum(memory.size for memory in _memories)


class _Memory:
    """A pool, and the stream on which it is used, since a pool keeps freed memory for its stream.

    Its blocks are kept here too: a pool that finds the device full would give back what is free, where graphs still work.
    """

    def __init__(self):
        self._blocks = []
        self.pool, self.stream = cupy.cuda.MemoryPool(self._block), cupy.cuda.Stream(non_blocking=True)
        _memories.add(self)

    def _block(self, size):
        block = cupy.cuda.Memory(size)
        self._blocks.append(block)
        return cupy.cuda.MemoryPointer(block, 0)

    @property
    def size(self):
        return sum(block.size for block in self._blocks)


class Recording:
    """A graph, and the memory it works in."""

    new_memory = _Memory

    def __init__(self, memory):
        self._memory, self._graph, self._device = memory, None, cupy.cuda.Device().id

    @contextmanager
    def memory(self):
        """Within, arrays lie in the recording's memory; what is launched comes after what was launched before."""
        caller, own = cupy.cuda.get_current_stream(), self._memory.stream
        own.wait_event(caller.record())
        try:
            with cupy.cuda.using_allocator(self._memory.pool.malloc), own:
                yield
        finally:
            caller.wait_event(own.record())

    def __enter__(self):
        self._memory.stream.begin_capture()

    def __exit__(self, kind, error, _):
        try:
            self._graph = self._memory.stream.end_capture()
        except _REFUSALS as refusal:  # it was broken off within
            error = error or refusal
        if isinstance(error, _REFUSALS):
            raise NotRecordable(f"CUDA cannot record it ({_first_line(error)})") from error

    def finish(self):
        """Compute what was noted."""
        self.run()

    @property
    def usable(self):
        """Whether the current device is the one that launches were noted for."""
        return cupy.cuda.Device().id == self._device

    def run(self):
        """Compute everything again."""
        self._graph.launch()  # on the caller's stream


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
