"""The operators in NumPy, written as their derivations are written: the oracle for the other back ends.

Letters: N images, H x W pixels, C channels in, O channels out, KH x KW kernel, OH x OW output pixels, K classes.
Batches are (N, H, W, C), convolution weights (KH, KW, C, O), so a convolution is a linear layer on patches. Pairs
such as `stride` are (rows, columns). Every function keeps the dtype it is given, float32 or float64.
"""
import sys
from functools import partial
from types import FunctionType

import numpy as np

from minires.backends import composed
from minires.backends.activations import (  # noqa: F401
    gelu_backward,
    gelu_forward,
    leaky_relu_backward,
    leaky_relu_forward,
    silu_backward,
    silu_forward,
)
from minires.backends.composed import (  # noqa: F401
    add_into,
    batchnorm_coefficients,
    digest,
    folded,
    normalisation_scale,
    normalise,
    normalise_gradient,
    prepare,
    update_running,
    zero,
)
from minires.backends.groupnorm import groupnorm_backward, groupnorm_forward  # noqa: F401
from minires.backends.soft_targets import soft_cross_entropy_backward, soft_cross_entropy_forward  # noqa: F401
from minires.errors import UserError


def output_size(size, kernel, stride, padding, dilation):
    """OH from H (or OW from W): the places where a dilated kernel fits into the padded image."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def output_sizes(size, kernel_size, stride, padding, dilation):
    """(OH, OW) from (H, W), each argument a pair."""
    return tuple(output_size(*axis) for axis in zip(size, kernel_size, stride, padding, dilation, strict=True))


def taps(kernel_size, out_size, stride, dilation):
    """For each kernel tap: its index and the rows and columns of the padded image it meets, one per output pixel."""
    for i in range(kernel_size[0]):
        for j in range(kernel_size[1]):
            rows = slice(i * dilation[0], i * dilation[0] + (out_size[0] - 1) * stride[0] + 1, stride[0])
            columns = slice(j * dilation[1], j * dilation[1] + (out_size[1] - 1) * stride[1] + 1, stride[1])
            yield (i, j), (slice(None), rows, columns)


def pad_image(x, padding, value=0):
    """x: (N, H, W, C) -> (N, H + 2 * padding[0], W + 2 * padding[1], C), the border filled with `value`."""
    return np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)), constant_values=value)


def crop_image(x, padding):
    """The inverse of `pad_image` on shapes, and its transpose: what fell on the border goes nowhere."""
    H, W = x.shape[1] - 2 * padding[0], x.shape[2] - 2 * padding[1]
    return np.ascontiguousarray(x[:, padding[0]:padding[0] + H, padding[1]:padding[1] + W])


def im2col(x, kernel_size, stride, padding, dilation, value=0):
    """x: (N, H, W, C) -> patches: (N, OH, OW, KH, KW, C), the pixels under the kernel at each output pixel."""
    N, H, W, C = x.shape
    OH, OW = output_sizes((H, W), kernel_size, stride, padding, dilation)
    padded = pad_image(x, padding, value)
    patches = np.empty((N, OH, OW, *kernel_size, C), x.dtype)
    for (i, j), window in taps(kernel_size, (OH, OW), stride, dilation):
        patches[:, :, :, i, j] = padded[window]
    return patches


def col2im(patches, x_shape, stride, padding, dilation):
    """The transpose of `im2col`: each patch entry is added back to the pixel it was read from.

    patches: (N, OH, OW, KH, KW, C) -> (N, H, W, C)
    """
    N, H, W, C = x_shape
    OH, OW, *kernel_size = patches.shape[1:5]
    padded = np.zeros((N, H + 2 * padding[0], W + 2 * padding[1], C), patches.dtype)
    for (i, j), window in taps(kernel_size, (OH, OW), stride, dilation):
        padded[window] += patches[:, :, :, i, j]
    return crop_image(padded, padding)


# --- convolution: y = patches(x) @ weight + bias, linear in x and in weight ------------------------------------------


def conv2d_forward(x, weight, bias, stride, padding, dilation):
    """x: (N, H, W, C), weight: (KH, KW, C, O), bias: (O,) or None -> y: (N, OH, OW, O)."""
    KH, KW, _, O = weight.shape
    patches = im2col(x, (KH, KW), stride, padding, dilation)
    y = patches.reshape(*patches.shape[:3], -1) @ weight.reshape(-1, O)
    return y if bias is None else y + bias


def conv2d_input_gradient(dy, weight, x_shape, stride, padding, dilation):
    """dpatches = dy @ weight^T, and each goes back to its pixel. dy: (N, OH, OW, O) -> dx: (N, H, W, C)."""
    dpatches = dy @ weight.reshape(-1, weight.shape[3]).T
    return col2im(dpatches.reshape(*dy.shape[:3], *weight.shape[:3]), x_shape, stride, padding, dilation)


def conv2d_weight_gradient(dy, x, kernel_size, stride, padding, dilation):
    """dweight = patches^T @ dy, summed over all N * OH * OW pixels. -> dweight: (KH, KW, C, O)."""
    O = dy.shape[3]
    patches = im2col(x, kernel_size, stride, padding, dilation)
    dweight = patches.reshape(dy.size // O, -1).T @ dy.reshape(-1, O)
    return dweight.reshape(*kernel_size, x.shape[3], O)


def channel_sum(dy):
    """The gradient of a bias: dy: (..., C) -> (C,)."""
    return dy.reshape(-1, dy.shape[-1]).sum(0)


# --- batch normalisation: y = weight * x_hat + bias, x_hat = (x - mean) / sqrt(var + eps) ----------------------------


def batch_moments(x):
    """The batch's mean and (biased) var of each channel: x: (..., C) -> (C,), (C,)."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return mean, ((x - mean) ** 2).mean(axes)


