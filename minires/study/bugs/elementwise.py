"""Bugs of the rectifier, dropout, the linear layer and the losses."""
import numpy as np

from minires.backends import ops_for
from minires.study.bugs.inject import Bug

# --- ReLU: wrong(right, dy, y) -> dx ----------------------------------------------------------------------------------


def mask_from_dy(right, dy, y):
    return right(dy, dy)


def mask_forgotten(right, dy, y):
    return dy.copy()


def masked_in_place(right, dy, y):
    dy[...] = right(dy, y)
    return dy


# --- ReLU's relatives: wrong(right, dy, x) -> dx; leaky ReLU's wrong(right, dy, y, slope) ------------------------------


def slope_forgotten(right, dy, y, slope):
    return right(dy, y, 0.0)


def gate_alone(forward):
    """dx = dy * gate(x), y = x gate(x): the product rule's second term is left out."""
    def wrong(right, dy, x):
        return dy * (getattr(ops_for(x), forward)(x) / x)
    return wrong


# --- a learned factor or summand: wrong(right, layer, dy) -> dx -------------------------------------------------------


def factor_forgotten(right, layer, dy):
    right(layer, dy)
    return dy


def sum_over_the_batch_alone(right, layer, dy):
    before = layer.bias.grad.copy()
    dx = right(layer, dy)
    layer.bias.grad[...] = before + (layer.bias.grad - before) / (dy[0].size // dy.shape[-1])
    return dx


# --- dropout ----------------------------------------------------------------------------------------------------------


def mask_redrawn(right, layer, dy):
    (keep,) = layer._kept
    dx = right(layer, dy)
    if keep is None:
        return dx
    redrawn = layer.rng.random(dy.shape, np.float32) >= layer.p
    return ops_for(dy).dropout_backward(dy, redrawn, layer.p)


def not_rescaled(right, dy, keep, p):
    return dy * keep


# --- linear: wrong(right, dy, x, weight) -> dx, dweight, dbias ---------------------------------------------------------


def weight_reshaped(right, dy, x, weight):
    dx, _, dbias = right(dy, x, weight)
    return dx, (dy.T @ x).reshape(weight.shape), dbias


def bias_averaged(right, dy, x, weight):
    dx, dweight, dbias = right(dy, x, weight)
    return dx, dweight, dbias / len(dy)


def weight_averaged(right, dy, x, weight):
    dx, dweight, dbias = right(dy, x, weight)
    return dx, dweight / len(dy), dbias


# --- losses -----------------------------------------------------------------------------------------------------------


def not_averaged(right, softmax, target, label_smoothing):
    return right(softmax, target, label_smoothing) * len(softmax)


def target_not_subtracted(right, softmax, target, label_smoothing):
    return softmax / len(softmax)


def softmax_twice(right, softmax, target, label_smoothing):
    dy = right(softmax, target, label_smoothing)
    return softmax * (dy - (softmax * dy).sum(1, keepdims=True))


def smoothing_forgotten(right, softmax, target, label_smoothing):
    return right(softmax, target, 0.0)


def two_lost(right, y, target):
    return right(y, target) / 2


def averaged_over_rows_alone(right, y, target):
    return right(y, target) * (y.size // len(y))


RELU, LINEAR, CROSS, SQUARES = ("ReLU",), ("Linear",), ("CrossEntropyLoss",), ("MSELoss",)
CROSS_OPERATOR = "softmax_cross_entropy_backward"

BUGS = [
    Bug("relu-mask-from-dy", "The mask is dy > 0, the gradient's own sign, where it should be y > 0.",
        RELU, "relu_backward", mask_from_dy),
    Bug("relu-mask-forgotten", "dy is passed on as if ReLU were the identity.", RELU, "relu_backward", mask_forgotten),
    Bug("relu-writes-into-dy", "dy is masked in place, and it belongs to the caller.",
        RELU, "relu_backward", masked_in_place),
    Bug("leakyrelu-slope-forgotten", "What is negative gets no gradient, as in ReLU.",
        ("LeakyReLU",), "leaky_relu_backward", slope_forgotten, "activations"),
    Bug("gelu-gate-constant", "dx = dy Φ(x): the gate Φ(x) is taken as a constant, its own slope left out.",
        ("GELU",), "gelu_backward", gate_alone("gelu_forward"), "activations"),
    Bug("silu-gate-constant", "dx = dy * sigmoid(x): the gate is taken as a constant, its own slope left out.",
        ("SiLU",), "silu_backward", gate_alone("silu_forward"), "activations"),
    Bug("scale-factor-forgotten", "dx is dy: the factor is learned, and its own effect on x's gradient forgotten.",
        ("Scale",), "backward", factor_forgotten, "unnormalised"),
    Bug("bias-averaged-over-space", "dbias is a sum over the batch of means over the pixels.",
        ("Bias",), "backward", sum_over_the_batch_alone, "unnormalised"),
    Bug("dropout-mask-redrawn", "Backward draws a mask of its own.", ("Dropout",), "backward", mask_redrawn, "pooled"),
    Bug("dropout-not-rescaled", "Forward divides by 1 - p, backward does not.",
        ("Dropout",), "dropout_backward", not_rescaled, "pooled"),
    Bug("linear-weight-reshaped", "dweight is dy^T x, reshaped until it fits, where it should be x^T dy.",
        LINEAR, "linear_backward", weight_reshaped),
    Bug("linear-weight-averaged", "dweight is averaged over the batch, which the loss has done already.",
        LINEAR, "linear_backward", weight_averaged),
    Bug("linear-bias-averaged", "dbias is dy.mean(0) where the formula says dy.sum(0).",
        LINEAR, "linear_backward", bias_averaged),
    Bug("crossentropy-not-averaged", "Forward is a mean over the batch, backward a sum: the division by N is forgotten.",
        CROSS, CROSS_OPERATOR, not_averaged),
    Bug("crossentropy-target-not-subtracted", "dy is p / N: the one at the target is never subtracted.",
        CROSS, CROSS_OPERATOR, target_not_subtracted),
    Bug("crossentropy-softmax-twice", "(p - q) / N, the logits' gradient already, is sent through the softmax once more.",
        CROSS, CROSS_OPERATOR, softmax_twice),
    Bug("crossentropy-smoothing-forgotten", "Forward smooths the labels, backward subtracts the plain ones.",
        CROSS, CROSS_OPERATOR, smoothing_forgotten, "residual, smoothed labels"),
    Bug("mse-two-lost", "The 2 of the square's derivative is forgotten.", SQUARES, "mse_backward", two_lost,
        "residual, squared error"),
    Bug("mse-averaged-over-rows", "Forward is a mean over all N * K numbers, backward divides by N alone.",
        SQUARES, "mse_backward", averaged_over_rows_alone, "residual, squared error"),
]
