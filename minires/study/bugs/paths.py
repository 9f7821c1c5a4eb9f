"""Bugs of residual blocks: where two paths part and meet, in layers and in plans."""
import numpy as np

from minires.backends import ops_for
from minires.study.bugs.inject import Bug

# --- y = relu(F(x) + S(x)), g = relu'(F + S) * dy, dx = F.backward(g) + S.backward(g): wrong(right, block, dy) -> dx ---


def shortcut_forgotten(right, block, dy):
    return block.branch_backward(block.relu.backward(dy))


def branch_forgotten(right, block, dy):
    g = block.relu.backward(dy)
    block.branch_backward(g)
    return block.shortcut.backward(g)


def shortcut_before_relu(right, block, dy):
    g = block.relu.backward(dy)
    return ops_for(g).add(block.branch_backward(g), block.shortcut.backward(dy))


def last_relu_forgotten(right, block, dy):
    block.relu.backward(dy)
    return ops_for(dy).add(block.branch_backward(dy), block.shortcut.backward(dy))


def paths_averaged(right, block, dy):
    g = block.relu.backward(dy)
    return ops_for(g).add(block.branch_backward(g), block.shortcut.backward(g)) / 2


# --- y = F(x) + S(x): wrong(right, layer, dy) -> dx -------------------------------------------------------------------


def shortcut_of_the_sum_forgotten(right, layer, dy):
    dx = layer.branch.backward(dy)
    layer.shortcut.backward(dy)
    return dx


# --- shortcut A: wrong(right, dy, x_shape, stride) -> dx --------------------------------------------------------------


def first_channels(right, dy, x_shape, stride):
    dx = np.zeros(x_shape, dy.dtype)
    dx[:, ::stride[0], ::stride[1]] = dy[..., :x_shape[3]]
    return dx


def skipped_pixels_filled(right, dy, x_shape, stride):
    before = (dy.shape[3] - x_shape[3]) // 2
    spread = dy[..., before:before + x_shape[3]].repeat(stride[0], 1).repeat(stride[1], 2)
    return np.ascontiguousarray(spread[:, :x_shape[1], :x_shape[2]])


# --- operators that plans put in the place of several: see minires.backends.composed ---------------------------------


def sums_before_mask(right, dy, y, z, mean):
    ops = ops_for(dy)
    return right(dy, y, z, mean)[0], ops.channel_sum(dy), ops.channel_sum(dy * (z - mean))


def constant_dropped(right, *arguments):
    from_dy, from_x, constant, dweight, dbias = right(*arguments)
    return from_dy, from_x, constant * 0, dweight, dbias


def residual_not_added(right, *arguments):
    return right(*arguments[:8], None, *arguments[9:])


BLOCKS, SHORTCUT = ("BasicBlock", "Bottleneck"), ("PaddedShortcut",)
PLANNED = ("BasicBlock", "Bottleneck", "PlainBlock")

BUGS = [
    Bug("block-shortcut-forgotten", "dx is the branch's alone: the shortcut is missing on the way back.",
        BLOCKS, "backward", shortcut_forgotten),
    Bug("block-branch-forgotten", "dx is the shortcut's alone: the branch learns, but passes nothing on.",
        BLOCKS, "backward", branch_forgotten),
    Bug("block-shortcut-before-relu", "The shortcut gets dy as it comes, before the last ReLU's mask.",
        BLOCKS, "backward", shortcut_before_relu),
    Bug("block-last-relu-forgotten", "The ReLU behind the sum is left out of the way back.",
        BLOCKS, "backward", last_relu_forgotten),
    Bug("block-paths-averaged", "The two paths' gradients are averaged where they add up.",
        BLOCKS, "backward", paths_averaged),
    Bug("residual-shortcut-forgotten", "dx is the branch's alone; what the shortcut passes back is dropped.",
        ("Residual",), "backward", shortcut_of_the_sum_forgotten, "unnormalised"),
    Bug("shortcut-first-channels", "The gradient is read off the first channels; forward put x into the middle ones.",
        SHORTCUT, "pad_shortcut_backward", first_channels),
    Bug("shortcut-skipped-pixels-filled", "dy is repeated into the pixels that forward skipped, which get none.",
        SHORTCUT, "pad_shortcut_backward", skipped_pixels_filled),
    Bug("planned-sums-before-mask", "The normalisation's two sums are taken of dy, before the last ReLU's mask.",
        PLANNED, "add_relu_gradient", sums_before_mask, "residual, planned", planned=True),
    Bug("planned-constant-dropped", "The constant of the collected normalisation, its term through the mean, is left out.",
        PLANNED, "batchnorm_coefficients", constant_dropped, "residual, planned", planned=True),
    Bug("planned-shortcut-not-added", "The convolution that ends the way back does not add the shortcut's gradient.",
        PLANNED, "conv2d_unit_gradient", residual_not_added, "residual, planned", planned=True),
]
