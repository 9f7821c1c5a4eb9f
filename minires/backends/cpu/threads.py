"""Sharing the tasks of a kernel out among threads.

    launch(kernel, tasks, work, *arguments)

calls kernel(tasks, counter, thread, *arguments), compiled by Numba with `nogil=True`, which runs in several threads at once:

    enter(counter, thread)               # the other threads enter here too, with their number as `thread`; the caller's is 0
    task = claim(counter)
    while task < tasks:
        ...
        task = claim(counter)
    leave(counter, thread)               # the caller waits until the others are out

Each takes the next task that nobody has, from an atomic counter, until none is left, so a thread that the system starts
late, or slows down, holds nobody up. What a task computes never depends on who runs it: results are the same bits for any
number of threads. A kernel may have phases, of which each reads what the one before wrote (transform weights, convolve, add
up partial sums):

    while task < first:
        ...
        task = claim_next(counter)       # and the task before is done
    await_tasks(counter, first)          # until all of them are done, whoever runs them
    while task < tasks:
        ...

A training step is some sixty launches of a millisecond, and between two of them the caches hold what the kernel left there,
not Python: what takes Python 10 microseconds in a loop takes it 60 then. So the threads meet once a kernel and not once a
phase, and only the caller's thread comes back to Python: the others look for the next kernel in memory, without Python's
lock, and sleep when none came for a moment (`SPINS`). Numba's own `prange` would share work out as well, but it compiles
every kernel three times over, and the first training step of a new machine waits for the compiler.

How the others enter: `enter` writes all arguments of the function that it stands in, and the address of a function that
calls it with them and another `thread`, into the counter's memory, and opens its gate; `leave` closes it and waits for those
inside. Whoever keeps a copy of what `enter` wrote can run the kernel again without Python: see launches.py.
"""
import ctypes
import os
import platform
import threading
from contextvars import ContextVar
from queue import SimpleQueue

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from minires.backends.cpu import arena, jit, llvm, numba_private
from minires.backends.cpu.environment import MOST_THREADS
from minires.backends.cpu.llvm import ADDRESS, I32, I64

SMALL = 1 << 16  # operations: below, handing work to another thread takes longer than doing it
SPINS = 20000  # looks before a thread sleeps, about 0.4 ms
# Places in a counter, in 8 bytes; those that several threads write are a cache line apart. GATE: kernels so far * KERNEL,
# + CLOSED, + threads that entered. ARGUMENTS: where the kernel's begin, SIZE bytes of them. BUSY: not 0 while kernels follow
# one another without Python between them.
CLAIMED, DONE, FINISHED, GATE = 0, 8, 16, 24
THREADS, FAILED, ENTRY, SIZE, BUSY, ARGUMENTS, WORDS = 32, 33, 34, 35, 36, 40, 1024
CLOSED, KERNEL = 1 << 15, 1 << 16


def _pointer(context, builder, state, index):
    """The address of a place; state: the array type and its value."""
    return llvm.element(context, builder, *state, I64(index))


def _changing(operation, index, order, number):
    """An intrinsic: add `number` to a place (or another operation), all at once, and return what was there."""
    @intrinsic
    def change(typingctx, state):
        def codegen(context, builder, sig, args):
            return builder.atomic_rmw(operation, _pointer(context, builder, (state, args[0]), index), I64(number), order)

        return types.int64(state), codegen

    return change


def _reading(index):
    @intrinsic
    def read(typingctx, state):
        def codegen(context, builder, sig, args):
            return builder.load_atomic(_pointer(context, builder, (state, args[0]), index), "acquire", 8)

        return types.int64(state), codegen

    return read


claim = _changing("add", CLAIMED, "monotonic", 1)  # the number of the next task that nobody has
_task_done, _finished = _changing("add", DONE, "release", 1), _changing("add", FINISHED, "release", 1)
_close = _changing("or", GATE, "acq_rel", CLOSED)
_done, _finishers, _gate = _reading(DONE), _reading(FINISHED), _reading(GATE)
_failed, _busy = _reading(FAILED), _reading(BUSY)
_yield_core = types.ExternalFunction("sched_yield", types.int32())
if os.name == "nt":  # Windows has it under another name, which the linker is told here; not tested there
    binding.add_symbol("sched_yield", ctypes.cast(ctypes.windll.kernel32.SwitchToThread, ctypes.c_void_p).value)


