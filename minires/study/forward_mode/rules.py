"""The forward-mode product of every layer: y and its change Jv, from x and its change v.

Each function takes (layer, x, v, tangents) and gives (y, Jv):

    Jv = d/dt layer(x + t v; parameter + t tangent) at t = 0

x, v: of one shape; y, Jv: of one shape; tangents: {Parameter: array of its shape}, a parameter that is left out stands
still. The formulas write such a change with a δ, as `minires.layer` does: δx = v, δweight = tangents[weight], δy = Jv.
Nothing here is read off a backward pass, so that each can testify about the other (`minires.study.forward_mode.adjoint`).

Batch statistics move with x in training mode; running statistics are read in evaluation mode and never changed. Dropout
draws from its generator as its forward does.
Source: Griewank & Walther 2008, "Evaluating Derivatives", chapter 3; Pearlmutter 1994, "Fast exact multiplication by the
Hessian", whose R{.} is this δ.
"""
import numpy as np

from minires.backends import ops_for
from minires.backends.activations import normal_cdf, normal_density, sigmoid
from minires.backends.groupnorm import GROUP
from minires.backends.reference import im2col
from minires.layers import (
    GELU,
    AvgPool2d,
    BatchNorm2d,
    Bias,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    GroupNorm,
    Identity,
    LayerNorm,
    LeakyReLU,
    Linear,
    MaxPool2d,
    PaddedShortcut,
    ReLU,
    Scale,
    SiLU,
)
from minires.losses import CrossEntropyLoss, MSELoss


def conv2d(layer, x, v, tangents):
    """y = patches(x) @ weight + bias is linear in x and linear in weight, and patches is linear: the product rule.

    δy = patches(δx) @ weight + patches(x) @ δweight + δbias, which is conv(δx; weight) + conv(x; δweight, δbias)
    """
    ops, geometry = ops_for(x), (layer.stride, layer.padding, layer.dilation)
    bias = None if layer.bias is None else layer.bias.data
    y = ops.conv2d_forward(x, layer.weight.data, bias, *geometry)
    Jv = ops.conv2d_forward(v, layer.weight.data, None, *geometry)
    if layer.weight in tangents:
        Jv = Jv + ops.conv2d_forward(x, tangents[layer.weight], None, *geometry)
    return y, _plus(Jv, tangents.get(layer.bias))


def linear(layer, x, v, tangents):
    """y = x @ weight + bias, so δy = δx @ weight + x @ δweight + δbias."""
    bias = None if layer.bias is None else layer.bias.data
    Jv = v @ layer.weight.data
    if layer.weight in tangents:
        Jv = Jv + x @ tangents[layer.weight]
    return ops_for(x).linear_forward(x, layer.weight.data, bias), _plus(Jv, tangents.get(layer.bias))


def normalised(x, v, axes, eps):
    """x_hat, its change δx_hat, s = 1 / sqrt(var + eps) and its change δs, the statistics taken over `axes` of x.

    With c = x - mean and the means over `axes`:

        δmean = mean(δx)      δc = δx - mean(δx)      δvar = 2 mean(c * δc) = 2 mean(c * δx)      since mean(c) = 0
        δs = -s^3 δvar / 2 = -s^2 mean(x_hat * δx)
        δx_hat = s δc + c δs = s (δx - mean(δx) - x_hat mean(x_hat * δx))
    """
    c = x - x.mean(axes, keepdims=True)
    s = 1 / np.sqrt((c * c).mean(axes, keepdims=True) + eps)
    x_hat = c * s
    correlation = (x_hat * v).mean(axes, keepdims=True)
    return x_hat, s * (v - v.mean(axes, keepdims=True) - x_hat * correlation), s, -s * s * correlation


def batchnorm_normalised(layer, x, v):
    """`normalised` for batch normalisation: over all but the channels; in evaluation the statistics are constants, and
    δx_hat = s δx, δs = 0."""
    if layer.batch_statistics:
        layer.values_per_channel(x)
        return normalised(x, v, tuple(range(x.ndim - 1)), layer.eps)
    s = (1 / np.sqrt(layer.running_var + layer.eps)).astype(x.dtype)
    return (x - layer.running_mean) * s, v * s, s, np.zeros_like(s)


def batchnorm2d(layer, x, v, tangents):
    """y = weight x_hat + bias, so δy = weight * δx_hat + δweight * x_hat + δbias, δx_hat from `normalised`."""
    x_hat, change, _, _ = batchnorm_normalised(layer, x, v)
    return _affine(layer, x_hat, change, tangents)


def layernorm(layer, x, v, tangents):
    """As batch normalisation, the statistics over the channels of one pixel, in either mode."""
    x_hat, change, _, _ = normalised(x, v, -1, layer.eps)
    return _affine(layer, x_hat, change, tangents)


def groupnorm_normalised(layer, x, v):
    """`normalised` for group normalisation, over space and the channels of a group; all four of x's shape."""
    shape = (*x.shape[:3], layer.num_groups, -1)
    parts = normalised(x.reshape(shape), v.reshape(shape), GROUP, layer.eps)
    return [np.broadcast_to(part, parts[0].shape).reshape(x.shape) for part in parts]


def groupnorm(layer, x, v, tangents):
    """As batch normalisation, the statistics over a group of one image, in either mode."""
    x_hat, change, _, _ = groupnorm_normalised(layer, x, v)
    return _affine(layer, x_hat, change, tangents)


