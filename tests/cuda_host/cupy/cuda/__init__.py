"""One device, one stream: everything has happened when a call returns, and waiting is only counted."""
import time

from cupy._array import counters
from cupy._memory import MemoryPool, OutOfMemoryError, pool, using_allocator  # noqa: F401
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
        counters.synchronisations += 1

    @property
    def mem_info(self):
        return runtime.memGetInfo()


class Stream:
    """A stream; what is put on it has been done already."""

    def __init__(self, null=False, non_blocking=False, ptds=False):
        self.ptr = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def synchronize(self):
        counters.synchronisations += 1

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        pass

    def use(self):
        return self


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
        counters.synchronisations += 1


def get_elapsed_time(start, end):
    """Milliseconds."""
    return (end.at - start.at) * 1e3
