"""The few phrases of LLVM's IR that the intrinsics of this back end share."""
from llvmlite import ir
from numba.core import cgutils

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
ADDRESS = I8.as_pointer()


def element(context, builder, kind, array, offset):
    """The address of an element of an array of Numba type `kind`, counted in memory order."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [offset])


def load(builder, pointer, vector, align):
    """The `vector` (a type) at a pointer to its first element."""
    value = builder.load(builder.bitcast(pointer, vector.as_pointer()))
    value.align = align
    return value


def store(builder, pointer, value, align):
    """Write a vector at a pointer to its first element; the instruction."""
    instruction = builder.store(value, builder.bitcast(pointer, value.type.as_pointer()))
    instruction.align = align
    return instruction


def broadcast(builder, scalar, vector):
    """A number in every lane of a `vector` (a type)."""
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, scalar, I32(0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count))


def call(builder, name, result, *arguments):
    """Call one of LLVM's own functions, which returns a `result` (a type)."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)
