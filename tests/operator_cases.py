"""What each operator is tested on, one generator for each, and how what back ends make of it is compared.

    for arguments in ARGUMENTS["relu_backward"](Draw(rng, np.float32)):
        found = results("relu_backward", operator, copies(arguments))

A generator takes a Draw and yields tuples of arguments. A new operator adds its row to ARGUMENTS.
"""
import numpy as np
from cases import AVG_POOLS, CONVOLUTIONS, IMAGES, LINEARS, MAX_POOLS
from conftest import relative_error

from minires.arguments import pair
from minires.backends import reference

EVERY_OPERATOR = {name: getattr(reference, name) for name in sorted(reference.OPERATORS)}
# What draws random numbers, and what each back end makes for itself alone: test_operators and test_cpu_kernels have tests.
ALONE = {"dropout_keep", "prepare", "digest"}
OPERATORS = {name: function for name, function in EVERY_OPERATOR.items() if name not in ALONE}
# The arguments, arrays or tuples of them, that are changed, and nothing is returned.
IN_PLACE = {"sgd_update": (0, 2), "adamw_update": (0, 2, 3), "add_into": (0,), "zero": (0,), "update_running": (0, 1)}
TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}
SHAPES = [*IMAGES, (2, 5), (7, 3, 4)]
EPS = 1e-5


class Draw:
    """draw(*shape): normal numbers of the type under test, none of them likely to be 0; `rng` draws all else."""

    def __init__(self, rng, dtype):
        self.rng, self.dtype = rng, dtype

    def __call__(self, *shape):
        return (self.rng.standard_normal(shape) + 0.1).astype(self.dtype)


# --- generators ---


def on(shapes, case):
    """The generator of what `case(draw, *shape)` lists for each of the shapes."""
    def generate(draw):
        for shape in shapes:
            yield from case(draw, *shape)
    return generate


def images(case):
    """The generator of case(draw, x, weight, bias), x: (N, H, W, C), weight, bias: (C,), for what divides by a deviation."""
    def generate(draw):
        for shape in IMAGES:
            if draw.dtype == np.float64 or np.prod(shape[:3]) > 2:  # of two values dx cancels to noise
                yield from case(draw, draw(*shape), draw(shape[-1]), draw(shape[-1]))
    return generate


def convolutions(case):
    """The generator of case(draw, x, weight, dy, kernel_size, stride, padding, dilation)."""
    def generate(draw):
        for N, H, W, C, O, *geometry in CONVOLUTIONS:
            kernel, *rest = (pair("", value, 0) for value in geometry)
            size = reference.output_sizes((H, W), kernel, *rest)
            yield from case(draw, draw(N, H, W, C), draw(*kernel, C, O), draw(N, *size, O), kernel, *rest)
    return generate


def units(case):
    """The generator of case(draw, x, weight, dy, prologue, geometry), convolutions as blocks have them, prologue of x."""
    def few(draw, x, weight, dy, kernel, stride, padding, dilation):
        C = x.shape[3]
        if dilation != (1, 1) or len(dy) * dy[..., 0].size < 9:
            return []
        return case(draw, x, weight, dy, (draw(C) * 0.1, draw(C), draw(C)), (stride, padding))
    return convolutions(few)


def pools(table, case):
    """The generator of case(draw, x, dy, kernel_size, stride, padding, dilation)."""
    def generate(draw):
        for N, H, W, C, kernel, stride, padding, dilation in table:
            kernel, padding, dilation = pair("", kernel, 1), pair("", padding, 0), pair("", dilation, 1)
            stride = kernel if stride is None else pair("", stride, 1)
            size = reference.output_sizes((H, W), kernel, stride, padding, dilation)
            yield from case(draw, draw(N, H, W, C), draw(N, *size, C), kernel, stride, padding, dilation)
    return generate


def unit_gradients(draw, x, weight, dy, prologue, geometry):
    """Every third of these, another third for each geometry (test_convolution_options has all of them at once): with and
    without a prologue, a residual, a block in front, a normalisation, and an x that is handed on unformed."""
    z, O = draw(*dy.shape), dy.shape[3]
    residual, normalisation = draw(*x.shape), (draw(O), draw(O), draw(O) * 0.1, draw(O) * 0.1)
    block = draw(*x.shape), draw(x.shape[3])
    cases = [(dy, z, normalisation, x, before, weight, *geometry, added, need_dx, front)
             for before, added, need_dx, front in [(prologue, None, True, None), (None, None, True, None),
                                                   (None, residual, True, None), (None, None, False, None),
                                                   (None, None, True, block), (None, residual, True, block)]]
    for added, need_dx in [(None, True), (residual, True), (None, False)]:
        cases += [(dy, None, None, x, None, weight, *geometry, added, need_dx, None),
                  (dy, z, normalisation, x, prologue, weight, *geometry, added, need_dx, None, None, block[0])]
    return cases[sum(dy.shape) % 3::3]


