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