@intrinsic
def _pause(typingctx):
    """Tell the processor that this is a waiting loop."""
    def codegen(context, builder, sig, args):
        if platform.machine().lower() in ("x86_64", "amd64"):
            llvm.call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def enter(typingctx, counter, thread):
    """In thread 0: tasks begin at 0, and the other threads may enter the kernel that calls this. In others nothing."""
    def codegen(context, builder, sig, args):
        state, kernel = (counter, args[0]), builder.function
        with builder.if_then(builder.icmp_signed("==", args[1], I64(0))):
            for place in (CLAIMED, DONE, FINISHED):
                builder.store(I64(0), _pointer(context, builder, state, place))
            kind = ir.LiteralStructType([argument.type for argument in kernel.args])
            size = context.get_abi_sizeof(kind)
            if size > 8 * (WORDS - ARGUMENTS):
                raise ValueError(f"{kernel.name} has too many arguments: raise WORDS in threads.py")
            frame = builder.bitcast(_pointer(context, builder, state, ARGUMENTS), kind.as_pointer())
            for index, argument in enumerate(kernel.args):
                builder.store(argument, builder.gep(frame, [I32(0), I32(index)]), align=1)
            entry = builder.ptrtoint(numba_private.entry(kernel, kind), I64)
            builder.store(entry, _pointer(context, builder, state, ENTRY))
            builder.store(I64(size), _pointer(context, builder, state, SIZE))
            threads = builder.load(_pointer(context, builder, state, THREADS))
            with builder.if_then(builder.icmp_signed(">", threads, I64(1))):
                gate = _pointer(context, builder, state, GATE)
                following = builder.add(builder.or_(builder.load(gate), I64(KERNEL - 1)), I64(1))
                builder.store_atomic(following, gate, "release", 8)
        return context.get_dummy_value()

    return types.void(counter, types.int64), codegen


@intrinsic
def _call(typingctx, entry, frame, thread):
    """Run a kernel as `thread`, by its entry and the address of its arguments; not 0 if it raised an exception."""
    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(I32, [ADDRESS, I64]).as_pointer()
        address = builder.inttoptr(args[1], ADDRESS)
        return builder.sext(builder.call(builder.inttoptr(args[0], kind), [address, args[2]]), I64)

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def _arguments(typingctx, state):
    """The address of the arguments of the kernel whose gate is open."""
    def codegen(context, builder, sig, args):
        return builder.ptrtoint(_pointer(context, builder, (state, args[0]), ARGUMENTS), I64)

    return types.int64(state), codegen


@intrinsic
def _count_in(typingctx, state, gate):
    """Count this thread among those inside, if the gate is still as it was seen; whether it was."""
    def codegen(context, builder, sig, args):
        place = _pointer(context, builder, (state, args[0]), GATE)
        found = builder.cmpxchg(place, args[1], builder.add(args[1], I64(1)), "acq_rel", "monotonic")
        return builder.extract_value(found, 1)

    return types.boolean(state, types.int64), codegen


@jit.part
def claim_next(counter):
    """The number of the next task; says that the one this thread had is done."""
    _task_done(counter)
    return claim(counter)


@jit.part
def _wait(looks):
    if looks < SPINS:
        _pause()
    else:  # whoever has the task may be waiting for this very core
        _yield_core()


@jit.part
def await_tasks(counter, count):
    """Wait until `count` tasks are done. All of them have been claimed: the wait is no longer than a task."""
    looks = 0
    while _done(counter) < count and not _failed(counter):
        looks += 1
        _wait(looks)


@jit.kernel
def leave(counter, thread):
    """In thread 0: let nobody else enter, and wait until those inside are out. In others nothing."""
    if thread == 0:
        gate, looks = _close(counter), 0
        inside = 0 if gate & CLOSED else gate % CLOSED  # it was not opened for one thread alone
        while _finishers(counter) < inside:
            looks += 1
            _wait(looks)


@jit.kernel
def _serve(state, thread, last):
    """Run kernels as `thread` until none came for a moment; last: the number of the last, which is returned too."""
    looks = 0
    while looks < SPINS:
        gate = _gate(state)
        if gate & CLOSED or gate // KERNEL == last or thread >= state[THREADS]:
            looks += 1
            _pause()
        elif _count_in(state, gate):
            if _call(state[ENTRY], _arguments(state), thread):
                state[FAILED] = 1
            _finished(state)
            last, looks = gate // KERNEL, 0
        if _busy(state):
            looks = 0
    return last


