"""Vector registers as values in Numba code, so that a kernel reads as the formula it computes.

    v = load(LANES, x, offset)           LANES consecutive elements of the array x, LANES a compile-time constant
    v = splat(LANES, number)             one number in all lanes
    store(y, offset, a * b + v * 4)      + - * on vectors are operations on all lanes; * takes a number too
    v = load_first(LANES, x, offset, n)  its first n elements and zeros; nothing behind them is read
    store_first(y, offset, n, v)         write the first n elements
    store_from(y, offset, v, first)      store, but only the lanes from `first` on: for a vector that overlaps the one before
    stream(y, offset, v)                 store to memory that is not read soon; offset a multiple of the vector, y aligned
    prefetch(x, offset)                  begin to load what lies some lines behind: for loops that go through memory
    v = rectify(v)                       max(v, 0); a NaN stays one
    v = at_least(v, w)                   max(v, w); a NaN in v stays one
    v = where_positive(y, v)             v where y > 0, else 0
    v = where_beats(a, b, v, w)          v where a > b, or a is NaN and b is not, else w
    v = where_equal(n, number, v)        v where n, a vector of int32, has that number, else 0
    n = whole_numbers(v)                 v as int32
    turn(N, y, i, p, x, j, q)            y[i + c * p + r] = x[j + r * q + c] for r, c < N: a square of elements transposed

Plain Numba loops vectorise when each output is independent, but sums over pixels keep their accumulators in memory and
wait for it; with these values they stay in registers.
"""
import operator

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

from minires.backends.cpu import llvm
from minires.backends.cpu.host import VECTOR_BYTES
from minires.backends.cpu.llvm import I32, I64

AHEAD = 8192  # bytes: two pages of memory, at whose ends the processor's own prefetching ends


class VectorType(types.Type):
    """`lanes` elements of `dtype` in one register (or as many as the processor needs to hold them)."""

    def __init__(self, dtype, lanes):
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _llvm_vector(kind))


def _llvm_vector(kind):
    element = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.int32: I32}[kind.dtype]
    return ir.VectorType(element, kind.lanes)


@intrinsic(prefer_literal=True)
def load(typingctx, lanes, array, offset):
    """The vector array[offset : offset + lanes] of the array's elements in memory order."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    kind = VectorType(array.dtype, lanes.literal_value)

    def codegen(context, builder, sig, args):
        pointer = llvm.element(context, builder, array, args[1], args[2])
        return llvm.load(builder, pointer, _llvm_vector(kind), array.dtype.bitwidth // 8)

    return kind(lanes, array, types.int64), codegen


@intrinsic
def store(typingctx, array, offset, value):
    """array[offset : offset + lanes] = value, in memory order."""
    def codegen(context, builder, sig, args):
        pointer = llvm.element(context, builder, array, args[0], args[1])
        llvm.store(builder, pointer, args[2], array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, value), codegen


def _mask(builder, lanes, count):
    """Which lanes come before `count`."""
    numbers = ir.Constant(ir.VectorType(I64, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, llvm.broadcast(builder, count, numbers.type))


@intrinsic(prefer_literal=True)
def load_first(typingctx, lanes, array, offset, count):
    """`load` of which only the first `count` elements are read; the other lanes are 0."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    kind = VectorType(array.dtype, lanes.literal_value)

    def codegen(context, builder, sig, args):
        vector = _llvm_vector(kind)
        pointer = builder.bitcast(llvm.element(context, builder, array, args[1], args[2]), vector.as_pointer())
        bits = array.dtype.bitwidth
        return llvm.call(builder, f"llvm.masked.load.v{kind.lanes}f{bits}.p0", vector, pointer, I32(bits // 8),
                         _mask(builder, kind.lanes, args[3]), ir.Constant(vector, [0.0] * kind.lanes))

    return kind(lanes, array, types.int64, types.int64), codegen


@intrinsic
def store_first(typingctx, array, offset, count, value):
    """`store` of the first `count` lanes."""
    def codegen(context, builder, sig, args):
        vector, bits = args[3].type, array.dtype.bitwidth
        pointer = builder.bitcast(llvm.element(context, builder, array, args[0], args[1]), vector.as_pointer())
        llvm.call(builder, f"llvm.masked.store.v{value.lanes}f{bits}.p0", ir.VoidType(), args[3], pointer, I32(bits // 8),
                  _mask(builder, value.lanes, args[2]))
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, value), codegen


@intrinsic
def store_from(typingctx, array, offset, value, first):
    """array[offset + first : offset + lanes] = value[first:]: what lies before is written again as it is."""
    def codegen(context, builder, sig, args):
        pointer, align = llvm.element(context, builder, array, args[0], args[1]), array.dtype.bitwidth // 8
        old = llvm.load(builder, pointer, args[2].type, align)
        llvm.store(builder, pointer, builder.select(_mask(builder, value.lanes, args[3]), old, args[2]), align)
        return context.get_dummy_value()

    return types.void(array, types.int64, value, types.int64), codegen


@intrinsic
def stream(typingctx, array, offset, value):
    """`store` past the caches: the processor need not read the lines it will overwrite, and keeps those that it reads again.

    Such a store is ordered by the atomic `claim` that follows each task.
    """
    def codegen(context, builder, sig, args):
        pointer = llvm.element(context, builder, array, args[0], args[1])
        instruction = llvm.store(builder, pointer, args[2], value.lanes * array.dtype.bitwidth // 8)
        instruction.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(I32, 1)]))
        return context.get_dummy_value()

    return types.void(array, types.int64, value), codegen