def add_relu_gradients(draw, *shape):
    y, dy, z, prologue = draw(*shape), draw(*shape), draw(*shape), (draw(shape[3]), draw(shape[3]), draw(shape[3]))
    yield dy, reference.relu_forward(y), z, draw(shape[3])
    yield from [(dy, None, z, prologue[0], prologue, residual) for residual in (None, draw(*shape))]


def shortcuts(backward):
    def case(draw, *shape):
        for more, stride in [(0, (2, 2)), (5, (2, 2)), (16, (1, 1)), (4, (2, 1)), (3, (3, 2))]:
            x = draw(*shape)
            y = reference.pad_shortcut_forward(x, shape[3] + more, stride)
            yield (draw(*y.shape), shape, stride) if backward else (x, y.shape[3], stride)
    return on(IMAGES, case)


def softmax_forwards(draw, N, _, K):
    for smoothing in (0.0, 0.1, 1.0):
        logits, target = draw(N, K), draw.rng.integers(0, K, N)
        yield from [(logits, target, smoothing), (logits * 10_000, target.astype(np.int32), smoothing),
                    (logits, target.astype(np.uint8), smoothing)]


def softmax_backwards(draw, N, _, K):
    for smoothing in (0.0, 0.1, 1.0):
        target = draw.rng.integers(0, K, N)
        softmax = reference.softmax_cross_entropy_forward(draw(N, K), target, smoothing)[1]
        yield from [(softmax, target, smoothing), (softmax, target.astype(np.int32), smoothing)]


def updates(case):
    """The generator of case(parameters, gradients, first moments, second moments, weight decays), tuples all of them."""
    def generate(draw):
        for shapes in [[(1,)], [(17,)], [(3, 3, 16, 33)], [(64, 10), (10,), (3, 1, 5, 7)], [(5,)] * 40]:
            parameters, gradients, firsts, seconds = (tuple(draw(*shape) for shape in shapes) for _ in range(4))
            decays = tuple(0.01 * (index % 3) for index in range(len(shapes)))
            yield from case(parameters, gradients, firsts, tuple(map(np.abs, seconds)), decays)
    return generate


def of_batch(x, weight, bias):
    """The mean and the variance of each channel."""
    return reference.batchnorm_forward(x, weight, bias, EPS)[1:]


def layernorm_gradients(draw, *shape):
    x, weight = draw(*shape), draw(shape[-1])
    yield draw(*shape), x, *reference.layernorm_forward(x, weight, weight, EPS)[1:], weight, EPS


def folded(draw, x, weight, dy, *_):
    bias, scale, shift, mean = (draw(weight.shape[3]) for _ in range(4))
    yield from [(weight, given, scale, shift, mean, mean**2, EPS) for given in (None, bias)]


