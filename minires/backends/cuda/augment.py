"""Batches from a data set that lies on the device as bytes: kernels/augment.cu."""
import cupy

from minires.backends.cuda.compiler import kernel, launch_over


def gather_batch(images, order, table, padding=0, top=None, left=None, mirrored=None):
    """images: (M, H, W, C) uint8; order: (N,) int64, which of them -> (N, H, W, C) of the table's dtype.

    table: (C, 256), what a byte becomes. top, left: (N,) int32, the crop's corner in the image padded by `padding` black
    pixels; mirrored: (N,) bool; None for neither crop nor flip. All on the device; nothing waits for it.
    """
    (N,), (H, W, C) = order.shape, images.shape[1:]
    y = cupy.empty((N, H, W, C), table.dtype)
    launch_over(y.size, kernel("augment.cu", "gather_batch", table.dtype),
                (images, order, top, left, mirrored, table, y, y.size, H, W, C, cupy.int32(padding)))
    return y
