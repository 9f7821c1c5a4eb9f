"""One device, one stream: everything has happened when a call returns, and waiting is only counted."""
import time

from cupy._array import capture, waits
from cupy._memory import Memory, MemoryPointer, MemoryPool, OutOfMemoryError, pool, using_allocator  # noqa: F401
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
        self.ptr, self.non_blocking = 0, non_blocking

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

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
        if not self.non_blocking or capture.calls is not None:
            raise runtime.CUDARuntimeError(900)
        capture.calls = []

    def end_capture(self):
        calls, capture.calls = capture.calls, None
        return Graph(calls)


class Graph:
    """What a stream noted, done in order at every launch."""

    def __init__(self, calls):
        self._calls = calls

    def launch(self, stream=None):
        for call in self._calls:
            call()


Stream.null = Stream()


def get_current_stream():
    return Stream.null


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