def batchnorm_forward(x, weight, bias, eps):
    """x: (..., C) -> y: (..., C) and the batch's mean and (biased) var: (C,)."""
    mean, var = batch_moments(x)
    return batchnorm_apply(x, mean, var, weight, bias, eps), mean, var


def batchnorm_apply(x, mean, var, weight, bias, eps):
    """Normalise with given statistics (evaluation): an affine map of each channel."""
    return weight * ((x - mean) / np.sqrt(var + eps)) + bias


def gradient_sums(g, z, mean):
    """sum(g) and sum(g * (z - mean)) over all but the channels: all of g that batch normalisation's factors need."""
    return channel_sum(g), channel_sum(g * (z - mean))


def batchnorm_backward(dy, x, mean, var, weight, eps, batch_statistics):
    """-> dx: (..., C), dweight: (C,), dbias: (C,).

    With `batch_statistics` mean and var are functions of x and their two correction terms appear; without, they are
    constants and dx is dy scaled.
    """
    inv_std = 1 / np.sqrt(var + eps)
    x_hat = (x - mean) * inv_std
    dbias = channel_sum(dy)
    dweight = channel_sum(dy * x_hat)
    if not batch_statistics:
        return dy * (weight * inv_std), dweight, dbias
    m = x.size // x.shape[-1]
    return (weight * inv_std) * (dy - dbias / m - x_hat * (dweight / m)), dweight, dbias


# --- layer normalisation: the same formula over the channels of one pixel --------------------------------------------


def layernorm_forward(x, weight, bias, eps):
    """x: (..., C) -> y: (..., C), mean and var over the channels: (..., 1)."""
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return weight * ((x - mean) / np.sqrt(var + eps)) + bias, mean, var


def layernorm_backward(dy, x, mean, var, weight, eps):
    """With g = weight * dy: dx = (g - mean(g) - x_hat * mean(g * x_hat)) / sqrt(var + eps), means over the channels."""
    axes = tuple(range(x.ndim - 1))
    inv_std = 1 / np.sqrt(var + eps)
    x_hat = (x - mean) * inv_std
    g = weight * dy
    dx = inv_std * (g - g.mean(-1, keepdims=True) - x_hat * (g * x_hat).mean(-1, keepdims=True))
    return dx, (dy * x_hat).sum(axes), dy.sum(axes)


# --- element by element ----------------------------------------------------------------------------------------------


def relu_forward(x):
    """y = max(x, 0); a NaN stays one."""
    return np.maximum(x, 0)


def relu_backward(dy, y):
    """dx = dy where y > 0, else 0 (the derivative at the kink is taken as 0)."""
    return dy * (y > 0)


