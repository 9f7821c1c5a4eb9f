"""The convolution's operators: what each asks of two kernels, forward and gradient, direct or Winograd's (algorithm.py).

What the fused ones compute is `minires.backends.composed`; the derivations are those of the layers. They store one image a
unit and read it as few times as they can. For a block of two units with tensors of T bytes, forward reads x, writes z1;
reads z1, writes z2; reads z2 and x, writes y: 7 T. Backward reads dy, y and z2, writes g; reads g, z2 and z1, writes the
gradient at the first ReLU; reads that, z1, x and g, writes dx: 13 T. Layer by layer the same block moves 44 T, since each
normalisation, ReLU and addition makes a pass of its own. A plan joins blocks (minires/plan/rewrites.py). Forward the next
block then reads z2 and x, and writes y beside its own z1: 6 T. Backward what writes dx reads the z2 of the block in front as
well and writes that block's g: 10 T. Where y is dropped between forward and backward, forming it again moves 3 T more, of a
stage's last one 1 T: the convolution's gradient forms it as it reads.
"""
import numpy as np

from minires.backends import composed
from minires.backends.cpu import direct, winograd
from minires.backends.cpu.algorithm import winograd_size
from minires.backends.cpu.arena import aligned_zeros, empty
from minires.backends.cpu.geometry import geometry_of
from minires.backends.cpu.host import block_of
from minires.backends.cpu.images import Gradient, Input, InputGradient, Output, blocks_of, shared_scratch
from minires.backends.cpu.threads import here, launch

PLAIN = (1, 1)  # dilation


def contiguous(arrays):
    """C-contiguous versions of some arrays (None stays None): what the kernels read as memory."""
    return None if arrays is None else tuple(None if array is None else np.ascontiguousarray(array) for array in arrays)


def _flat(array, nothing):
    return nothing if array is None else array.reshape(-1)


def _input(x, prologue=None, residual=None, formed=None):
    nothing = np.empty(0, x.dtype)
    return Input(x.reshape(-1), *(prologue or (nothing,) * 3), _flat(residual, nothing), _flat(formed, nothing))