@intrinsic(prefer_literal=True)
def turn(typingctx, size, target, at, step, source, offset, source_step):
    """target[at + c * step + r] = source[offset + r * source_step + c] for r, c < size, of whole vectors both ways."""
    if not isinstance(size, types.IntegerLiteral):
        return None
    align, count = source.dtype.bitwidth // 8, size.literal_value
    lanes = min(count, VECTOR_BYTES // align)

    def codegen(context, builder, sig, args):
        def row(kind, array, start, step, number, column):
            begin = builder.add(start, builder.add(builder.mul(step, I64(number)), I64(column)))
            return llvm.element(context, builder, kind, array, begin)

        vector = _llvm_vector(VectorType(source.dtype, lanes))
        for top in range(0, count, lanes):
            for left in range(0, count, lanes):
                rows = [llvm.load(builder, row(source, args[4], args[5], args[6], top + r, left), vector, align)
                        for r in range(lanes)]
                for c, value in enumerate(_transposed(builder, rows)):
                    llvm.store(builder, row(target, args[1], args[2], args[3], left + c, top), value, align)
        return context.get_dummy_value()

    return types.void(size, target, types.int64, types.int64, source, types.int64, types.int64), codegen


def _transposed(builder, rows):
    """Vectors of as many lanes as there are of them, transposed: squares of half, a quarter .. of them change places."""
    lanes, half = len(rows), len(rows) // 2
    while half:
        low = [j if not j & half else lanes + j - half for j in range(lanes)]
        high = [j + half if not j & half else lanes + j for j in range(lanes)]
        for i in (i for i in range(lanes) if not i & half):
            pair = rows[i], rows[i + half]
            rows[i], rows[i + half] = (builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(I32, lanes), mask))
                                       for mask in (low, high))
        half //= 2
    return rows


