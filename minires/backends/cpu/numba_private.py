"""What this back end uses of Numba beyond its documented interface, all in one place.

Each part states what it assumes, and a new version may break: tests/test_numba_assumptions.py has a test for each, and
pyproject.toml admits only versions that were tested. What Numba's guide to extensions shows is not counted.
"""
import fcntl
import hashlib
import pickle
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from llvmlite import ir
from numba import config
from numba.core import event
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.serialize import dumps

from minires.backends.cpu.llvm import ADDRESS, I32, I64

PATIENCE = 120  # seconds; no kernel takes so long to compile
# `_nrt`: without reference counts. Kernels make no arrays, and those that they are given live until they end; counting two
# dozen of them takes longer than starting a kernel. `no_cfunc_wrapper`: without an entrance for C, which nobody uses.
OPTIONS = {"_nrt": False, "no_cfunc_wrapper": True}


def on_compile(tell):
    """Call tell(function) when Numba begins to compile a function; not when it finds it in the cache."""
    event.register("numba:compile", _Compiling(tell))


class _Compiling(event.Listener):
    def __init__(self, tell):
        self._tell = tell

    def on_start(self, event):
        self._tell(event.data["dispatcher"].py_func)

    def on_end(self, event):
        pass


def entry(kernel, kind):
    """A function of the kernel's module that calls it with the arguments at an address, but with its own `thread`.

    kernel: a compiled function's IR, `builder.function` of an intrinsic that it calls; kind: the struct of its arguments.
    They are a place for the result, one for an exception, and Python's arguments, called "arg." and their names, an array's
    parts one by one. It returns an int32, 0 unless it raised an exception.
    """
    entry = ir.Function(kernel.module, ir.FunctionType(I32, [ADDRESS, I64]), kernel.name + ".entry")
    entry.linkage = "internal"
    builder = ir.IRBuilder(entry.append_basic_block())
    frame = builder.bitcast(entry.args[0], kind.as_pointer())
    arguments = [builder.load(builder.gep(frame, [I32(0), I32(index)]), align=1) for index in range(len(kernel.args))]
    arguments[:2] = [builder.alloca(argument.type.pointee) for argument in kernel.args[:2]]
    arguments[[argument.name for argument in kernel.args].index("arg.thread")] = entry.args[1]
    builder.ret(builder.call(kernel, arguments))
    return entry


def forget_bitcode(kernel):
    """Drop a compiled kernel's `_shared_module`, bitcode for functions that call it: megabytes, and no function does."""
    for compiled in kernel.overloads.values():
        if getattr(compiled.library, "_shared_module", None) is not None:
            compiled.library._shared_module = None


def keep_on_disk(compiled, stamp, failed):
    """Give a function made by `njit` a cache on disk, in its `_cache`; failed(folder) is called if nothing can be kept."""
    try:
        compiled._cache = _KernelCache(compiled.py_func, stamp, failed)
    except RuntimeError:  # none of the places that Numba knows can be written
        failed(config.CACHE_DIR or "any of Numba's cache folders")


class _Places(CompileResultCacheImpl):
    # Of the places where Numba looks for a folder that it can write to the first is NUMBA_CACHE_DIR: if given, no other.
    _locator_classes = CompileResultCacheImpl._locator_classes[:1 if config.CACHE_DIR else None]


class _KernelCache(FunctionCache):
    """Numba's cache of a function, but with files of our own.

    Numba takes a kernel for fresh while its own source file stays as it was, whatever becomes of the functions that it calls
    in others; it unpickles whatever it finds; and two processes that write at once can swap each other's kernels.
    """

    _impl_class = _Places

    def __init__(self, function, stamp, failed):
        super().__init__(function)
        self._cache_file, self._failed = _Files(Path(self._cache_path), self._impl.filename_base, stamp), failed
        self._turn = None  # a file that this process has locked: it is compiling

    def load_overload(self, sig, target_context):
        """What another process is just compiling is waited for: Numba compiles what is not found."""
        found = super().load_overload(sig, target_context)
        if found is None:
            self._turn = _lock(Path(self._cache_path, f"{self._impl.filename_base}.lock"))
            found = super().load_overload(sig, target_context)
            if found is not None:
                self._end_turn()
        return found

    def save_overload(self, sig, data):
        try:
            super().save_overload(sig, data)
        except OSError:
            self._failed(self._cache_path)
        finally:
            self._end_turn()

    def _end_turn(self):
        if self._turn is not None:
            with suppress(OSError):
                Path(self._turn.name).unlink()  # who waits for it has it open
            self._turn.close()
            self._turn = None


def _lock(path):
    """A file that no other process has locked, until it is closed or the process ends; None where there are no locks.

    Who has it for PATIENCE seconds is not waited for any longer.
    """
    try:
        file = path.open("w")
    except OSError:
        return None
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        time.sleep(0.005)
    return file


class _Files:
    """A file for each compiled form of a function, named by `stamp` (of all that it was made from) and the form's key.

    It begins with a hash of the rest: a damaged file is none. Versions that share a folder do not meet.
    """

    def __init__(self, folder, name, stamp):
        self._folder, self._name, self._stamp = folder, name, stamp

    def _path(self, key):
        return self._folder / f"{self._name}.{self._stamp}.{_hash(repr(key).encode()).hex()[:16]}.nbc"

    def load(self, key):
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        return pickle.loads(content[32:]) if content[:32] == _hash(content[32:]) else None

    def save(self, key, data):
        self._remove_old()
        data, path = dumps(data), self._path(key)
        beside = path.with_name(f"{path.name}.{uuid4().hex[:8]}")
        try:
            beside.write_bytes(_hash(data) + data)
            beside.replace(path)  # all at once, for whoever reads
        finally:
            beside.unlink(missing_ok=True)

    def _remove_old(self):
        """Remove what other versions left for this function, once it is a day old: each edit of a file leaves one more."""
        for path in self._folder.glob(f"{self._name.rsplit('-', 1)[0]}-*"):
            with suppress(OSError):
                if self._stamp not in path.name and time.time() - path.stat().st_mtime > 24 * 3600:
                    path.unlink()


def _hash(data):
    return hashlib.sha256(data).digest()
