"""Convolution on the device: which of kernels/conv.cu's two ways computes it, and the launches.

Narrow images, up to 64 channels in and out (all of the CIFAR networks): implicit matrix products in kernels of our own.
Wider ones, and strides of more phases than a grid has room for: im2col and cuBLAS, in slices of as many images as fit into
WORKSPACE bytes of im2col matrix (one at least).

`prologue` is None or (mean, scale, shift), each (C,): then the convolution reads relu((x - mean) * scale + shift) for x.
"""
from functools import cache

import cupy
import numpy as np

from minires.backends.cuda.compiler import kernel, launch_over
from minires.backends.reference import output_size

NARROW = 64  # channels
WORKSPACE = 256 << 20  # bytes
TILES = {16: 256, 32: 128, 64: 64}  # {BN: BM} of a block of 256 threads; BN is the least that holds the result's channels
WEIGHT_TILES = {16: 160, 32: 96, 64: 64}  # CIFAR's 3x3 weights have 144, 288 and 576 rows: 90, 100 and 100 % of such tiles
MOST_PHASES = 65535  # SH * SW, each a layer of an input gradient's grid: what a grid may have along its third axis
MOST_SPLITS = 512  # of the pixels that a weight gradient sums over, each with a partial result of its own
_FILE = "conv.cu"