@intrinsic
def prefetch(typingctx, array, offset):
    """Begin to load the cache line AHEAD bytes behind an element, which may lie behind the array's end.

    Measured: a training step takes 6 to 9 % less where kernels do so as they read images.
    """
    def codegen(context, builder, sig, args):
        address = builder.bitcast(llvm.element(context, builder, array, args[0], args[1]), llvm.ADDRESS)
        read, keep_in_every_cache, data = I32(0), I32(3), I32(1)
        ahead = builder.gep(address, [I64(AHEAD)])
        llvm.call(builder, "llvm.prefetch.p0", ir.VoidType(), ahead, read, keep_in_every_cache, data)
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@intrinsic(prefer_literal=True)
def splat(typingctx, lanes, number):
    """`number` in every one of `lanes` lanes."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    kind = VectorType(number, lanes.literal_value)

    def codegen(context, builder, sig, args):
        return llvm.broadcast(builder, args[1], _llvm_vector(kind))

    return kind(lanes, number), codegen


def _binary(instruction):
    """An intrinsic for two vectors, `contract` allowed: a * b + c becomes one fused instruction where there is one."""
    @intrinsic
    def apply(typingctx, a, b):
        def codegen(context, builder, sig, args):
            return getattr(builder, instruction)(*args, flags=("contract",))

        return a(a, b), codegen

    return apply


_add, _sub, _mul = _binary("fadd"), _binary("fsub"), _binary("fmul")


@intrinsic
def _like(typingctx, v, number):
    """`number`, an integer or float, in every lane of a vector like v."""
    def codegen(context, builder, sig, args):
        return llvm.broadcast(builder, context.cast(builder, args[1], sig.args[1], v.dtype), _llvm_vector(v))

    return v(v, number), codegen


def _overload_operator(symbol, apply):
    @overload(symbol)
    def on_vectors(a, b):
        if isinstance(a, VectorType) and a == b:
            return lambda a, b: apply(a, b)
        if isinstance(a, VectorType) and symbol is operator.mul and isinstance(b, types.Number):
            return lambda a, b: apply(a, _like(a, b))
        return None


_overload_operator(operator.add, _add)
_overload_operator(operator.sub, _sub)
_overload_operator(operator.mul, _mul)


@intrinsic
def rectify(typingctx, v):
    """max(v, 0) in every lane; a NaN stays one."""
    def codegen(context, builder, sig, args):
        zero = ir.Constant(args[0].type, [0.0] * v.lanes)
        return builder.select(builder.fcmp_ordered("<=", args[0], zero), zero, args[0])

    return v(v), codegen


@intrinsic
def at_least(typingctx, v, floor):
    """max(v, floor) in every lane; a NaN stays one."""
    def codegen(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered("<=", *args), args[1], args[0])

    return v(v, floor), codegen


@intrinsic
def where_positive(typingctx, y, v):
    """v where y > 0, else 0."""
    def codegen(context, builder, sig, args):
        zero = ir.Constant(args[0].type, [0.0] * v.lanes)
        return builder.select(builder.fcmp_ordered(">", args[0], zero), args[1], zero)

    return v(y, v), codegen


@intrinsic
def where_beats(typingctx, a, b, v, w):
    """v where a > b, or a is a NaN and b is none, else w."""
    def codegen(context, builder, sig, args):
        beats = builder.and_(builder.fcmp_unordered(">", *args[:2]), builder.fcmp_ordered("ord", args[1], args[1]))
        return builder.select(beats, *args[2:])

    return v(a, b, v, w), codegen


@intrinsic
def where_equal(typingctx, n, number, v):
    """v where the whole number n is `number`, else 0."""
    def codegen(context, builder, sig, args):
        found = builder.icmp_signed("==", args[0], llvm.broadcast(builder, builder.trunc(args[1], I32), args[0].type))
        return builder.select(found, args[2], ir.Constant(args[2].type, [0.0] * v.lanes))

    return v(n, types.int64, v), codegen


@intrinsic
def whole_numbers(typingctx, v):
    """v as a vector of int32."""
    kind = VectorType(types.int32, v.lanes)

    def codegen(context, builder, sig, args):
        return builder.fptosi(args[0], _llvm_vector(kind))

    return kind(v), codegen
