"""A register-blocked matrix micro-kernel: the inner loop of every convolution.

    C[i, j] (+)= sum over r < r_len, k < k_len of
                 A[a0 + row(i) + k * a_col + r * a_slab] * B[b0 + k * b_row + r * b_slab + j]
    for i < rows, j < vectors * lanes;  row(i) = (i % across) * a_row + (i // across) * a_down

All rows * vectors accumulators stay in vector registers while k and r run; each step loads `vectors` vectors of B and
multiplies them by one broadcast element of A a row. The strides let one kernel serve three products: the convolution
(A is the padded image, whose overlapping rows *are* the im2col matrix, so nothing is copied), its input gradient (the
same with the weights flipped) and its weight gradient (rows are taps, the sum runs over pixels).

Loop order: r (kernel rows) outside, k (contiguous taps x channels) inside. Nothing but A and B is
read: (rows + vectors * lanes) elements for 2 * rows * vectors * lanes operations, from the first-level cache.

Numba's own vectoriser gives up on these loops (8 GFLOP/s a core pair against 300 to 400), so the body is written in
LLVM's IR through `@intrinsic`. Numbers passed for rows, across, vectors and lanes must be compile-time constants.
"""
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minires.backends.cpu import llvm
from minires.backends.cpu.llvm import I64


@intrinsic(prefer_literal=True)
def tile(typingctx, rows, across, vectors, lanes, a, a0, a_row, a_down, a_col, a_slab, b, b0, b_row, b_slab,
         c, c0, c_row, c_down, k_len, r_len, accumulate):
    """The kernel of this module's docstring. a, b, c: arrays of one dtype; offsets and strides count elements."""
    sizes = (rows, across, vectors, lanes)
    if not all(isinstance(size, types.IntegerLiteral) for size in sizes):
        return None
    rows, across, vectors, lanes = (size.literal_value for size in sizes)
    n = types.int64
    signature = types.void(*(types.literal(size) for size in (rows, across, vectors, lanes)),
                           a, n, n, n, n, n, b, n, n, n, c, n, n, n, n, n, n)

    def codegen(context, builder, sig, args):
        (a_val, a0, a_row, a_down, a_col, a_slab, b_val, b0, b_row, b_slab,
         c_val, c0, c_row, c_down, k_len, r_len, accumulate) = args[4:]
        scalar = context.get_data_type(a.dtype)
        kernel = _Tile(builder, scalar, rows, across, vectors, lanes)
        pointers = (context.make_array(kind)(context, builder, value).data
                    for kind, value in ((a, a_val), (b, b_val), (c, c_val)))
        kernel.emit(*pointers, a0, a_row, a_down, a_col, a_slab, b0, b_row, b_slab, c0, c_row, c_down, k_len, r_len,
                    accumulate)
        return context.get_dummy_value()

    return signature, codegen


class _Tile:
    """Writes one tile's instructions at the builder's position."""

    def __init__(self, builder, scalar, rows, across, vectors, lanes):
        self.builder, self.scalar = builder, scalar
        self.rows, self.across, self.vectors, self.lanes = rows, across, vectors, lanes
        self.vector = ir.VectorType(scalar, lanes)
        self.align = 4 if isinstance(scalar, ir.FloatType) else 8
        self.fma = f"llvm.fmuladd.v{lanes}f{8 * self.align}"
        self.cells = [(i, j) for i in range(rows) for j in range(vectors)]

    def at(self, pointer, offset):
        return self.builder.gep(pointer, [offset])

    def load(self, pointer):
        return llvm.load(self.builder, pointer, self.vector, self.align)

    def row_offset(self, i, step, down):
        """row(i) of the module's docstring, in elements."""
        return self.builder.add(self.builder.mul(I64(i % self.across), step), self.builder.mul(I64(i // self.across), down))

    def step(self, acc, a_r, a_offsets, a_col, b_r, b_row, k):
        """Step k of the reduction: acc + A column * B row."""
        b_k, sums = self.builder.mul(k, b_row), {}
        b_vectors = [self.load(self.at(b_r, self.builder.add(b_k, I64(j * self.lanes)))) for j in range(self.vectors)]
        a_k = self.builder.mul(k, a_col)
        for i in range(self.rows):
            number = self.builder.load(self.at(a_r, self.builder.add(a_k, a_offsets[i])))
            a_i = llvm.broadcast(self.builder, number, self.vector)
            for j in range(self.vectors):
                sums[i, j] = llvm.call(self.builder, self.fma, self.vector, a_i, b_vectors[j], acc[i, j])
        return sums

    def emit(self, a, b, c, a0, a_row, a_down, a_col, a_slab, b0, b_row, b_slab, c0, c_row, c_down, k_len, r_len,
             accumulate):
        builder, cells = self.builder, self.cells
        c = self.at(c, c0)

        def cell(i, j):
            return self.at(c, builder.add(self.row_offset(i, c_row, c_down), I64(j * self.lanes)))

        names = ("load", "slab", "step", "multiply", "slab_next", "end")
        load, slab, step, multiply, slab_next, end = (builder.append_basic_block(name) for name in names)
        zero = ir.Constant(self.vector, [0.0] * self.lanes)

        entry = builder.basic_block
        a_offsets = [self.row_offset(i, a_row, a_down) for i in range(self.rows)]
        builder.cbranch(builder.icmp_signed("!=", accumulate, I64(0)), load, slab)
        builder.position_at_end(load)
        loaded = {ij: self.load(cell(*ij)) for ij in cells}
        builder.branch(slab)

        # one slab (kernel row) a turn
        builder.position_at_end(slab)
        r = builder.phi(I64)
        acc_slab = {ij: builder.phi(self.vector) for ij in cells}
        r.add_incoming(I64(0), entry)
        r.add_incoming(I64(0), load)
        for ij in cells:
            acc_slab[ij].add_incoming(zero, entry)
            acc_slab[ij].add_incoming(loaded[ij], load)
        a_r = self.at(a, builder.add(a0, builder.mul(r, a_slab)))
        b_r = self.at(b, builder.add(b0, builder.mul(r, b_slab)))
        builder.branch(step)

        # one step of the reduction a turn
        builder.position_at_end(step)
        k = builder.phi(I64)
        acc = {ij: builder.phi(self.vector) for ij in cells}
        k.add_incoming(I64(0), slab)
        for ij in cells:
            acc[ij].add_incoming(acc_slab[ij], slab)
        builder.cbranch(builder.icmp_signed("<", k, k_len), multiply, slab_next)
        builder.position_at_end(multiply)
        sums = self.step(acc, a_r, a_offsets, a_col, b_r, b_row, k)
        k.add_incoming(builder.add(k, I64(1)), multiply)
        for ij in cells:
            acc[ij].add_incoming(sums[ij], multiply)
        builder.branch(step)

        builder.position_at_end(slab_next)
        r_next = builder.add(r, I64(1))
        r.add_incoming(r_next, slab_next)
        for ij in cells:
            acc_slab[ij].add_incoming(acc[ij], slab_next)
        builder.cbranch(builder.icmp_signed("<", r_next, r_len), slab, end)

        builder.position_at_end(end)
        for ij in cells:
            llvm.store(builder, cell(*ij), acc[ij], self.align)