class Geometry:
    """The integers of a convolution: `sizes` in the order of conv.cu's GEOMETRY, and what follows from them."""

    def __init__(self, x_shape, kernel_size, out_channels, stride, padding, dilation):
        self.N, self.H, self.W, self.C = self.x_shape = x_shape
        self.kernel_size, self.O, self.stride = kernel_size, out_channels, stride
        along = zip((self.H, self.W), kernel_size, stride, padding, dilation, strict=True)
        self.OH, self.OW = (output_size(*arguments) for arguments in along)
        sizes = (self.H, self.W, self.C, self.OH, self.OW, self.O, *kernel_size, *stride, *padding, *dilation)
        self.sizes = (np.int32(self.N), *map(np.int32, sizes))
        self.rows, self.depth = self.N * self.OH * self.OW, kernel_size[0] * kernel_size[1] * self.C
        self.y_shape = (self.N, self.OH, self.OW, self.O)
        self.narrow = max(self.C, self.O) <= NARROW and stride[0] * stride[1] <= MOST_PHASES
        self.pointwise = (kernel_size, stride, padding) == ((1, 1), (1, 1), (0, 0))  # patches are the image itself

    def of_images(self, count):
        """`sizes` for a slice of `count` images."""
        return (np.int32(count), *self.sizes[1:])

    def slices(self, dtype):
        """(first, last) of the images that are done at a time."""
        images = max(1, WORKSPACE // (self.OH * self.OW * self.depth * np.dtype(dtype).itemsize))
        return [(first, min(first + images, self.N)) for first in range(0, self.N, images)]


@cache
def geometry_of(x_shape, kernel_size, out_channels, stride, padding, dilation):
    """The Geometry of these arguments, made once."""
    return Geometry(x_shape, kernel_size, out_channels, stride, padding, dilation)


def _tile(columns, tiles=TILES):
    """(BM, BN) of the tiles for a result of so many channels."""
    BN = next((BN for BN in tiles if columns <= BN), max(tiles))
    return tiles[BN], BN


def _statistics(prologue):
    """The prologue's arrays as arguments of a kernel."""
    return (None, None, None) if prologue is None else tuple(map(cupy.ascontiguousarray, prologue))


def _both(parts):
    return (None, None) if parts is None else parts


def _blocks(size, tile):
    return -(-size // tile)


# --- y = a(x) * weight ------------------------------------------------------------------------------------------------


def product(x, prologue, weight, geometry, with_moments=False):
    """-> y: (N, OH, OW, O), and for narrow images with `with_moments` the means and squared differences of each tile of
    BM pixels, (2, O, tiles), else None; and BM."""
    x, weight, y = cupy.ascontiguousarray(x), cupy.ascontiguousarray(weight), cupy.empty(geometry.y_shape, x.dtype)
    if not geometry.narrow:
        _wide_product(x, prologue, weight, y, geometry)
        return y, None, None
    BM, BN = _tile(geometry.O)
    tiles = _blocks(geometry.rows, BM)
    parts = cupy.empty((2, geometry.O, tiles), x.dtype) if with_moments else None
    kernel(_FILE, "conv2d_forward", x.dtype, BM, BN)(
        (tiles, _blocks(geometry.O, BN)), (BM * BN // 16,),
        (x, *_statistics(prologue), weight, y, *_both(parts), *geometry.sizes))
    return y, parts, BM


def _wide_product(x, prologue, weight, y, geometry):
    matrix = weight.reshape(-1, geometry.O)
    for images, patches in _patches(x, prologue, geometry):
        cupy.matmul(patches, matrix, out=y[images].reshape(-1, geometry.O))


def _patches(x, prologue, geometry):
    """Yield slices of images and their im2col matrices, (images * OH * OW, KH * KW * C), one after another in one memory."""
    if geometry.pointwise and prologue is None:
        yield slice(0, geometry.N), x.reshape(-1, geometry.C)
        return
    slices, pixels = geometry.slices(x.dtype), geometry.OH * geometry.OW
    memory, statistics = cupy.empty((slices[0][1] * pixels, geometry.depth), x.dtype), _statistics(prologue)
    copy = kernel(_FILE, "im2col", x.dtype)
    for first, last in slices:
        rows = (last - first) * pixels
        warps = rows * geometry.kernel_size[0] * geometry.kernel_size[1]
        launch_over(32 * warps, copy, (x[first:last], *statistics, memory, *geometry.of_images(last - first)))
        yield slice(first, last), memory[:rows]


def conv2d_forward(x, weight, bias, stride, padding, dilation):
    """See reference.conv2d_forward."""
    geometry = geometry_of(x.shape, weight.shape[:2], weight.shape[3], stride, padding, dilation)
    y, _, _ = product(x, None, weight, geometry)
    return y if bias is None else add_bias_relu(y, bias, None, False)


def add_bias_relu(y, bias, residual, relu):
    """relu(y + bias + residual) in the place of y; bias and residual may be None, relu False leaves the relu out."""
    bias, residual = (None if term is None else cupy.ascontiguousarray(term) for term in (bias, residual))
    launch_over(y.size, kernel("fused.cu", "add_bias_relu", y.dtype),
                (y, bias, residual, y, np.int64(y.size), np.int32(y.shape[-1]), np.bool_(relu)))
    return y


# --- dx = dy * weight^T -----------------------------------------------------------------------------------------------


def conv2d_input_gradient(dy, weight, x_shape, stride, padding, dilation):
    """See reference.conv2d_input_gradient."""
    geometry = geometry_of(tuple(x_shape), weight.shape[:2], weight.shape[3], stride, padding, dilation)
    return input_gradient(dy, weight, geometry)[0]


def input_gradient(dy, weight, geometry, residual=None, x=None, prologue=None):
    """-> dx: (N, H, W, C), with `residual` (or None) added, and with a prologue the two sums of each tile, (2, C, tiles),
    else None.

    Narrow images only: with x and a prologue dx then passes the relu behind that prologue, and its two sums are taken.
    """
    dy, weight = cupy.ascontiguousarray(dy), cupy.ascontiguousarray(weight)
    dx = cupy.empty(geometry.x_shape, dy.dtype)
    if not geometry.narrow:
        _wide_input_gradient(dy, weight, dx, geometry)
        return dx if residual is None else add_bias_relu(dx, None, residual, False), None
    (BM, BN), (SH, SW) = _tile(geometry.C), geometry.stride
    residual, x = (None if image is None else cupy.ascontiguousarray(image) for image in (residual, x))
    tiles = _blocks(geometry.N * _blocks(geometry.H, SH) * _blocks(geometry.W, SW), BM)
    parts = cupy.empty((2, geometry.C, tiles * SH * SW), dy.dtype) if prologue else None
    kernel(_FILE, "conv2d_input_gradient", dy.dtype, BM, BN)(
        (tiles, _blocks(geometry.C, BN), SH * SW), (BM * BN // 16,),
        (dy, weight, residual, x, *_statistics(prologue), dx, *_both(parts), *geometry.sizes))
    return dx, parts


def _wide_input_gradient(dy, weight, dx, geometry):
    matrix, pixels = weight.reshape(-1, geometry.O).T, geometry.OH * geometry.OW
    if geometry.pointwise:
        cupy.matmul(dy.reshape(-1, geometry.O), matrix, out=dx.reshape(-1, geometry.C))
        return
    slices, add = geometry.slices(dy.dtype), kernel(_FILE, "col2im", dy.dtype)
    memory = cupy.empty((slices[0][1] * pixels, geometry.depth), dy.dtype)
    for first, last in slices:
        patches = memory[:(last - first) * pixels]
        cupy.matmul(dy[first:last].reshape(-1, geometry.O), matrix, out=patches)
        warps = (last - first) * geometry.H * geometry.W
        launch_over(32 * warps, add, (patches, dx[first:last], *geometry.of_images(last - first)))


# --- dweight = a(x)^T * dy --------------------------------------------------------------------------------------------


def conv2d_weight_gradient(dy, x, kernel_size, stride, padding, dilation):
    """See reference.conv2d_weight_gradient."""
    geometry = geometry_of(x.shape, tuple(kernel_size), dy.shape[3], stride, padding, dilation)
    return weight_gradient(dy, x, None, geometry)


def weight_gradient(dy, x, prologue, geometry):
    """-> dweight: (KH, KW, C, O)."""
    dy, x = cupy.ascontiguousarray(dy), cupy.ascontiguousarray(x)
    shape = (*geometry.kernel_size, geometry.C, geometry.O)
    if not geometry.narrow:
        dweight = None
        for images, patches in _patches(x, prologue, geometry):
            part = patches.T @ dy[images].reshape(-1, geometry.O)
            dweight = part if dweight is None else dweight + part
        return cupy.ascontiguousarray(dweight).reshape(shape)
    BM, BN = _tile(geometry.O, WEIGHT_TILES)
    size = geometry.depth * geometry.O
    most = max(1, min(MOST_SPLITS, WORKSPACE // (size * dy.dtype.itemsize)))
    split = max(256, _blocks(geometry.rows, most))
    splits = _blocks(geometry.rows, split)
    partial = cupy.empty((splits, size), dy.dtype)
    kernel(_FILE, "conv2d_weight_gradient", dy.dtype, BM, BN)(
        (_blocks(geometry.depth, BM), _blocks(geometry.O, BN), splits), (BM * BN // 16,),
        (dy, x, *_statistics(prologue), partial, geometry.sizes[0], np.int32(split), *geometry.sizes[1:]))
    dweight = cupy.empty(size, dy.dtype)
    kernel(_FILE, "sum_splits", dy.dtype)((_blocks(size, 32),), (256,), (partial, dweight, splits, size))
    return dweight.reshape(shape)