def scale(layer, x, v, tangents):
    """y = weight x, so δy = weight δx + δweight x."""
    Jv = layer.weight.data * v
    return layer.weight.data * x, Jv + tangents[layer.weight] * x if layer.weight in tangents else Jv


def bias(layer, x, v, tangents):
    """y = x + bias, so δy = δx + δbias."""
    return x + layer.bias.data, _plus(v, tangents.get(layer.bias))


def _affine(layer, x_hat, change, tangents):
    Jv = layer.weight.data * change
    if layer.weight in tangents:
        Jv = Jv + tangents[layer.weight] * x_hat
    return layer.weight.data * x_hat + layer.bias.data, _plus(Jv, tangents.get(layer.bias))


def _plus(Jv, bias):
    return Jv if bias is None else Jv + bias


def relu(layer, x, v, tangents):
    """Where x > 0, y moves as x does; elsewhere it stands still (at the kink too, as in the backward pass)."""
    return ops_for(x).relu_forward(x), np.where(x > 0, v, 0)


def leaky_relu(layer, x, v, tangents):
    """Where x > 0, y moves as x does; elsewhere slope times as far."""
    return ops_for(x).leaky_relu_forward(x, layer.slope), np.where(x > 0, v, layer.slope * v)


def gelu(layer, x, v, tangents):
    """y = x Φ(x): δy = δx Φ(x) + x δΦ, δΦ = φ(x) δx."""
    return ops_for(x).gelu_forward(x), v * normal_cdf(x) + x * (normal_density(x) * v)


def silu(layer, x, v, tangents):
    """y = x σ(x): δy = δx σ(x) + x δσ, δσ = σ (1 - σ) δx."""
    s = sigmoid(x)
    return ops_for(x).silu_forward(x), v * s + x * (s * (1 - s) * v)


def maxpool2d(layer, x, v, tangents):
    """y is the winner of its window, and moves as the winner does: δy = δx at the pixel that won."""
    geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    y, argmax = ops_for(x).maxpool2d_forward(x, *geometry)
    patches = im2col(v, *geometry).reshape(*y.shape[:3], -1, y.shape[3])
    return y, np.take_along_axis(patches, argmax[:, :, :, None], 3)[:, :, :, 0]


def avgpool2d(layer, x, v, tangents):
    """A mean is linear: δy is the mean of δx over the window, padding counted as zeros."""
    ops, geometry = ops_for(x), (layer.kernel_size, layer.stride, layer.padding)
    return ops.avgpool2d_forward(x, *geometry), ops.avgpool2d_forward(v, *geometry)


def global_avgpool2d(layer, x, v, tangents):
    """Linear: δy is the mean of δx over the feature map."""
    return ops_for(x).global_avgpool_forward(x), ops_for(v).global_avgpool_forward(v)


def flatten(layer, x, v, tangents):
    """Nothing is computed: δy is δx in y's shape."""
    return x.reshape(len(x), -1), v.reshape(len(v), -1)


def identity(layer, x, v, tangents):
    """y = x, δy = δx."""
    return x, v


def dropout(layer, x, v, tangents):
    """Given the draw, y = x * keep / (1 - p) is linear: δy = δx * keep / (1 - p), with the same draw."""
    if not layer.training or layer.p == 0:
        return x, v
    keep = layer.rng.random(x.shape, np.float32) >= layer.p
    return ops_for(x).dropout_forward(x, keep, layer.p), ops_for(v).dropout_forward(v, keep, layer.p)


def padded_shortcut(layer, x, v, tangents):
    """A selection of pixels and channels of zeros: linear, so δy is the shortcut of δx."""
    ops = ops_for(x)
    return (ops.pad_shortcut_forward(x, layer.out_channels, layer.stride),
            ops.pad_shortcut_forward(v, layer.out_channels, layer.stride))


LAYER_RULES = {
    Conv2d: conv2d, Linear: linear, BatchNorm2d: batchnorm2d, LayerNorm: layernorm, ReLU: relu, LeakyReLU: leaky_relu,
    GELU: gelu, SiLU: silu, MaxPool2d: maxpool2d, AvgPool2d: avgpool2d, GlobalAvgPool2d: global_avgpool2d, Flatten: flatten,
    Identity: identity, Dropout: dropout,
    PaddedShortcut: padded_shortcut, GroupNorm: groupnorm, Scale: scale, Bias: bias,
}


# --- losses: (loss, y, v, target) -> the loss and its change, two numbers --------------------------------------------


def cross_entropy(loss, y, v, target):
    """log p = y - log(sum exp y), so δ(log p) = δy - sum(p * δy), and the loss is linear in log p:

    loss = -sum(q * log p) / N        δloss = -sum(q * δ(log p)) / N
    """
    shifted = y - y.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    change = v - (np.exp(log_p) * v).sum(1, keepdims=True)
    q = shares(loss, y, target)
    return float(-(q * log_p).sum(1).mean()), float(-(q * change).sum(1).mean())


def shares(loss, y, target):
    """q: (N, K), what a cross-entropy compares the softmax of y: (N, K) with."""
    hard = np.eye(y.shape[1], dtype=y.dtype)[target] if target.ndim == 1 else target
    return (1 - loss.label_smoothing) * hard + loss.label_smoothing / y.shape[1]


def mse(loss, y, v, target):
    """loss = mean((y - target)^2), so δloss = mean(2 (y - target) * δy)."""
    return float(((y - target) ** 2).mean()), float((2 * (y - target) * v).mean())


LOSS_RULES = {CrossEntropyLoss: cross_entropy, MSELoss: mse}