def add(a, b):
    """The sum of two arrays of one shape: where a residual block's two paths meet."""
    return a + b


def dropout_keep(x, rng, p):
    """Which elements of x dropout keeps, each with probability 1 - p: bool, x's shape."""
    return rng.random(x.shape, np.float32) >= p


def dropout_forward(x, keep, p):
    """Inverted dropout: y = x / (1 - p) where `keep`, else 0, so the expected y is x. keep: bool, x's shape."""
    return x * keep / x.dtype.type(1 - p)


def dropout_backward(dy, keep, p):
    """dx: given `keep` forward multiplies by a diagonal matrix, which is its own transpose."""
    return dropout_forward(dy, keep, p)


# --- pooling ---------------------------------------------------------------------------------------------------------


def maxpool2d_forward(x, kernel_size, stride, padding, dilation):
    """-> y: (N, OH, OW, C) and argmax: the winning tap i * KW + j, int32, y's shape.

    Ties go to the first tap inside the image: padding is -inf, and loses even to a pixel that is -inf itself. NaN wins.
    """
    geometry = (kernel_size, stride, padding, dilation)
    patches, inside = im2col(x, *geometry, value=-np.inf), im2col(np.ones_like(x), *geometry)
    N, OH, OW, KH, KW, C = patches.shape
    patches, inside = patches.reshape(N, OH, OW, KH * KW, C), inside.reshape(N, OH, OW, KH * KW, C)
    argmax = np.where(patches.max(3) == -np.inf, inside.argmax(3), patches.argmax(3))
    return np.take_along_axis(patches, argmax[:, :, :, None], 3)[:, :, :, 0], argmax.astype(np.int32)


def maxpool2d_backward(dy, argmax, x_shape, kernel_size, stride, padding, dilation):
    """dx: each dy goes to the one pixel that won. dy, argmax: (N, OH, OW, C) -> dx: (N, H, W, C)."""
    N, OH, OW, C = dy.shape
    won = argmax[:, :, :, None] == np.arange(kernel_size[0] * kernel_size[1])[:, None]
    dpatches = (dy[:, :, :, None] * won).reshape(N, OH, OW, *kernel_size, C)
    return col2im(dpatches, x_shape, stride, padding, dilation)


def avgpool2d_forward(x, kernel_size, stride, padding):
    """y: (N, OH, OW, C), the mean over each window; padding counts as zeros (PyTorch's default)."""
    return im2col(x, kernel_size, stride, padding, (1, 1)).mean((3, 4))


def avgpool2d_backward(dy, x_shape, kernel_size, stride, padding):
    """dx: (N, H, W, C): each dy is spread evenly over its window."""
    share = dy / (kernel_size[0] * kernel_size[1])
    dpatches = np.broadcast_to(share[:, :, :, None, None], (*dy.shape[:3], *kernel_size, dy.shape[3]))
    return col2im(dpatches, x_shape, stride, padding, (1, 1))


def global_avgpool_forward(x):
    """x: (N, H, W, C) -> y: (N, C)."""
    return x.mean((1, 2))


def global_avgpool_backward(dy, x_shape):
    """dx: (N, H, W, C): dy / (H * W) at every pixel."""
    N, H, W, C = x_shape
    return np.broadcast_to((dy / (H * W))[:, None, None], x_shape).copy()


# --- the identity shortcut that changes shape (option A) -------------------------------------------------------------


def pad_shortcut_forward(x, out_channels, stride):
    """Every stride-th pixel, zero channels added evenly on both sides: (N, H, W, C) -> (N, OH, OW, O)."""
    before = (out_channels - x.shape[3]) // 2
    after = out_channels - x.shape[3] - before
    return np.pad(x[:, ::stride[0], ::stride[1]], ((0, 0), (0, 0), (0, 0), (before, after)))


def pad_shortcut_backward(dy, x_shape, stride):
    """dx: the pixels that were kept take the gradient of their own channels, the others none."""
    before = (dy.shape[3] - x_shape[3]) // 2
    dx = np.zeros(x_shape, dy.dtype)
    dx[:, ::stride[0], ::stride[1]] = dy[:, :, :, before:before + x_shape[3]]
    return dx


# --- linear: y = x @ weight + bias -----------------------------------------------------------------------------------


