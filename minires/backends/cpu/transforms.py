"""Winograd's transforms, F(m, 3) for m = 2 and 4: the matrices and where they come from.

A 1-D convolution of 3 weights g with m + 2 inputs d gives m outputs, y_k = sum_j g_j d_(k + j). Read g and the outputs as
coefficients of polynomials: the *adjoint* of this map multiplies a polynomial of degree 2 by one of degree m - 1, and the
product, of degree m + 1, is known from its values at m + 2 points (Toom and Cook). One multiplication a point: m + 2 where
the sum itself takes 3 m. Evaluate at the points 0, 1, -1 (and 2, -2 for m = 4) and "infinity" (the leading coefficient):

    G evaluates g:           row for point p: (1, p, p^2) / N_p, N_p = product over other finite points q of (p - q)
    A evaluates the outputs: row for point p: (1, p, .., p^(m-1));  at infinity only the leading coefficient counts
    B^T interpolates: row for p holds the coefficients of the polynomial product over q != p of (x - q); for infinity
    those of the product over all points

and transposing the multiplication gives  y = A^T [(G g) * (B^T d)]. (Signs of a row may move between G and B^T.) In two
dimensions the maps act on rows and on columns:  Y = A^T [(G g G^T) * (B^T d B)] A, 36 multiplications for 16 outputs of a
3x3 kernel where the sum takes 144. Since every map is linear the gradients need no new derivation, only adjoints:

    dg = G^T [(A dY A^T) * (B^T d B)] G          dd = B [(G g G^T) * (A dY A^T)] B^T

and dd, summed over overlapping tiles, is again a convolution (of dy, with the kernel flipped), computed as one.

Errors. The larger the points the larger the numbers that cancel. Root mean square against float64, relative, for the
ResNet-20 shapes in float32: direct 2 to 4e-7 forward; F(2, 3) less, 1.6 to 2.7e-7, since it adds fewer terms; F(4, 3) 1.0 to
1.8e-6, five times the direct kernel's. Weight gradients: 1 to 2e-7, the same, and 2 to 6e-7.

Source: Winograd 1980; Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308.

Each function of one dimension reads its vectors from x, `step` elements apart from `at` on, and writes to y, `hop` apart
from `to` on. M is m, LANES the vector width; both are compile-time constants, and the functions are inlined. Whoever steps
by a vector says LANES + 0: for a constant there, beside the numbers that others give, each function would be compiled
twice. Those of two dimensions work on blocks of channels in scratch (images.py).
"""

from minires.backends.cpu import jit
from minires.backends.cpu.simd import load, store, turn


@jit.part
def input_1d(M, LANES, x, at, step, y, to, hop):
    """B^T d: M + 2 inputs to M + 2 products."""
    d0, d1 = load(LANES, x, at), load(LANES, x, at + step)
    d2, d3 = load(LANES, x, at + 2 * step), load(LANES, x, at + 3 * step)
    if M == 4:
        d4, d5 = load(LANES, x, at + 4 * step), load(LANES, x, at + 5 * step)
        even, odd = d4 - d2 * 4, d3 - d1 * 4
        store(y, to + hop, even + odd)
        store(y, to + 2 * hop, even - odd)
        even, odd = d4 - d2, (d3 - d1) * 2
        store(y, to + 3 * hop, even + odd)
        store(y, to + 4 * hop, even - odd)
        store(y, to, d4 - d2 * 5 + d0 * 4)
        store(y, to + 5 * hop, d5 - d3 * 5 + d1 * 4)
    else:
        store(y, to, d0 - d2)
        store(y, to + hop, d1 + d2)
        store(y, to + 2 * hop, d2 - d1)
        store(y, to + 3 * hop, d3 - d1)


