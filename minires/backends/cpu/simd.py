"""Vector registers as values in Numba code, so that a kernel reads as the formula it computes.

    v = load(LANES, x, offset)           LANES consecutive elements of the array x, LANES a compile-time constant
    v = splat(LANES, number)             one number in all lanes
    store(y, offset, a * b + v * 4)      + - * on vectors are operations on all lanes; * takes a number too
    stream(y, offset, v)                 store to memory that is not read soon; offset a multiple of the vector, y aligned
    prefetch(x, offset)                  begin to load what lies some lines behind: for loops that go through memory
    v = rectify(v)                       max(v, 0); a NaN stays one
    v = at_least(v, w)                   max(v, w); a NaN in v stays one
    v = where_positive(y, v)             v where y > 0, else 0
    v = sqrt(v)

Plain Numba loops vectorise when each output is independent, but sums over pixels keep their accumulators in memory and
wait for it; with these values they stay in registers.
"""
import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, overload, register_model

I32 = ir.IntType(32)
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
    return ir.VectorType(ir.FloatType() if kind.dtype == types.float32 else ir.DoubleType(), kind.lanes)


def _element_pointer(context, builder, kind, array, offset):
    return builder.gep(context.make_array(kind)(context, builder, array).data, [offset])


@intrinsic(prefer_literal=True)
def load(typingctx, lanes, array, offset):
    """The vector array[offset : offset + lanes] of the array's elements in memory order."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    kind = VectorType(array.dtype, lanes.literal_value)

    def codegen(context, builder, sig, args):
        pointer = _element_pointer(context, builder, array, args[1], args[2])
        value = builder.load(builder.bitcast(pointer, _llvm_vector(kind).as_pointer()))
        value.align = array.dtype.bitwidth // 8
        return value

    return kind(lanes, array, types.int64), codegen


def _store(builder, pointer, value, align):
    instruction = builder.store(value, builder.bitcast(pointer, value.type.as_pointer()))
    instruction.align = align
    return instruction


@intrinsic
def store(typingctx, array, offset, value):
    """array[offset : offset + lanes] = value, in memory order."""
    def codegen(context, builder, sig, args):
        pointer = _element_pointer(context, builder, array, args[0], args[1])
        _store(builder, pointer, args[2], array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, value), codegen


@intrinsic
def stream(typingctx, array, offset, value):
    """`store` past the caches: the processor need not read the lines it will overwrite, and keeps those that it reads again.

    Such a store is ordered by the atomic `claim` that follows each task.
    """
    def codegen(context, builder, sig, args):
        pointer = _element_pointer(context, builder, array, args[0], args[1])
        instruction = _store(builder, pointer, args[2], value.lanes * array.dtype.bitwidth // 8)
        instruction.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(I32, 1)]))
        return context.get_dummy_value()

    return types.void(array, types.int64, value), codegen


@intrinsic
def prefetch(typingctx, array, offset):
    """Begin to load the cache line AHEAD bytes behind an element, which may lie behind the array's end.

    Measured: a training step takes 6 to 9 % less where kernels do so as they read images.
    """
    def codegen(context, builder, sig, args):
        address = builder.bitcast(_element_pointer(context, builder, array, args[0], args[1]), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [address.type, I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, keep_in_every_cache, data = I32(0), I32(3), I32(1)
        builder.call(function, [builder.gep(address, [ir.IntType(64)(AHEAD)]), read, keep_in_every_cache, data])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@intrinsic(prefer_literal=True)
def splat(typingctx, lanes, number):
    """`number` in every one of `lanes` lanes."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    kind = VectorType(number, lanes.literal_value)

    def codegen(context, builder, sig, args):
        return _broadcast(builder, args[1], kind)

    return kind(lanes, number), codegen


def _broadcast(builder, scalar, kind):
    undefined = ir.Constant(_llvm_vector(kind), ir.Undefined)
    single = builder.insert_element(undefined, scalar, I32(0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(I32, kind.lanes), [0] * kind.lanes))


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
        return _broadcast(builder, context.cast(builder, args[1], sig.args[1], v.dtype), v)

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
def sqrt(typingctx, v):
    """The square root of every lane."""
    def codegen(context, builder, sig, args):
        name = f"llvm.sqrt.v{v.lanes}f{v.dtype.bitwidth}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(args[0].type, [args[0].type]), name)
        return builder.call(function, args)

    return v(v), codegen