def linear_forward(x, weight, bias):
    """x: (N, C), weight: (C, K), bias: (K,) or None -> y: (N, K)."""
    y = x @ weight
    return y if bias is None else y + bias


def linear_backward(dy, x, weight):
    """dx = dy @ weight^T: (N, C), dweight = x^T @ dy: (C, K), dbias = sum over N of dy: (K,)."""
    return dy @ weight.T, x.T @ dy, dy.sum(0)


# --- losses ----------------------------------------------------------------------------------------------------------


def softmax_cross_entropy_forward(logits, target, label_smoothing):
    """logits: (N, K), target: (N,) integers -> loss: the mean over N, and the softmax: (N, K).

    loss = -sum_k q_k log p_k with q = (1 - s) * one_hot(target) + s / K. The largest logit is subtracted first, so
    that no exponential overflows and log p is finite even where p rounds to zero.
    """
    K = logits.shape[1]
    if not (target.min() >= 0 and target.max() < K):
        raise UserError(f"CrossEntropyLoss expects targets in 0 .. {K - 1}, got {target.min()} .. {target.max()}")
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    picked = log_p[np.arange(len(target)), target]
    loss = -((1 - label_smoothing) * picked + label_smoothing * log_p.mean(1)).mean()
    return loss, np.exp(log_p)


def softmax_cross_entropy_backward(softmax, target, label_smoothing):
    """dlogits = (p - q) / N: (N, K)."""
    N, K = softmax.shape
    dlogits = softmax - softmax.dtype.type(label_smoothing / K)
    dlogits[np.arange(N), target] -= 1 - label_smoothing
    return dlogits / N


def mse_forward(y, target):
    """loss: the mean of (y - target)^2 over all elements."""
    return ((y - target) ** 2).mean()


def mse_backward(y, target):
    """dy = 2 (y - target) / size."""
    return (y - target) * y.dtype.type(2 / y.size)


# --- optimisers' updates, in place, of all parameters at once: tuples of arrays, and each array's own weight decay ------


def sgd_update(parameters, grads, velocities, lr, momentum, weight_decays, nesterov):
    """g = grad + weight_decay * parameter; velocity = momentum * velocity + g; parameter -= lr * step, where step is
    g + momentum * velocity with `nesterov` and velocity without (PyTorch's SGD)."""
    for parameter, grad, velocity, weight_decay in zip(parameters, grads, velocities, weight_decays, strict=True):
        g = grad + weight_decay * parameter
        velocity *= momentum
        velocity += g
        parameter -= lr * (g + momentum * velocity if nesterov else velocity)


def adamw_update(parameters, grads, firsts, seconds, step, lr, betas, eps, weight_decays):
    """Decoupled weight decay, then Adam with bias correction; `step` counts from 1 (Loshchilov & Hutter 2019)."""
    for parameter, grad, first, second, weight_decay in zip(parameters, grads, firsts, seconds, weight_decays, strict=True):
        parameter *= 1 - lr * weight_decay
        first *= betas[0]
        first += (1 - betas[0]) * grad
        second *= betas[1]
        second += (1 - betas[1]) * grad**2
        corrected = np.sqrt(second / (1 - betas[1] ** step)) + eps
        parameter -= lr / (1 - betas[0] ** step) * first / corrected


# --- fused operators: compositions of the above, defined in composed.py ----------------------------------------------

for _name in ("conv2d_moments", "add_relu_conv2d_moments", "conv2d_bias_relu", "normalise_add_relu", "add_relu_gradient",
              "conv2d_unit_gradient"):
    globals()[_name] = partial(getattr(composed, _name), sys.modules[__name__])

# --- what every back end has -----------------------------------------------------------------------------------------

_STEPS_OF_THE_MATHS = ("output_size", "output_sizes", "taps", "pad_image", "crop_image", "im2col", "col2im")
OPERATORS = frozenset(name for name, value in globals().items()
                      if isinstance(value, FunctionType | partial) and name not in _STEPS_OF_THE_MATHS)


def operators_of(*modules):
    """{name: function} of the operators that some modules hold, those of a later module before an earlier one's."""
    return {name: value for module in modules for name, value in vars(module).items() if name in OPERATORS}
