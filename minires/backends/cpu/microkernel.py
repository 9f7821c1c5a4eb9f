"""A register-blocked matrix micro-kernel: the inner loop of every convolution.

    C[c_row(i) + b * c_block + j] (+)= sum over s from s0 to s1, k < k_len of
                 A[a_row(i) + a_slab(s) + k * a_col] * B[b_slab(s) + b * b_block + k * BLOCK + j]
    for ROWS rows i from `row` on, b < BLOCKS, j < BLOCK

All accumulators stay in vector registers while s and k run; each step multiplies the BLOCK neighbours of a row of B by one
broadcast element of A a row. Channels lie in blocks of BLOCK, one cache line, so that the strides of the inner loop are
constants whatever the number of channels. Rows and slabs lie wherever an array of offsets says, or a stride apart. That lets
one kernel serve all products: the convolution (rows are output pixels, slabs the kernel's rows: nothing is copied to where
the sum runs), its input gradient (the same with the weights turned round), its weight gradient (rows are channels, the sum
runs over pixels), and Winograd's (rows are tiles).

Nothing but A and B is read: (ROWS + BLOCK) elements for 2 * ROWS * BLOCK operations, from the first-level cache.

Numba's own vectoriser gives up on these loops (8 GFLOP/s a core pair against 300 to 400), so the body is written in
LLVM's IR through `@intrinsic`. ROWS, BLOCKS and BLOCK must be compile-time constants.
"""
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minires.backends.cpu import llvm
from minires.backends.cpu.llvm import I64

UNROLLED = 4  # steps of the sum between two tests for its end


@intrinsic(prefer_literal=True)
def tile(typingctx, ROWS, BLOCKS, BLOCK, row, a, a0, a_row, a_slab, a_col, b, b0, b_slab, b_block, c, c0, c_row, c_block,
         s0, s1, k_len, accumulate):
    """The kernel of this module's docstring: a, b, c arrays of one dtype, from elements a0, b0, c0 on.

    a_row, c_row, a_slab, b_slab: arrays of offsets, or strides. All count elements.
    """
    constants = (ROWS, BLOCKS, BLOCK)
    if not all(isinstance(size, types.IntegerLiteral) for size in constants):
        return None
    rows, blocks, block = (size.literal_value for size in constants)

    def place(kind):
        return kind if isinstance(kind, types.Array) else types.int64

    n = types.int64
    signature = types.void(*map(types.literal, (rows, blocks, block)), n, a, n, place(a_row), place(a_slab), n,
                           b, n, place(b_slab), n, c, n, place(c_row), n, n, n, n, n)

    def codegen(context, builder, sig, args):
        def pointer(index):
            return context.make_array(sig.args[index])(context, builder, args[index]).data

        def places(index):
            """A function from a number to its place."""
            if isinstance(sig.args[index], types.Array):
                table = pointer(index)
                return lambda number: builder.load(builder.gep(table, [number]))
            return lambda number: builder.mul(number, args[index])

        row, (a0, a_col, b0, b_block, c0, c_block) = args[3], (args[index] for index in (5, 8, 10, 12, 14, 16))
        kernel = _Tile(builder, context.get_data_type(a.dtype), rows, blocks, block)
        numbers = [builder.add(row, I64(i)) for i in range(rows)]
        a_at, c_at = places(6), places(15)
        a_rows = [builder.gep(pointer(4), [builder.add(a0, a_at(number))]) for number in numbers]
        c_rows = [builder.gep(pointer(13), [builder.add(c0, c_at(number))]) for number in numbers]
        kernel.emit(a_rows, places(7), a_col, builder.gep(pointer(9), [b0]), places(11), b_block, c_rows, c_block,
                    *args[17:])
        return context.get_dummy_value()

    return signature, codegen


class _Tile:
    """Writes one tile's instructions at the builder's position."""

    def __init__(self, builder, scalar, rows, blocks, block):
        self.builder, self.block = builder, block
        self.vector = ir.VectorType(scalar, block)
        self.align = 4 if isinstance(scalar, ir.FloatType) else 8
        self.fma = f"llvm.fmuladd.v{block}f{8 * self.align}"
        self.cells = [(i, j) for i in range(rows) for j in range(blocks)]

    def at(self, pointer, *offsets):
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        return pointer

    def load(self, pointer):
        return llvm.load(self.builder, pointer, self.vector, self.align)

    def loop(self, name, first, end, step, carried, body):
        """for k in range(first, end, step): carried = body(k, carried), in registers; -> (k, carried) at the end."""
        builder = self.builder
        before = builder.basic_block
        head, inside, after = (builder.append_basic_block(f"{name}.{part}") for part in ("head", "body", "end"))
        builder.branch(head)
        builder.position_at_end(head)
        k, values = builder.phi(I64), {ij: builder.phi(self.vector) for ij in self.cells}
        k.add_incoming(first, before)
        for ij in self.cells:
            values[ij].add_incoming(carried[ij], before)
        builder.cbranch(builder.icmp_signed("<", k, end), inside, after)
        builder.position_at_end(inside)
        found = body(k, values)
        k.add_incoming(builder.add(k, I64(step)), builder.basic_block)
        for ij in self.cells:
            values[ij].add_incoming(found[ij], builder.basic_block)
        builder.branch(head)
        builder.position_at_end(after)
        return k, values

    def emit(self, a_rows, a_slab, a_col, b, b_slab, b_block, c_rows, c_block, s0, s1, k_len, accumulate):
        builder = self.builder
        targets = {(i, j): self.at(c_rows[i], builder.mul(I64(j), c_block)) for i, j in self.cells}
        entry, load, begin = builder.basic_block, *map(builder.append_basic_block, ("load", "begin"))
        builder.cbranch(builder.icmp_signed("!=", accumulate, I64(0)), load, begin)
        builder.position_at_end(load)
        loaded = {ij: self.load(targets[ij]) for ij in self.cells}
        builder.branch(begin)
        builder.position_at_end(begin)
        sums = {ij: builder.phi(self.vector) for ij in self.cells}
        for ij in self.cells:
            sums[ij].add_incoming(ir.Constant(self.vector, [0.0] * self.block), entry)
            sums[ij].add_incoming(loaded[ij], load)
        most = builder.and_(k_len, I64(-UNROLLED))

        def slab(s, sums):
            a_at, b_at = a_slab(s), self.at(b, b_slab(s))

            def steps(count):
                def step(k, sums):
                    for u in range(count):
                        at = builder.add(k, I64(u))
                        sums = self.step(sums, a_rows, builder.add(a_at, builder.mul(at, a_col)),
                                         self.at(b_at, builder.mul(at, I64(self.block))), b_block)
                    return sums
                return step

            k, sums = self.loop("steps", I64(0), most, UNROLLED, sums, steps(UNROLLED))
            return self.loop("rest", k, k_len, 1, sums, steps(1))[1]

        _, sums = self.loop("slab", s0, s1, 1, sums, slab)
        for ij in self.cells:
            llvm.store(builder, targets[ij], sums[ij], self.align)

    def step(self, sums, a_rows, a_at, b_at, b_block):
        """One step of the sum: sums + A column * B row."""
        vectors, found = {}, {}
        for i, j in self.cells:
            if j == 0:
                number = llvm.broadcast(self.builder, self.builder.load(self.at(a_rows[i], a_at)), self.vector)
            if j not in vectors:
                vectors[j] = self.load(self.at(b_at, self.builder.mul(I64(j), b_block)))
            found[i, j] = llvm.call(self.builder, self.fma, self.vector, number, vectors[j], sums[i, j])
        return found
