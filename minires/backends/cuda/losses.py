"""The linear layer, a convolution of images of one pixel where it is narrow, else cuBLAS's; and the losses, losses.cu.

Against shares of classes the loss is CuPy's, by `minires.backends.soft_targets`.
"""
import cupy

from minires.backends import soft_targets
from minires.backends.cuda import conv
from minires.backends.cuda.compiler import MOST_BLOCKS, kernel, launch_over
from minires.backends.cuda.norm import BLOCK, WARP, channel_sum

_FILE = "losses.cu"
_POINTWISE = (1, 1), (0, 0), (1, 1)  # stride, padding, dilation
ELEMENTS_OF_A_BLOCK = 4096  # of an array that is added up


def _pixels(x):
    """The rows of x: (N, C) as images of one pixel."""
    return x.reshape(len(x), 1, 1, -1)


def linear_forward(x, weight, bias):
    if max(weight.shape) <= conv.NARROW:
        return conv.conv2d_forward(_pixels(x), weight[None, None], bias, *_POINTWISE).reshape(len(x), -1)
    y = cupy.matmul(x, weight)
    if bias is not None:
        y += bias
    return y


def linear_backward(dy, x, weight):
    if max(weight.shape) > conv.NARROW:
        return cupy.matmul(dy, weight.T), cupy.matmul(x.T, dy), channel_sum(dy)
    images, dy_images = _pixels(x), _pixels(dy)
    dx = conv.conv2d_input_gradient(dy_images, weight[None, None], images.shape, *_POINTWISE)
    dweight = conv.conv2d_weight_gradient(dy_images, images, (1, 1), *_POINTWISE)
    return dx.reshape(x.shape), dweight.reshape(weight.shape), channel_sum(dy)


def _sum(parts, factor):
    """The sum of `parts` times `factor`, as an array of no dimensions on the device."""
    total = cupy.empty((), parts.dtype)
    kernel(_FILE, "scaled_sum", parts.dtype)((1,), (BLOCK,), (parts, total, factor, parts.size))
    return total


def softmax_cross_entropy_forward(logits, target, label_smoothing):
    logits, target, (N, K) = cupy.ascontiguousarray(logits), cupy.ascontiguousarray(target, cupy.int64), logits.shape
    softmax, losses = cupy.empty((N, K), logits.dtype), cupy.empty(N, logits.dtype)
    launch_over(N * WARP, kernel(_FILE, "softmax_rows", logits.dtype),
                (logits, target, softmax, losses, float(label_smoothing), N, K))
    return _sum(losses, 1 / N), softmax


def softmax_cross_entropy_backward(softmax, target, label_smoothing):
    softmax, target, (N, K) = cupy.ascontiguousarray(softmax), cupy.ascontiguousarray(target, cupy.int64), softmax.shape
    dlogits = cupy.empty((N, K), softmax.dtype)
    launch_over(N * K, kernel(_FILE, "softmax_gradient", softmax.dtype),
                (softmax, target, dlogits, float(label_smoothing), N, K))
    return dlogits


def soft_cross_entropy_forward(logits, q):
    return soft_targets.soft_cross_entropy_forward(cupy.ascontiguousarray(logits), cupy.ascontiguousarray(q))


def soft_cross_entropy_backward(softmax, q):
    return soft_targets.soft_cross_entropy_backward(cupy.ascontiguousarray(softmax), cupy.ascontiguousarray(q))


def mse_forward(y, target):
    y, target = cupy.ascontiguousarray(y), cupy.ascontiguousarray(target)
    blocks = min(-(-y.size // ELEMENTS_OF_A_BLOCK), MOST_BLOCKS)
    parts = cupy.empty(blocks, y.dtype)
    kernel(_FILE, "squared_differences", y.dtype)((blocks,), (BLOCK,), (y, target, parts, y.size))
    return _sum(parts, 1 / y.size)


def mse_backward(y, target):
    y, target, dy = cupy.ascontiguousarray(y), cupy.ascontiguousarray(target), cupy.empty(y.shape, y.dtype)
    launch_over(y.size, kernel(_FILE, "difference", y.dtype), (y, target, dy, 2 / y.size, y.size))
    return dy