@jit.part
def output_1d(M, LANES, x, at, step, y, to, hop):
    """A^T p: M + 2 products to M outputs."""
    p0, p1 = load(LANES, x, at), load(LANES, x, at + step)
    p2, p3 = load(LANES, x, at + 2 * step), load(LANES, x, at + 3 * step)
    if M == 4:
        p4, p5 = load(LANES, x, at + 4 * step), load(LANES, x, at + 5 * step)
        even, odd, even_2, odd_2 = p1 + p2, p1 - p2, p3 + p4, p3 - p4
        store(y, to, p0 + even + even_2)
        store(y, to + hop, odd + odd_2 * 2)
        store(y, to + 2 * hop, even + even_2 * 4)
        store(y, to + 3 * hop, odd + odd_2 * 8 + p5)
    else:
        store(y, to, p0 + p1 + p2)
        store(y, to + hop, p1 - p2 + p3)


@jit.part
def output_adjoint_1d(M, LANES, x, at, step, y, to, hop):
    """A dy: M output gradients to M + 2."""
    z0, z1 = load(LANES, x, at), load(LANES, x, at + step)
    if M == 4:
        z2, z3 = load(LANES, x, at + 2 * step), load(LANES, x, at + 3 * step)
        even, odd = z0 + z2, z1 + z3
        store(y, to + hop, even + odd)
        store(y, to + 2 * hop, even - odd)
        even, odd = z0 + z2 * 4, z1 * 2 + z3 * 8
        store(y, to + 3 * hop, even + odd)
        store(y, to + 4 * hop, even - odd)
        store(y, to, z0)
        store(y, to + 5 * hop, z3)
    else:
        store(y, to, z0)
        store(y, to + hop, z0 + z1)
        store(y, to + 2 * hop, z0 - z1)
        store(y, to + 3 * hop, z1)


@jit.part
def weight_1d(M, LANES, x, at, step, y, to, hop):
    """G g: 3 weights to M + 2."""
    g0, g1, g2 = load(LANES, x, at), load(LANES, x, at + step), load(LANES, x, at + 2 * step)
    if M == 4:
        even, odd = (g0 + g2) * (-1 / 6), g1 * (-1 / 6)
        store(y, to, g0 * 0.25)
        store(y, to + hop, even + odd)
        store(y, to + 2 * hop, even - odd)
        even, odd = g0 * (1 / 24) + g2 * (1 / 6), g1 * (1 / 12)
        store(y, to + 3 * hop, even + odd)
        store(y, to + 4 * hop, even - odd)
        store(y, to + 5 * hop, g2)
    else:
        even, odd = (g0 + g2) * 0.5, g1 * 0.5
        store(y, to, g0)
        store(y, to + hop, even + odd)
        store(y, to + 2 * hop, even - odd)
        store(y, to + 3 * hop, g2)


@jit.part
def weight_adjoint_1d(M, LANES, x, at, step, y, to, hop):
    """G^T u: M + 2 products to 3 weight gradients."""
    u0, u1 = load(LANES, x, at), load(LANES, x, at + step)
    u2, u3 = load(LANES, x, at + 2 * step), load(LANES, x, at + 3 * step)
    if M == 4:
        u4, u5 = load(LANES, x, at + 4 * step), load(LANES, x, at + 5 * step)
        even, odd = (u1 + u2) * (-1 / 6), (u2 - u1) * (1 / 6)
        even_2, odd_2 = u3 + u4, u3 - u4
        store(y, to, u0 * 0.25 + even + even_2 * (1 / 24))
        store(y, to + hop, odd + odd_2 * (1 / 12))
        store(y, to + 2 * hop, even + even_2 * (1 / 6) + u5)
    else:
        even = (u1 + u2) * 0.5
        store(y, to, u0 + even)
        store(y, to + hop, (u1 - u2) * 0.5)
        store(y, to + 2 * hop, even + u3)


