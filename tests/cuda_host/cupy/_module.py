"""RawModule and RawKernel: the .cu source, compiled for the host, launched as on a device."""
import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
import weakref
from functools import cache
from pathlib import Path

import numpy as np

from cupy._array import changed, counters, ndarray
from cupy._memory import check_guards

HEADERS = [Path(__file__).parents[1] / name for name in ("cuda_on_host.h", "fiber_switch.h")]
FLAGS = ("-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-fvisibility=hidden")
MOST = {"grid": (2**31 - 1, 65535, 65535), "block": (1024, 1024, 64)}
STUB = """
extern "C" __attribute__((visibility("default"))) const char* launch_{number}(const unsigned* grid, const unsigned* block,
    uint64_t seed, int count, void** values, const char** codes) {{
    return cuda_host::Kernel<&{name}>::launch(grid, block, seed, count, values, codes);
}}
"""
build_folder = None  # where libraries are kept between runs; a temporary folder when nobody has said
_one_at_a_time = threading.Lock()


@cache
def _temporary_folder():
    return tempfile.TemporaryDirectory(prefix="cuda_on_host_")


@cache
def _compiler():
    found = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not found:
        raise RuntimeError("the CUDA kernels are tested by a C++ compiler where there is no GPU: install g++ or clang")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    return found, version


class CompileException(Exception):
    """The source does not compile."""


class CUDADriverError(RuntimeError):
    """A launch that a device would refuse."""


def _library(text):
    compiler, version = _compiler()
    parts = [text, *(header.read_text() for header in HEADERS), version, *FLAGS]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    folder = Path(build_folder or _temporary_folder().name)
    path = folder / f"{name}.so"
    if not path.exists():
        own = folder / f"{name}-{os.getpid()}-{threading.get_ident()}"
        own.with_suffix(".cpp").write_text(text)
        command = [compiler, *FLAGS, "-include", str(HEADERS[0]), str(own.with_suffix(".cpp")), "-o", f"{own}.so"]
        made = subprocess.run(command, capture_output=True, text=True)
        own.with_suffix(".cpp").unlink()
        if made.returncode:
            raise CompileException(made.stderr[:4000])
        Path(f"{own}.so").replace(path)
    return ctypes.CDLL(str(path))


class RawModule:
    """As cupy.RawModule with the NVRTC back end; compiled when the first function is asked for."""

    def __init__(self, *, code, options=(), backend="nvrtc", name_expressions=None, **unknown):
        if unknown or not name_expressions or backend != "nvrtc":
            raise TypeError(f"the stand-in compiles code with name_expressions by NVRTC, got {unknown}, {backend}")
        if not isinstance(code, str) or not isinstance(options, tuple):
            raise TypeError(f"code is a str and options a tuple, got {type(code).__name__} and {type(options).__name__}")
        self.code, self.names, self._compiled = code, list(name_expressions), None

    def compile(self):
        if self._compiled is None:
            stubs = "".join(STUB.format(number=number, name=name) for number, name in enumerate(self.names))
            self._compiled = _library(self.code + stubs)

    def get_function(self, name):
        self.compile()
        return RawKernel(getattr(self._compiled, f"launch_{self.names.index(name)}"), name)


class RawKernel:
    """kernel(grid, block, args): as strict about grid, block and argument types as a device is, and stricter."""

    def __init__(self, function, name):
        self.function, self.name = function, name
        function.restype = ctypes.c_char_p

    def __call__(self, grid, block, args, *, shared_mem=0):
        sizes = [self._size(what, size) for what, size in (("grid", grid), ("block", block))]
        if np.prod(sizes[1]) > 1024 or shared_mem:
            raise CUDADriverError(f"CUDA_ERROR_INVALID_VALUE: {self.name} on blocks of {block} with {shared_mem} bytes")
        memory = [_argument(self.name, place, value) for place, value in enumerate(args)]
        values = (ctypes.c_void_p * len(args))(*[array.ctypes.data for array, _ in memory])
        codes = (ctypes.c_char_p * len(args))(*[code for _, code in memory])
        buffers = [weakref.ref(value._buffer) for value in args if isinstance(value, ndarray)]
        changed(lambda: self._launch(sizes, buffers, memory, values, codes))

    def _launch(self, sizes, buffers, memory, values, codes):
        """memory: what `values` points into, which a graph must keep. A graph keeps no array: buffers are references."""
        with _one_at_a_time:
            counters.launches += 1
            seed = ctypes.c_uint64(counters.launches * 0x9E3779B97F4A7C15 % 2**64)
            problem = self.function(*sizes, seed, len(memory), values, codes)
            if problem:
                raise CUDADriverError(f"{self.name}: {problem.decode()}")
        every = counters.launches % 256 == 0
        check_guards(None if every else [buffer() for buffer in buffers if buffer() is not None])

    def _size(self, what, size):
        if not isinstance(size, tuple):
            raise TypeError(f"Argument '{what}' has incorrect type (expected tuple, got {type(size).__name__})")
        full = (*size, 1, 1, 1)[:3]
        if not 1 <= len(size) <= 3 or not all(isinstance(n, int) and 1 <= n <= most
                                              for n, most in zip(full, MOST[what], strict=True)):
            raise CUDADriverError(f"CUDA_ERROR_INVALID_VALUE: {self.name} on a {what} of {size}")
        return (ctypes.c_uint * 3)(*full)


def _argument(name, place, value):
    """(memory that holds what is passed, its type's code): see cuda_on_host.h."""
    if isinstance(value, np.uint64) and value == 0:
        return np.zeros(1, np.uint64), b"null"
    if isinstance(value, ndarray):
        if not value.flags.c_contiguous:
            raise TypeError(f"{name}: argument {place} is not C-contiguous, and kernels read plain memory")
        return np.array([value.data.ptr], np.uint64), f"{value.dtype.kind}{value.dtype.itemsize}*".encode()
    if type(value) in (bool, int, float):  # what CuPy makes of Python's numbers
        value = {bool: np.bool_, int: np.int64, float: np.float64}[type(value)](value)
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return np.array([value]), f"{value.dtype.kind}{value.dtype.itemsize}".encode()
    raise TypeError(f"Unsupported type {type(value)}")
