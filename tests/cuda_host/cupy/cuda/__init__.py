"""One device, whose streams are one: everything has happened when a call returns, and waiting is only counted.

Only what is put on a stream that notes has not happened.
"""
import time

from cupy._array import capture, counters, waits
from cupy._memory import (  # noqa: F401
    Memory,
    MemoryPointer,
    MemoryPool,
    OutOfMemoryError,
    UnownedMemory,
    pool,
    using_allocator,
)
from cupy.cuda import compiler, memory, runtime  # noqa: F401


class Device:
    """The stand-in's only device."""

    id = 0
    compute_capability = "90"

    def __init__(self, number=None):
        if number not in (None, 0):
            raise runtime.CUDARuntimeError(101)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def use(self):
        pass

    def synchronize(self):
        waits()

    @property
    def mem_info(self):
        return runtime.memGetInfo()


class Stream:
    """A stream; what is put on it has been done already."""

    def __init__(self, null=False, non_blocking=False, ptds=False):
        self.ptr, self.non_blocking, self.calls, self.broken = 0, non_blocking, None, False

    def __enter__(self):
        capture.streams.append(self)
        return self

    def __exit__(self, *error):
        capture.streams.pop()

    def synchronize(self):
        waits()

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        pass

    def use(self):
        return self

    def begin_capture(self, mode=None):
        if not self.non_blocking or self.calls is not None:
            raise runtime.CUDARuntimeError(900)
        self.calls, self.broken = [], False

    def end_capture(self):
        calls, self.calls = self.calls, None
        if calls is None or self.broken:
            raise runtime.CUDARuntimeError(901)
        return Graph(calls)


class Graph:
    """What a stream noted, done in order at every launch."""

    def __init__(self, calls):
        self._calls = calls

    def launch(self, stream=None):
        if capture.calls is not None:
            raise runtime.CUDARuntimeError(900)
        counters.graphs += 1
        for call in self._calls:
            call()


Stream.null = Stream()


def get_current_stream():
    return capture.streams[-1] if capture.streams else Stream.null


class Event:
    """A moment on the host's clock."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.at = None

    def record(self, stream=None):
        self.at = time.perf_counter()

    def synchronize(self):
        waits()


def get_elapsed_time(start, end):
    """Milliseconds."""
    return (end.at - start.at) * 1e3