@jit.part
def transform_tiles(M, LANES, BLOCK, adjoint, image, start, width, rows, columns, points, at, plane, temp):
    """V of a block's scratch: rows x columns tiles of M x M pixels, and what is round them, to (M + 2)^2 planes.

    adjoint, a constant: A dz A^T instead, of the tiles alone.
    """
    size = M + 2
    for t in range(rows * columns):
        for lane in range(0, BLOCK, LANES):
            corner, target = start + (t // columns * width + t % columns) * M * BLOCK + lane, at + t * BLOCK + lane
            if adjoint:
                for j in range(M):
                    output_adjoint_1d(M, LANES, image, corner + j * BLOCK, width * BLOCK, temp, j * LANES, size * LANES)
                for i in range(size):
                    output_adjoint_1d(M, LANES, temp, i * size * LANES, LANES + 0, points, target + i * size * plane, plane)
            else:
                for j in range(size):
                    input_1d(M, LANES, image, corner + j * BLOCK, width * BLOCK, temp, j * LANES, size * LANES)
                for i in range(size):
                    input_1d(M, LANES, temp, i * size * LANES, LANES + 0, points, target + i * size * plane, plane)


@jit.part
def transform_back(M, LANES, BLOCK, points, at, plane, rows, columns, image, start, temp):
    """Outputs of a block from its (M + 2)^2 planes of products: rows x columns tiles of M x M pixels."""
    size = M + 2
    for th in range(rows):
        for tw in range(columns):
            for lane in range(0, BLOCK, LANES):
                source = at + (th * columns + tw) * BLOCK + lane
                for j in range(size):
                    output_1d(M, LANES, points, source + j * plane, size * plane, temp, j * LANES, size * LANES)
                for i in range(M):
                    output_1d(M, LANES, temp, i * size * LANES, LANES + 0,
                              image, start + ((th * M + i) * columns + tw) * M * BLOCK + lane, BLOCK + 0)


@jit.part
def transform_weights(M, LANES, BLOCK, turned, weight, C, O, block, points, outs, plane, temp):
    """G g G^T of a block of weights' rows, C to O channels: (points, blocks of O, C, BLOCK), zeros where there are none.

    turned: weight is (3, 3, O, C), of the convolution whose input gradient this is: its taps are in reverse.
    """
    size, ins = M + 2, -(-C // BLOCK)
    raw, columns = temp, 9 * BLOCK * BLOCK  # where what follows the weights begins
    for o in range(outs):
        count = min(BLOCK, O - o * BLOCK)
        for i in range(columns):
            raw[i] = 0
        for tap in range(9):
            if turned and count == BLOCK and C - block * BLOCK >= BLOCK:
                turn(BLOCK, raw, (8 - tap) * BLOCK, 9 * BLOCK, weight, (tap * O + o * BLOCK) * C + block * BLOCK, C)
            elif turned:
                for i in range(count):
                    for c in range(min(BLOCK, C - block * BLOCK)):
                        raw[(c * 9 + 8 - tap) * BLOCK + i] = weight[(tap * O + o * BLOCK + i) * C + block * BLOCK + c]
            else:
                for c in range(min(BLOCK, C - block * BLOCK)):
                    for i in range(count):
                        raw[(c * 9 + tap) * BLOCK + i] = weight[(tap * C + block * BLOCK + c) * O + o * BLOCK + i]
        for c in range(BLOCK):
            for lane in range(0, BLOCK, LANES):
                target = ((o * ins + block) * BLOCK + c) * BLOCK + lane
                for j in range(3):
                    weight_1d(M, LANES, raw, (c * 9 + j) * BLOCK + lane, 3 * BLOCK, temp, columns + j * LANES, 3 * LANES)
                for k in range(size):
                    weight_1d(M, LANES, temp, columns + 3 * k * LANES, LANES + 0, points, target + k * size * plane, plane)


@jit.part
def add_weights_back(M, LANES, BLOCK, points, du, plane, partial, at, C, O, adds, temp):
    """G^T dU G of a block of dU's points, stored or with `adds` added to partial (3, 3, C, O), from `at` on."""
    size = M + 2
    for c in range(BLOCK):
        for lane in range(0, BLOCK, LANES):
            for j in range(size):
                weight_adjoint_1d(M, LANES, points, du + j * plane + c * BLOCK + lane, size * plane,
                                  temp, j * LANES, size * LANES)
            for i in range(3):
                weight_adjoint_1d(M, LANES, temp, i * size * LANES, LANES + 0, temp, 3 * size * LANES, LANES + 0)
                for j in range(3):
                    target = at + ((3 * i + j) * C + c) * O + lane
                    g = load(LANES, temp, (3 * size + j) * LANES)
                    if adds:
                        g = g + load(LANES, partial, target)
                    store(partial, target, g)
