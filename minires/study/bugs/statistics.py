"""Bugs of the normalisations, whose statistics depend on every input."""
import numpy as np

from minires.backends.reference import layernorm_backward
from minires.study.bugs.inject import Bug

# --- batch normalisation: wrong(right, dy, x, mean, var, weight, eps, batch_statistics) -> dx, dweight, dbias ---------


def formula(mean_term=1.0, variance_term=1.0, count=lambda x: x.size // x.shape[-1], with_eps=True, with_weight=True):
    """dx = weight * s * (dy - dbias / m - x_hat * dweight / m) in training, with parts of it changed or left out."""
    def wrong(right, dy, x, mean, var, weight, eps, batch_statistics):
        dx, dweight, dbias = right(dy, x, mean, var, weight, eps, batch_statistics)
        if not batch_statistics:
            return dx, dweight, dbias
        inv_std = 1 / np.sqrt(var + eps if with_eps else var)
        x_hat, m = (x - mean) * inv_std, count(x)
        dx_hat = dy - mean_term * (dbias / m) - x_hat * (variance_term * dweight / m)
        return (inv_std * weight if with_weight else inv_std) * dx_hat, dweight, dbias
    return wrong


def other_mode(mode):
    """The formula of `mode`, "training" or "evaluation", in both."""
    def wrong(right, *arguments):
        return right(*arguments[:-1], mode == "training")
    return wrong


def written_into_dy(right, dy, *arguments):
    dx, dweight, dbias = right(dy, *arguments)
    dy[...] = dx
    return dy, dweight, dbias


def x_for_x_hat(right, dy, x, *arguments):
    dx, _, dbias = right(dy, x, *arguments)
    return dx, (dy * x).sum(tuple(range(x.ndim - 1))), dbias


def bias_keeps_dimensions(right, layer, dy):
    dx = right(layer, dy)
    layer.bias.grad = layer.bias.grad.reshape(1, 1, 1, -1)
    return dx


# --- layer normalisation: wrong(right, dy, x, mean, var, weight, eps) -> dx, dweight, dbias ---------------------------


def means_over_the_batch(right, dy, x, mean, var, weight, eps):
    axes, inv_std = tuple(range(x.ndim - 1)), 1 / np.sqrt(var + eps)
    x_hat, g = (x - mean) * inv_std, weight * dy
    dx = inv_std * (g - g.mean(axes) - x_hat * (g * x_hat).mean(axes))
    return dx, (dy * x_hat).sum(axes), dy.sum(axes)


def weight_outside(right, dy, x, mean, var, weight, eps):
    _, dweight, dbias = right(dy, x, mean, var, weight, eps)
    return weight * layernorm_backward(dy, x, mean, var, np.ones_like(weight), eps)[0], dweight, dbias


# --- group normalisation: wrong(right, dy, x, mean, var, weight, eps) -> dx, dweight, dbias ---------------------------


def group_statistics_constant(right, dy, x, mean, var, weight, eps):
    _, dweight, dbias = right(dy, x, mean, var, weight, eps)
    shape = (*x.shape[:3], mean.shape[3], -1)
    return ((weight * dy).reshape(shape) / (var + eps) ** 0.5).reshape(x.shape), dweight, dbias


BATCH, LAYER, OPERATOR = ("BatchNorm2d",), ("LayerNorm",), "batchnorm_backward"

BUGS = [
    Bug("batchnorm-mean-term-dropped", "The term through the mean, dbias / m, is left out of dx.",
        BATCH, OPERATOR, formula(mean_term=0.0)),
    Bug("batchnorm-variance-term-dropped", "The term through the variance, x_hat * dweight / m, is left out of dx.",
        BATCH, OPERATOR, formula(variance_term=0.0)),
    Bug("batchnorm-statistics-constant", "Mean and variance are treated as constants: evaluation's formula in training.",
        BATCH, OPERATOR, other_mode("evaluation")),
    Bug("batchnorm-training-in-evaluation", "Training's formula in evaluation, where mean and variance are constants.",
        BATCH, OPERATOR, other_mode("training")),
    Bug("batchnorm-eps-forgotten", "Backward divides by sqrt(var), forward by sqrt(var + eps).",
        BATCH, OPERATOR, formula(with_eps=False)),
    Bug("batchnorm-unbiased-count", "The terms are divided by m - 1, as the running variance is, not by m.",
        BATCH, OPERATOR, formula(count=lambda x: x.size // x.shape[-1] - 1)),
    Bug("batchnorm-count-of-one-image", "The terms are divided by H * W: the batch is forgotten in m.",
        BATCH, OPERATOR, formula(count=lambda x: x[0].size // x.shape[-1])),
    Bug("batchnorm-weight-forgotten", "dx is not multiplied by weight, which is 1 when training starts.",
        BATCH, OPERATOR, formula(with_weight=False)),
    Bug("batchnorm-x-for-x-hat", "dweight is sum(dy * x), with x as it was before it was normalised.",
        BATCH, OPERATOR, x_for_x_hat),
    Bug("batchnorm-writes-into-dy", "dx is written over dy to save memory, and a shortcut still has to read dy.",
        BATCH, OPERATOR, written_into_dy),
    Bug("batchnorm-bias-keeps-dimensions", "dbias is summed with keepdims: bias.grad becomes (1, 1, 1, C).",
        BATCH, "backward", bias_keeps_dimensions),
    Bug("layernorm-wrong-axis", "The two means are taken over the batch, as in batch normalisation, not over the channels.",
        LAYER, "layernorm_backward", means_over_the_batch, "pooled"),
    Bug("layernorm-weight-outside", "weight multiplies dx after the means, where it has to be inside them.",
        LAYER, "layernorm_backward", weight_outside, "pooled"),
    Bug("groupnorm-statistics-constant", "Mean and variance of a group are treated as constants.",
        ("GroupNorm",), "groupnorm_backward", group_statistics_constant, "unnormalised"),
]
