"""The fused operators as compositions of the plain ones: what they mean, and what a back end without a kernel runs.

A *unit* is a convolution, its batch normalisation and a ReLU. The fused operators never store the normalised image: they
take the convolution's output z of the unit before, and `prologue` = (mean, scale, bias), each (C,), and read

    a = relu((z - mean) * scale + bias),   scale = weight / sqrt(var + eps)

wherever the plain operators read a. prologue None means that x is read as it is.
"""
import numpy as np


def normalise_relu(ops, z, prologue):
    """a of this module's docstring: (..., C) -> (..., C)."""
    if prologue is None:
        return z
    return ops.relu_forward(normalise(z, prologue))


def normalise(z, prologue):
    """y = (z - mean) * scale + bias: (..., C) -> (..., C)."""
    mean, scale, bias = prologue
    return (z - mean) * scale + bias


def normalise_gradient(g, z, normalisation):
    """dz = from_dy * g + from_x * (z - mean) + constant: batch normalisation's dx, its factors collected."""
    mean, from_dy, from_x, constant = normalisation
    return from_dy * g + (from_x * (z - mean) + constant)


def folded(weight, bias, bn_weight, bn_bias, mean, var, eps):
    """The weight and bias of a convolution into which the normalisation behind it is folded (evaluation):

    (conv(x) + bias - mean) * scale + bn_bias = conv(x; weight * scale) + ((bias - mean) * scale + bn_bias)
    """
    scale = normalisation_scale(bn_weight, var, eps)
    return weight * scale, bn_bias - (mean if bias is None else mean - bias) * scale


def conv2d_moments(ops, x, prologue, weight, stride, padding):
    """z = conv(a(x)) and the mean and biased variance of its channels: (N, OH, OW, O), (O,), (O,)."""
    z = ops.conv2d_forward(normalise_relu(ops, x, prologue), weight, None, stride, padding, (1, 1))
    flat = z.reshape(-1, z.shape[-1])
    mean = flat.mean(0)
    return z, mean, ((flat - mean) ** 2).mean(0)


def add_relu_conv2d_moments(ops, z, prologue, residual, weight, stride, padding):
    """y = relu((z - mean) * scale + bias + residual), a block's end, and what `conv2d_moments` gives for x = y.

    -> y: (N, H, W, C); conv(y): (N, OH, OW, O), its mean and biased variance: (O,), (O,). residual may be None.
    """
    y = normalise_add_relu(ops, z, prologue, residual)
    return y, *conv2d_moments(ops, y, None, weight, stride, padding)


def prepare(weight, x_shape, stride, padding):
    """What a back end makes of a convolution's weights before it multiplies by them; here nothing."""
    return weight


def conv2d_bias_relu(ops, x, weight, bias, residual, relu, stride, padding, prepared=None):
    """y = relu(conv(x) + bias + residual); residual may be None, relu False leaves the relu out.

    prepared: of the weights, where they are used more than once.
    """
    y = ops.conv2d_forward(x, weight, bias, stride, padding, (1, 1))
    if residual is not None:
        y = ops.add(y, residual)
    return ops.relu_forward(y) if relu else y


def normalise_add_relu(ops, z, prologue, residual):
    """y = relu((z - mean) * scale + bias + residual): the end of a block. residual may be None."""
    y = normalise(z, prologue)
    return ops.relu_forward(y if residual is None else ops.add(y, residual))


def add_relu_gradient(ops, dy, y, z, mean, prologue=None, residual=None):
    """Its backward: g = dy where y > 0, sum(g) and sum(g * (z - mean)) over all but the channels.

    y None: it is formed again, as `normalise_add_relu` of z, prologue and residual.
    """
    y = normalise_add_relu(ops, z, prologue, residual) if y is None else y
    g = ops.relu_backward(dy, y)
    return g, ops.channel_sum(g), ops.channel_sum(g * (z - mean))


