"""The memory by which threads agree who computes which task, and what kernels do to it, atomically.

How kernels are written with it, and how threads meet, is said in threads.py.
"""
import platform

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model

from minires.backends.cpu import jit, llvm, numba_private
from minires.backends.cpu.llvm import ADDRESS, I32, I64

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
        _enter(context, builder, (counter, args[0]), args[1])
        return context.get_dummy_value()

    return types.void(counter, types.int64), codegen


def _enter(context, builder, state, thread):
    kernel = builder.function
    with builder.if_then(builder.icmp_signed("==", thread, I64(0))):
        for place in (CLAIMED, DONE, FINISHED):
            builder.store(I64(0), _pointer(context, builder, state, place))
        kind = ir.LiteralStructType([argument.type for argument in kernel.args])
        size = context.get_abi_sizeof(kind)
        if size > 8 * (WORDS - ARGUMENTS):
            raise ValueError(f"{kernel.name} has too many arguments: raise WORDS in counter.py")
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


class ClaimedType(types.SimpleIteratorType):
    """What `claimed` returns, in Numba's eyes: an iterator over whole numbers."""

    def __init__(self):
        super().__init__("Claimed", types.int64)


@register_model(ClaimedType)
class _ClaimedModel(models.StructModel):
    def __init__(self, manager, kind):
        address = types.CPointer(types.int64)
        super().__init__(manager, kind, [("tasks", types.int64), ("places", address), ("has_one", address)])


@intrinsic
def claimed(typingctx, tasks, counter, thread):
    """`enter`, and the numbers of the tasks that this thread takes; each is done when the next is asked for."""
    def codegen(context, builder, sig, args):
        _enter(context, builder, (counter, args[1]), args[2])
        found = context.make_helper(builder, sig.return_type)
        found.tasks, found.places = args[0], _pointer(context, builder, (counter, args[1]), 0)
        found.has_one = cgutils.alloca_once_value(builder, I64(0))
        return found._getvalue()

    return ClaimedType()(types.int64, counter, types.int64), codegen


@lower_builtin("iternext", ClaimedType)
def _next_claimed(context, builder, sig, args):
    found = context.make_helper(builder, sig.args[0], args[0])
    done, claimed = (builder.gep(found.places, [I64(place)]) for place in (DONE, CLAIMED))
    builder.atomic_rmw("add", done, builder.load(found.has_one), "release")
    builder.store(I64(1), found.has_one)
    result = context.make_helper(builder, sig.return_type)
    result.first = builder.atomic_rmw("add", claimed, I64(1), "monotonic")
    result.second = builder.icmp_signed("<", result.first, found.tasks)
    return result._getvalue()


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
    """In thread 0: let nobody else enter, and wait until those inside are out. In others, and called again, nothing."""
    if thread == 0:
        gate, looks = _close(counter), 0
        inside = 0 if gate & CLOSED else gate % CLOSED  # it was not opened for one thread alone
        while _finishers(counter) < inside:
            looks += 1
            _wait(looks)


@jit.kernel
def serve(state, thread, last):
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
def repeat(state, entries, frames, most, threads):
    """Run kernels again, one after another, as thread 0; how many are done: fewer than there are if one failed."""
    done = 0
    state[BUSY] = 1
    while done < entries.size:
        state[THREADS] = min(most[done], threads)
        if _call(entries[done], frames[done], 0):  # others may wait for tasks of this thread
            state[FAILED] = 1
        leave(state, 0)
        if state[FAILED]:
            break
        done += 1
    state[BUSY] = 0
    return done
