"""Pooling and the padded shortcut: kernels/pool.cu."""
import cupy

from minires.backends.cuda.compiler import kernel, launch_over
from minires.backends.cuda.norm import Columns
from minires.backends.reference import output_size

_FILE = "pool.cu"
MOST_IMAGES = 65535  # of one launch with a row of blocks an image: what a grid may have along its second axis


def _launch(name, result, arguments):
    launch_over(result.size, kernel(_FILE, name, result.dtype), arguments)


def _ints(*pairs):
    return [cupy.int32(value) for pair in pairs for value in pair]


def maxpool2d_forward(x, kernel_size, stride, padding, dilation):
    x, (N, H, W, C) = cupy.ascontiguousarray(x), x.shape
    OH, OW = (output_size(*a) for a in zip((H, W), kernel_size, stride, padding, dilation, strict=True))
    y, argmax = cupy.empty((N, OH, OW, C), x.dtype), cupy.empty((N, OH, OW, C), cupy.int32)
    _launch("maxpool_forward", y, (x, y, argmax, y.size, H, W, C, OH, OW, *_ints(kernel_size, stride, padding, dilation)))
    return y, argmax


def maxpool2d_backward(dy, argmax, x_shape, kernel_size, stride, padding, dilation):
    dy, argmax, dx = cupy.ascontiguousarray(dy), cupy.ascontiguousarray(argmax), cupy.empty(x_shape, dy.dtype)
    _launch("maxpool_backward", dx, (dy, argmax, dx, dx.size, *x_shape[1:], *dy.shape[1:3],
                                     *_ints(kernel_size, stride, padding, dilation)))
    return dx


def avgpool2d_forward(x, kernel_size, stride, padding):
    x, (N, H, W, C) = cupy.ascontiguousarray(x), x.shape
    OH, OW = (output_size(*a, 1) for a in zip((H, W), kernel_size, stride, padding, strict=True))
    y = cupy.empty((N, OH, OW, C), x.dtype)
    _launch("avgpool_forward", y, (x, y, y.size, H, W, C, OH, OW, *_ints(kernel_size, stride, padding)))
    return y


def avgpool2d_backward(dy, x_shape, kernel_size, stride, padding):
    dy, dx = cupy.ascontiguousarray(dy), cupy.empty(x_shape, dy.dtype)
    _launch("avgpool_backward", dx, (dy, dx, dx.size, *x_shape[1:], *dy.shape[1:3], *_ints(kernel_size, stride, padding)))
    return dx


def global_avgpool_forward(x):
    x, (N, H, W, C) = cupy.ascontiguousarray(x), x.shape
    y = cupy.empty((N, C), x.dtype)
    for first in range(0, N, MOST_IMAGES):
        some = slice(first, first + MOST_IMAGES)
        Columns(x[some], span=H * W).launch("image_means", x.dtype, (x[some], y[some]), _FILE)
    return y


def global_avgpool_backward(dy, x_shape):
    dy, dx, (_, H, W, C) = cupy.ascontiguousarray(dy), cupy.empty(x_shape, dy.dtype), x_shape
    _launch("spread_means", dx, (dy, dx, dx.size, C, H * W))
    return dx


def pad_shortcut_forward(x, out_channels, stride):
    x, (N, H, W, C) = cupy.ascontiguousarray(x), x.shape
    OH, OW = -(-H // stride[0]), -(-W // stride[1])
    y = cupy.empty((N, OH, OW, out_channels), x.dtype)
    before = (out_channels - C) // 2
    _launch("pad_shortcut_forward", y, (x, y, y.size, H, W, C, OH, OW, out_channels, before, *_ints(stride)))
    return y


def pad_shortcut_backward(dy, x_shape, stride):
    dy, dx = cupy.ascontiguousarray(dy), cupy.empty(x_shape, dy.dtype)
    _launch("pad_shortcut_backward", dx, (dy, dx, dx.size, *x_shape[1:], *dy.shape[1:], (dy.shape[3] - x_shape[3]) // 2,
                                          *_ints(stride)))
    return dx