@jit.kernel
def _repeat(state, entries, frames, most, threads):
    """Run kernels again, one after another, as thread 0; how many are done: fewer than there are if one failed."""
    done = 0
    state[BUSY] = 1
    while done < entries.size:
        state[THREADS] = min(most[done], threads)
        if _call(entries[done], frames[done], 0) or state[FAILED]:
            break
        done += 1
    state[BUSY] = 0
    return done


class _Pool:
    """The worker threads, started when first needed. The caller's thread takes part as thread 0."""

    def __init__(self):
        self.threads, self.after_launch = MOST_THREADS, None  # the latter: a function of the kernel's arguments, for tests
        self._lock, self._state, self._workers, self._known = threading.RLock(), np.zeros(WORDS, np.int64), [], set()
        self._state[GATE] = CLOSED

    def launch(self, kernel, tasks, work, *arguments):
        """See the module's docstring. work: about how many operations all tasks are."""
        most, state, notes = (min(tasks, MOST_THREADS) if work >= SMALL else 1), self._state, recorder.get()
        threads = min(self.threads, most)
        with self._lock:  # for one thread too: scratch memory is one set for all callers
            state[THREADS] = threads
            if threads > 1:
                self._wake(threads - 1)
            try:
                kernel(tasks, state, 0, *arguments)
            except BaseException:  # others may wait for tasks of this thread, and write into the caller's arrays
                state[FAILED] = 1
                leave(state, 0)
                state[FAILED] = 0
                raise
            if kernel not in self._known:
                self._known.add(kernel)
                numba_private.forget_bitcode(kernel)
            if state[FAILED]:
                state[FAILED] = 0
                raise RuntimeError(f"the kernel {kernel.__name__} raised an exception in another thread than the caller's")
            if self.after_launch is not None:
                self.after_launch(arguments)
            if notes is not None:
                notes.note(state[ENTRY], state[ARGUMENTS:ARGUMENTS - (-state[SIZE] // 8)], most, arguments)

    def repeat(self, entries, frames, most):
        """Run kernels again: their entries, addresses of their arguments, and how many threads each may have at most."""
        with self._lock:
            self._state[BUSY] = 1  # whoever is about to sleep does not
            if self.threads > 1:
                self._wake(self.threads - 1)
            if _repeat(self._state, entries, frames, most, self.threads) < len(entries):
                self._state[FAILED] = 1
                leave(self._state, 0)
                self._state[FAILED] = 0
                raise RuntimeError("a recorded kernel raised an exception")

    def _wake(self, count):
        while len(self._workers) < count:
            worker = _Worker(self._state, len(self._workers) + 1)
            self._workers.append(worker)
            worker.start()
        for worker in self._workers[:count]:
            if worker.asleep:
                worker.bell.put(None)


class _Worker(threading.Thread):
    """A thread that runs kernels."""

    def __init__(self, state, number):
        super().__init__(name=f"minires kernel {number}", daemon=True)
        self.asleep, self.bell, self._state, self._number = False, SimpleQueue(), state, number

    def run(self):
        last = -1
        while True:
            last = _serve(self._state, self._number, last)
            self.asleep = True
            if self._state[GATE] & CLOSED and not self._state[BUSY]:  # else the caller took it to be awake still
                self.bell.get()
            self.asleep = False


pool = _Pool()
recorder = ContextVar("minires_recorder", default=None)  # who notes what the caller launches


def launch(kernel, tasks, work, *arguments):
    """Run all tasks of a kernel: see the module's docstring."""
    pool.launch(kernel, tasks, work, *arguments)


def here(function, *arguments):
    """What a function returns that is no single launch, an array (or None) or several: a program calls it again."""
    notes = recorder.get()
    if notes is None:
        return function(*arguments)
    token = recorder.set(None)
    try:
        with arena.using_shared():  # what the function needs for itself is no result that has its place
            results = function(*arguments)
    finally:
        recorder.reset(token)
    return notes.note_function(function, arguments, results)


def _after_fork():
    global pool
    before, pool = pool, _Pool()
    pool.threads, pool.after_launch = before.threads, before.after_launch


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)  # a fork's child has none of the threads