def groups_of(backward):
    """Group normalisations of every kind, of groups of more than two values (of two, dx cancels to noise)."""
    def case(draw, *shape):
        C = shape[3]
        for groups in sorted({1, C, max(1, C // 4)}):
            if C % groups == 0 and np.prod(shape[1:]) // groups > 2:
                x, weight, bias = draw(*shape), draw(C), draw(C)
                statistics = reference.groupnorm_forward(x, weight, bias, groups, EPS)[1:]
                yield (draw(*shape), x, *statistics, weight, EPS) if backward else (x, weight, bias, groups, EPS)
    return on(IMAGES, case)


def shares(draw, N, K):
    return draw.rng.dirichlet(np.ones(K), N).astype(draw.dtype)


ARGUMENTS = {
    "gelu_forward": on(SHAPES, lambda draw, *shape: [(3 * draw(*shape),)]),
    "gelu_backward": on(SHAPES, lambda draw, *shape: [(draw(*shape), 3 * draw(*shape))]),
    "silu_forward": on(SHAPES, lambda draw, *shape: [(scale * draw(*shape),) for scale in (3, 300)]),
    "silu_backward": on(SHAPES, lambda draw, *shape: [(draw(*shape), scale * draw(*shape)) for scale in (3, 300)]),
    "leaky_relu_forward": on(SHAPES, lambda draw, *shape: [(np.round(draw(*shape)), slope) for slope in (0.2, 0.0)]),
    "leaky_relu_backward": on(SHAPES, lambda draw, *shape: [
        (draw(*shape), reference.leaky_relu_forward(np.round(draw(*shape)), 0.2), 0.2)]),
    "groupnorm_forward": groups_of(backward=False),
    "groupnorm_backward": groups_of(backward=True),
    "soft_cross_entropy_forward": on(LINEARS, lambda draw, N, C, K: [
        (scale * draw(N, K), shares(draw, N, K)) for scale in (1, 10_000)]),
    "soft_cross_entropy_backward": on(LINEARS, lambda draw, N, C, K: [(shares(draw, N, K), shares(draw, N, K))]),
    "relu_forward": on(SHAPES, lambda draw, *shape: [(draw(*shape),), (np.round(draw(*shape)),)]),
    "relu_backward": on(SHAPES, lambda draw, *shape: [(draw(*shape), reference.relu_forward(np.round(draw(*shape))))]),
    "add": on(SHAPES, lambda draw, *shape: [(draw(*shape), draw(*shape))]),
    "add_into": on(SHAPES, lambda draw, *shape: [(draw(*shape), draw(*shape))]),
    "zero": on(SHAPES, lambda draw, *shape: [((draw(*shape), draw(shape[-1])),)]),
    "dropout_forward": on(SHAPES, lambda draw, *shape: [
        (draw(*shape), draw.rng.random(shape) > 0.3, p) for p in (0.3, 0.0)]),
    "dropout_backward": on(SHAPES, lambda draw, *shape: [(draw(*shape), draw.rng.random(shape) > 0.3, 0.3)]),
    "channel_sum": on(SHAPES, lambda draw, *shape: [(draw(*shape),)]),
    "gradient_sums": on(SHAPES, lambda draw, *shape: [(draw(*shape), draw(*shape), draw(shape[-1]))]),
    "normalise": on(SHAPES, lambda draw, *shape: [(draw(*shape), tuple(draw(shape[-1]) for _ in range(3)))]),
    "normalise_gradient": on(SHAPES, lambda draw, *shape: [
        (draw(*shape), draw(*shape), tuple(draw(shape[-1]) for _ in range(4)))]),
    "normalisation_scale": on(SHAPES, lambda draw, *shape: [(draw(shape[-1]), draw(shape[-1])**2, EPS)]),
    "update_running": on(SHAPES, lambda draw, *shape: [
        (draw(shape[-1]), draw(shape[-1])**2, draw(shape[-1]), draw(shape[-1])**2, momentum, 17)
        for momentum in (0.1, 1.0)]),
    "batch_moments": images(lambda draw, x, *_: [(x,), (x + 100,)]),
    "batchnorm_forward": images(lambda draw, x, *affine: [(x, *affine, EPS), (x + 100, *affine, 0.1)]),
    "batchnorm_apply": images(lambda draw, x, *affine: [(x, *of_batch(x, *affine), *affine, EPS)]),
    "batchnorm_backward": images(lambda draw, x, weight, bias: [
        (draw(*x.shape), x, *of_batch(x, weight, bias), weight, EPS, mode) for mode in (True, False)]),
    "batchnorm_coefficients": on(IMAGES, lambda draw, N, H, W, C: [
        (draw(C), draw(C), np.abs(draw(C)), draw(C), EPS, count) for count in (None, 17)]),
    "layernorm_forward": on(SHAPES, lambda draw, *shape: [(draw(*shape), draw(shape[-1]), draw(shape[-1]), EPS)]),
    "layernorm_backward": on(SHAPES, layernorm_gradients),
    "conv2d_forward": convolutions(lambda draw, x, weight, dy, _, *geometry: [
        (x, weight, bias, *geometry) for bias in (draw(dy.shape[3]), None)]),
    "conv2d_input_gradient": convolutions(lambda draw, x, weight, dy, _, *geometry: [(dy, weight, x.shape, *geometry)]),
    "conv2d_weight_gradient": convolutions(lambda draw, x, weight, dy, *geometry: [(dy, x, *geometry)]),
    "folded": convolutions(folded),
    "conv2d_moments": units(lambda draw, x, weight, dy, prologue, geometry: [
        (x, before, weight, *geometry) for before in (None, prologue)]),
    "add_relu_conv2d_moments": units(lambda draw, x, weight, dy, prologue, geometry: [
        (x, prologue, residual, weight, *geometry) for residual in (None, draw(*x.shape))]),
    "conv2d_bias_relu": units(lambda draw, x, weight, dy, prologue, geometry: [
        (x, weight, draw(dy.shape[3]), residual, relu, *geometry) for residual in (None, draw(*dy.shape))
        for relu in (True, False)]),
    "conv2d_unit_gradient": units(unit_gradients),
    "normalise_add_relu": on(IMAGES, lambda draw, *shape: [
        (draw(*shape), tuple(draw(shape[3]) for _ in range(3)), residual) for residual in (None, draw(*shape))]),
    "add_relu_gradient": on(IMAGES, add_relu_gradients),
    "maxpool2d_forward": pools(MAX_POOLS, lambda draw, x, dy, *geometry: [
        (x, *geometry), (np.round(x), *geometry)]),  # rounded: many ties
    "maxpool2d_backward": pools(MAX_POOLS, lambda draw, x, dy, *geometry: [
        (dy, reference.maxpool2d_forward(np.round(x), *geometry)[1], x.shape, *geometry)]),
    "avgpool2d_forward": pools(AVG_POOLS, lambda draw, x, dy, kernel, stride, padding, _: [(x, kernel, stride, padding)]),
    "avgpool2d_backward": pools(AVG_POOLS, lambda draw, x, dy, kernel, stride, padding, _: [
        (dy, x.shape, kernel, stride, padding)]),
    "global_avgpool_forward": on(IMAGES, lambda draw, *shape: [(draw(*shape),)]),
    "global_avgpool_backward": on(IMAGES, lambda draw, N, H, W, C: [(draw(N, C), (N, H, W, C))]),
    "pad_shortcut_forward": shortcuts(backward=False),
    "pad_shortcut_backward": shortcuts(backward=True),
    "linear_forward": on(LINEARS, lambda draw, N, C, K: [(draw(N, C), draw(C, K), bias) for bias in (draw(K), None)]),
    "linear_backward": on(LINEARS, lambda draw, N, C, K: [(draw(N, K), draw(N, C), draw(C, K))]),
    "softmax_cross_entropy_forward": on(LINEARS, softmax_forwards),
    "softmax_cross_entropy_backward": on(LINEARS, softmax_backwards),
    "mse_forward": on(SHAPES, lambda draw, *shape: [(draw(*shape), draw(*shape))]),
    "mse_backward": on(SHAPES, lambda draw, *shape: [(draw(*shape), draw(*shape))]),
    "sgd_update": updates(lambda parameters, gradients, firsts, _, decays: [
        (parameters, gradients, firsts, 0.1, momentum, decays, nesterov)
        for momentum, nesterov in [(0.0, False), (0.9, False), (0.9, True)]]),
    "adamw_update": updates(lambda parameters, gradients, firsts, seconds, decays: [
        (parameters, gradients, firsts, seconds, step, 1e-2, (0.9, 0.99), 1e-8, decays) for step in (1, 7)]),
}


# --- what is made of them ---


def change(function, values):
    """`values` with `function` of every array in it, those inside tuples too."""
    if isinstance(values, tuple):
        return tuple(change(function, value) for value in values)
    return function(values) if isinstance(values, np.ndarray) else values


def arrays(values):
    """Every array in `values`, those inside tuples too."""
    found = []
    change(found.append, tuple(values))
    return found


def copies(arguments):
    return change(np.copy, arguments)


def results(name, function, arguments):
    """What an operator gives: its results, or for one that works in place the arrays it changed."""
    found = function(*arguments)
    if name in IN_PLACE:
        assert found is None
        return arrays([arguments[place] for place in IN_PLACE[name]])
    return list(found) if isinstance(found, tuple) else [found]


def same(name, found, expected, dtype, what):
    """AssertionError unless all of the found are the expected within TOLERANCE."""
    assert len(found) == len(expected)
    for place, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if theirs is None or ours is None:
            assert theirs is ours, f"{name}, result {place}, {what}: {ours} for {theirs}"
            continue
        if np.ndim(theirs) == 0:
            ours, theirs = np.float64(ours), np.float64(theirs)
        error = relative_error(ours, theirs)
        assert error <= TOLERANCE[dtype], f"{name}, result {place}, {what}: relative error {error:.1e}"


def describe(arguments):
    return ", ".join(str(value.shape) if isinstance(value, np.ndarray) else f"({describe(value)})"
                     if isinstance(value, tuple) else str(value) for value in arguments)