def conv2d_unit_gradient(ops, g, z, normalisation, x, prologue, weight, stride, padding, residual_gradient, need_dx,
                         front=None, add_to=None, shortcut=None, fresh=False):
    """The backward pass of z = conv(a(x)) and of the normalisation behind it.

    g: the gradient at the normalisation's output; normalisation: (mean, from_dy, from_x, constant), each (O,), with

        dz = from_dy * g + from_x * (z - mean) + constant          (batch normalisation's dx, its factors collected)

    or None where nothing is normalised: g is dz itself, and z is not read.

    -> dx, dweight, sum(dx), sum(dx * (x - mean of the prologue)). dx has `residual_gradient` (or None) added. With a
    prologue dx is the gradient at its normalisation's output, already masked by its ReLU, and the sums are what that
    normalisation's backward needs; without one they are None. need_dx False leaves dx out (None).
    front: (z, mean) of the unit in front where x, read as it is, is a block's output relu(normalised z + S): dx is then
    masked by that ReLU too, as `add_relu_gradient` does it, and the sums are of dx and dx * (z - mean).
    add_to: the parameter's gradient; dweight is added to it, in place, and None returned for dweight. fresh: it holds
    nothing yet, and is written instead.
    shortcut: with a prologue, the residual that its ReLU includes: a = relu((x - mean) * scale + bias + shortcut).
    """
    if shortcut is not None:
        a = normalise_add_relu(ops, x, prologue, shortcut)
        return conv2d_unit_gradient(ops, g, z, normalisation, a, None, weight, stride, padding, residual_gradient, need_dx,
                                    (x, prologue[0]), add_to, None, fresh)
    dz = g if normalisation is None else normalise_gradient(g, z, normalisation)
    a = normalise_relu(ops, x, prologue)
    geometry = (stride, padding, (1, 1))
    dweight = added(add_to, ops.conv2d_weight_gradient(dz, a, weight.shape[:2], *geometry), fresh)
    if not need_dx:
        return None, dweight, None, None
    dx = ops.conv2d_input_gradient(dz, weight, x.shape, *geometry)
    if residual_gradient is not None:
        dx = ops.add(dx, residual_gradient)
    if prologue is not None:
        front = x, prologue[0]
    if front is None:
        return dx, dweight, None, None
    dx, sum_dx, sum_dxx = add_relu_gradient(ops, dx, a, *front)
    return dx, dweight, sum_dx, sum_dxx


def added(gradient, value, fresh=False):
    """`value`, or where there is a `gradient` to add it to, in place, None; a fresh one holds nothing yet."""
    if gradient is None:
        return value
    if fresh:
        gradient[...] = value
    else:
        gradient += value
    return None


def add_into(total, value):
    """total += value, in place."""
    total += value


def zero(arrays):
    """Set every element of some arrays to zero."""
    for array in arrays:
        array.fill(0)


def normalisation_scale(weight, var, eps):
    """scale of this module's docstring: (C,)."""
    return (weight / (var + eps) ** 0.5).astype(var.dtype)


def update_running(running_mean, running_var, mean, var, momentum, m):
    """Let running statistics follow those of a batch of m values a channel, in place, all of them (C,).

    running = (1 - momentum) * running + momentum * batch, the running variance from the unbiased one.
    """
    keep = 1 - momentum
    running_mean[...] = keep * running_mean + momentum * mean
    running_var[...] = keep * running_var + momentum * var * (m / (m - 1))


def batchnorm_coefficients(sum_g, sum_gx, var, weight, eps, count, add_to=(None, None)):
    """(from_dy, from_x, constant) of `conv2d_unit_gradient`, dweight and dbias, each (C,), from the two sums.

    From batch normalisation's dx = weight * s * (g - dbias / m - x_hat * dweight / m), s = 1 / sqrt(var + eps),
    x_hat = (z - mean) * s. count: m = N * H * W, or None where the statistics are constants (evaluation).
    add_to: the two parameters' gradients; dweight and dbias are added to them, in place, and None returned for each.
    """
    dtype = var.dtype
    inv_std = 1 / (var.astype(np.float64) + eps) ** 0.5
    dbias, dweight = sum_g.astype(np.float64), sum_gx * inv_std
    from_dy = weight * inv_std
    if count is None:
        parts = (from_dy, from_dy * 0, from_dy * 0, dweight, dbias)
    else:
        parts = (from_dy, -from_dy * inv_std * dweight / count, -from_dy * dbias / count, dweight, dbias)
    *factors, dweight, dbias = (part.astype(dtype) for part in parts)
    return *factors, added(add_to[0], dweight), added(add_to[1], dbias)


DIGEST = 61  # sums; no number of channels is a multiple of it, so that no exchange of channels goes unnoticed


def digest(array):
    """Bytes that tell whether any bit of an array has changed: sums of its bits as whole numbers, in DIGEST columns."""
    bits = array.reshape(-1).view(f"u{array.dtype.itemsize}")
    whole = bits.size // DIGEST * DIGEST
    return bits[:whole].reshape(-1, DIGEST).sum(0).tobytes() + bits[whole:].tobytes()
