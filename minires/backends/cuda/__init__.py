"""The CUDA back end: kernels in kernels/*.cu, launched through CuPy; products of wide matrices by cuBLAS.

What each operator computes, and its arguments, is said in minires.backends.reference and minires.backends.composed.

Reading order: compiler (from a name to a launch), kernels/common.cuh, then each launcher beside its .cu file. Arrays are
CuPy's, in memory of CuPy's pool; launches captures what a program runs as CUDA graphs. Nothing here waits for the device:
results, losses too, stay on it until they are read.
"""
import cupy

from minires.backends.composed import add_into, digest, prepare, zero
from minires.backends.cuda.conv import conv2d_forward, conv2d_input_gradient, conv2d_weight_gradient
from minires.backends.cuda.elementwise import (
    add,
    dropout_backward,
    dropout_forward,
    dropout_keep,
    relu_backward,
    relu_forward,
)
from minires.backends.cuda.fused import (
    add_relu_conv2d_moments,
    add_relu_gradient,
    batchnorm_coefficients,
    conv2d_bias_relu,
    conv2d_moments,
    conv2d_unit_gradient,
    folded,
    normalise,
    normalise_add_relu,
    normalise_gradient,
)
from minires.backends.cuda.launches import Launches as Launches  # of no operator
from minires.backends.cuda.launches import here
from minires.backends.cuda.losses import (
    linear_backward,
    linear_forward,
    mse_backward,
    mse_forward,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
)
from minires.backends.cuda.norm import (
    batch_moments,
    batchnorm_apply,
    batchnorm_backward,
    batchnorm_forward,
    channel_sum,
    gradient_sums,
    layernorm_backward,
    layernorm_forward,
    normalisation_scale,
    update_running,
)
from minires.backends.cuda.optim import adamw_update, sgd_update
from minires.backends.cuda.pool import (
    avgpool2d_backward,
    avgpool2d_forward,
    global_avgpool_backward,
    global_avgpool_forward,
    maxpool2d_backward,
    maxpool2d_forward,
    pad_shortcut_backward,
    pad_shortcut_forward,
)

__all__ = [
    "adamw_update",
    "add",
    "add_into",
    "add_relu_conv2d_moments",
    "add_relu_gradient",
    "asarray",
    "avgpool2d_backward",
    "avgpool2d_forward",
    "batch_moments",
    "batchnorm_apply",
    "batchnorm_backward",
    "batchnorm_coefficients",
    "batchnorm_forward",
    "channel_sum",
    "conv2d_bias_relu",
    "conv2d_forward",
    "conv2d_input_gradient",
    "conv2d_moments",
    "conv2d_unit_gradient",
    "conv2d_weight_gradient",
    "digest",
    "dropout_backward",
    "dropout_forward",
    "dropout_keep",
    "folded",
    "global_avgpool_backward",
    "global_avgpool_forward",
    "gradient_sums",
    "here",
    "layernorm_backward",
    "layernorm_forward",
    "linear_backward",
    "linear_forward",
    "maxpool2d_backward",
    "maxpool2d_forward",
    "mse_backward",
    "mse_forward",
    "normalisation_scale",
    "normalise",
    "normalise_add_relu",
    "normalise_gradient",
    "pad_shortcut_backward",
    "pad_shortcut_forward",
    "prepare",
    "relu_backward",
    "relu_forward",
    "sgd_update",
    "softmax_cross_entropy_backward",
    "softmax_cross_entropy_forward",
    "update_running",
    "zero",
]


def asarray(array):
    """The array on the current device: copied there, or as it is when it is a CuPy array already."""
    return cupy.asarray(array)