def _convolved(x, weight, geometry, source, turned=False, moments=False, epilogue=(None, None, False), points=None):
    """y of a convolution, or with `turned` dx of dy = x; and with `moments` (2, O): mean and biased variance.

    epilogue: (bias, residual, relu): y = relu(y + bias + residual). points: Winograd's of the weights, else they are made.
    """
    (N, H, W, C), dtype, nothing = x.shape, x.dtype, np.empty(0, x.dtype)
    O = weight.shape[2 if turned else 3]
    out_size = geometry.size if turned else geometry.out_size
    y, weight = empty((N, *out_size, O), dtype), np.ascontiguousarray(weight)
    m = winograd_size((N, *geometry.size, C), dtype, O, *geometry[2:])
    if m:
        kernel, plan, counts, scratch = winograd.forward_plan(m, dtype, N, H, W, C, O, turned)
        transforms = 0 if points is not None else blocks_of(C, dtype)
        points = shared_scratch((winograd.points_size(m, C, O, dtype),), dtype, "points") if points is None else points
        before, after = (plan, weight.reshape(-1), points, transforms), (scratch,)
    else:
        narrow, whole, transforms = source.mean.size == 0, source.formed.size > 0, 0
        kernel, (plan, rooms), counts, *after = direct.forward_plan(geometry, dtype, N, C, O, narrow, whole, turned)
        before = plan, rooms, weight.reshape(-1)
    bias, residual, relu = epilogue
    merged = np.empty((2, O if moments else 0), dtype)
    means, squares = shared_scratch((2, len(counts) if moments else 0, blocks_of(O, dtype) * block_of(dtype)), dtype,
                                    "moments")
    output = Output(y.reshape(-1), means, squares, _flat(bias, nothing), _flat(residual, nothing),
                    dtype.type(0 if relu else -np.inf))
    tasks = transforms + plan.units.count * plan.slices.count + merged.shape[1]
    launch(kernel, tasks, 2 * y.size * weight.size // O, *before, source, output, counts, merged, *after)
    return y, merged


def conv2d_forward(x, weight, bias, stride, padding, dilation):
    """x: (N, H, W, C), weight: (KH, KW, C, O), bias: (O,) or None -> y: (N, OH, OW, O)."""
    x, (bias,) = np.ascontiguousarray(x), contiguous((bias,))
    geometry = geometry_of(x.shape, weight.shape[:2], stride, padding, dilation)
    return _convolved(x, weight, geometry, _input(x), epilogue=(bias, None, False))[0]


def conv2d_input_gradient(dy, weight, x_shape, stride, padding, dilation):
    """dy: (N, OH, OW, O) -> dx: (N, H, W, C), a convolution of dy with the weights of each phase turned round."""
    dy, geometry = np.ascontiguousarray(dy), geometry_of(x_shape, weight.shape[:2], stride, padding, dilation)
    return _convolved(dy, weight, geometry, _input(dy), turned=True)[0]


def conv2d_weight_gradient(dy, x, kernel_size, stride, padding, dilation):
    """dy: (N, OH, OW, O), x: (N, H, W, C) -> dweight: (KH, KW, C, O)."""
    dy, x = np.ascontiguousarray(dy), np.ascontiguousarray(x)
    geometry = geometry_of(x.shape, kernel_size, stride, padding, dilation)
    return _gradients(dy, None, None, x, _input(x), None, geometry, None, None, None)[1]


def conv2d_moments(x, prologue, weight, stride, padding):
    """z = conv(a(x)), its mean and biased variance: see composed."""
    x, prologue = np.ascontiguousarray(x), contiguous(prologue)
    geometry = geometry_of(x.shape, weight.shape[:2], stride, padding, PLAIN)
    z, moments = _convolved(x, weight, geometry, _input(x, prologue), moments=True)
    return z, moments[0], moments[1]


def add_relu_conv2d_moments(z, prologue, residual, weight, stride, padding):
    """y = relu((z - mean) * scale + bias + residual), conv(y), its mean and biased variance: see composed."""
    (z, residual), y = contiguous((z, residual)), empty(z.shape, z.dtype)
    geometry = geometry_of(z.shape, weight.shape[:2], stride, padding, PLAIN)
    source = _input(z, contiguous(prologue), residual, y)
    out, moments = _convolved(z, weight, geometry, source, moments=True)
    return y, out, moments[0], moments[1]


def prepare(weight, x_shape, stride, padding):
    """Winograd's points of the weights, or the weights."""
    geometry = geometry_of(x_shape, weight.shape[:2], stride, padding, PLAIN)
    m = winograd_size(x_shape, weight.dtype, weight.shape[3], *geometry[2:])
    if not m:
        return weight
    (C, O), dtype, nothing = weight.shape[2:], weight.dtype, np.empty(0, weight.dtype)
    points = aligned_zeros((winograd.points_size(m, C, O, dtype),), dtype)
    kernel, plan, counts, scratch = winograd.forward_plan(m, dtype, *x_shape, O, False)
    rows, none = blocks_of(C, dtype), nothing.reshape(0, 0)
    output = Output(nothing, none, none, nothing, nothing, dtype.type(0))
    # The kernel's first phase alone: its tasks end where units begin.
    launch(kernel, rows, points.size, plan, np.ascontiguousarray(weight).reshape(-1), points, rows, _input(nothing), output,
           counts, none, scratch)
    return points


def conv2d_bias_relu(x, weight, bias, residual, relu, stride, padding, prepared=None):
    """y = relu(conv(x) + bias + residual): see composed."""
    x, (bias, residual) = np.ascontiguousarray(x), contiguous((bias, residual))
    geometry = geometry_of(x.shape, weight.shape[:2], stride, padding, PLAIN)
    points = prepared if prepared is not None and prepared.ndim == 1 else None
    return _convolved(x, weight, geometry, _input(x), epilogue=(bias, residual, relu), points=points)[0]


def conv2d_unit_gradient(g, z, normalisation, x, prologue, weight, stride, padding, residual_gradient, need_dx, front=None,
                         add_to=None, shortcut=None, fresh=False):
    """-> dx, dweight, sum(dx), sum(dx * (x - mean)): see composed."""
    if add_to is not None and not add_to.flags.c_contiguous:
        dx, dweight, *sums = conv2d_unit_gradient(g, z, normalisation, x, prologue, weight, stride, padding,
                                                  residual_gradient, need_dx, front, None, shortcut)
        return dx, here(composed.added, add_to, dweight, fresh), *sums
    g, z, x, residual_gradient, shortcut = contiguous((g, z, x, residual_gradient, shortcut))
    geometry = geometry_of(x.shape, weight.shape[:2], stride, padding, PLAIN)
    normalisation, prologue, front = map(contiguous, (normalisation, prologue, front))
    source, weight = _input(x, prologue, shortcut), np.ascontiguousarray(weight) if need_dx else None
    return _gradients(g, z, normalisation, x, source, weight, geometry, residual_gradient, front, add_to, fresh)


def in_place(operator, arguments):
    """Where a convolution's dx may lie besides in `trace.IN_PLACE`: each image is read before its gradient is written.

    That holds for x while no unit is a band, which reads rows beside its own; for g and z if no slices share a unit either.
    """
    if operator != "conv2d_unit_gradient":
        return ()
    g, z, _, x, prologue, weight, stride, padding, _, need_dx, *_ = arguments
    if not need_dx or g.shape != x.shape:
        return ()
    geometry = geometry_of(x.shape, weight.shape[:2], stride, padding, PLAIN)
    m = winograd_size(x.shape, x.dtype, g.shape[3], *geometry[2:])
    if m:
        plan = winograd.gradient_plan(m, x.dtype, *x.shape, g.shape[3], True)[1]
    else:
        plan = direct.gradient_plan(geometry, x.dtype, x.shape[0], x.shape[3], g.shape[3], prologue is None, True)[1][0]
    if plan.units.bands > 1:
        return ()
    return (3,) if plan.slices.count > 1 else (0, 1, 3)


def _gradients(g, z, normalisation, x, source, weight, geometry, residual_gradient, front, add_to, fresh=False):
    """-> dx or None, dweight or None, and the two sums over dx, each (C,), or None: `conv2d_unit_gradient`.

    weight None: no dx.
    """
    (N, H, W, C), O, dtype, nothing = x.shape, g.shape[3], x.dtype, np.empty(0, x.dtype)
    need_dx, block = weight is not None, block_of(dtype)
    m = winograd_size(x.shape, dtype, O, *geometry[2:])
    if m:
        kernel, plan, tasks, parts, partial_size, *after = winograd.gradient_plan(m, dtype, N, H, W, C, O, need_dx)
        size = winograd.points_size(m, O, C, dtype) if need_dx else 0
        before = plan, _flat(weight, nothing), shared_scratch((size,), dtype, "points")
    else:
        kernel, plans, tasks, parts, partial_size, *after = direct.gradient_plan(geometry, dtype, N, C, O,
                                                                                 source.mean.size == 0, need_dx)
        before = *plans, _flat(weight, nothing)
    with_sums = need_dx and (source.mean.size > 0 or front is not None)
    dx = empty(x.shape, dtype) if need_dx else nothing
    dweight = empty((*geometry.kernel, C, O), dtype) if add_to is None else add_to
    total = np.empty((2, C), dtype)
    sums = shared_scratch((parts if with_sums else 0, 2, blocks_of(C, dtype) * block), dtype, "sums")
    front_z, front_mean = (nothing, nothing) if front is None else front
    output = InputGradient(dx.reshape(-1), _flat(residual_gradient, nothing), front_z.reshape(-1), front_mean, sums)
    gradient = Gradient(g.reshape(-1), _flat(z, nothing), *(normalisation or (nothing,) * 4))
    flat = dweight.reshape(-1)
    partial = flat if partial_size is None else shared_scratch(partial_size, dtype, "partial")
    launch(kernel, tasks + (C if with_sums else 0), 2 * g.size * dweight.size // O, *before, gradient, source, output, total,
           partial, partial_size is None, flat, add_to is not None and not fresh, *after)
    return (dx if need_dx else None), None if add_to is not None else dweight, *(total if with_sums else (None, None))
