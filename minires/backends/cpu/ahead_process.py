"""The second process of ahead.py: compiles the gradient kernels of the units that its standard input names."""
import json
import sys

import numpy as np

from minires.backends.cpu.fused import conv2d_unit_gradient
from minires.backends.reference import output_size


def compile_gradient(x_shape, dtype, weight_shape, stride, padding):
    """Compute the weight gradient of such a unit, of one image of zeros: dx would come from the same kernel."""
    KH, KW, C, O = weight_shape
    size = (output_size(*axis, 1) for axis in zip(x_shape[1:3], (KH, KW), stride, padding, strict=True))
    x, g = np.zeros((1, *x_shape[1:]), dtype), np.zeros((1, *size, O), dtype)
    of_channels = np.zeros(O, dtype)
    conv2d_unit_gradient(g, g, (of_channels,) * 4, x, None, np.zeros(weight_shape, dtype), stride, padding, None, False)


if __name__ == "__main__":
    for line in sys.stdin:
        shape, dtype, weight_shape, stride, padding = json.loads(line)
        compile_gradient(tuple(shape), np.dtype(dtype), tuple(weight_shape), tuple(stride), tuple(padding))
