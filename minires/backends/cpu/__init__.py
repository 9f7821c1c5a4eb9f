"""The CPU back end: Numba kernels for what costs time; BLAS, through NumPy, for the one small matrix product.

Reading order: microkernel (the inner loop), geometry (which elements it multiplies), conv, norm, pool, elementwise, plain;
and simd (vectors as values), host (how wide they are), arena (memory that is used again), threads (who computes what),
launches (all of it again, without Python), jit and ahead (how and when kernels are compiled), llvm and numba_private
(phrases of the compiler's language, and what is assumed of it), environment (what is read before the compiler is there).
"""
import sys

from minires.backends.cpu.environment import MOST_THREADS  # before anything that imports Numba

# isort: split
from minires.backends.composed import digest, folded
from minires.backends.cpu import jit, numba_private, threads
from minires.backends.cpu.ahead import ahead
from minires.backends.cpu.algorithm import kernel_name as kernel_name  # of no operator
from minires.backends.cpu.convolution import (
    add_relu_conv2d_moments,
    conv2d_bias_relu,
    conv2d_forward,
    conv2d_input_gradient,
    conv2d_moments,
    conv2d_unit_gradient,
    conv2d_weight_gradient,
    prepare,
)
from minires.backends.cpu.convolution import in_place as in_place  # of no operator
from minires.backends.cpu.elementwise import (
    adamw_update,
    add,
    add_into,
    dropout_backward,
    dropout_forward,
    relu_backward,
    relu_forward,
    sgd_update,
    zero,
)
from minires.backends.cpu.fused import (
    add_relu_gradient,
    normalise_add_relu,
)
from minires.backends.cpu.launches import Launches as Launches  # of no operator
from minires.backends.cpu.norm import (
    batch_moments,
    batchnorm_apply,
    batchnorm_backward,
    batchnorm_coefficients,
    batchnorm_forward,
    channel_sum,
    gradient_sums,
    layernorm_backward,
    layernorm_forward,
    normalisation_scale,
    normalise,
    normalise_gradient,
    update_running,
)
from minires.backends.cpu.plain import (
    dropout_keep,
    linear_backward,
    linear_forward,
    mse_backward,
    mse_forward,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
)
from minires.backends.cpu.pool import (
    avgpool2d_backward,
    avgpool2d_forward,
    global_avgpool_backward,
    global_avgpool_forward,
    maxpool2d_backward,
    maxpool2d_forward,
    pad_shortcut_backward,
    pad_shortcut_forward,
)
from minires.backends.cpu.threads import here
from minires.errors import UserError

__all__ = [
    "adamw_update",
    "add",
    "add_into",
    "add_relu_conv2d_moments",
    "add_relu_gradient",
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


def set_num_threads(count):
    """Use `count` threads; UserError unless 1 <= count <= the cores of this process (or NUMBA_NUM_THREADS)."""
    if not isinstance(count, int) or not 1 <= count <= MOST_THREADS:
        raise UserError(f"cannot use {count!r} threads: choose 1 to {MOST_THREADS}, the cores of this process")
    threads.pool.threads = count


_announced = False


def _announce(function):
    """Say once a process that kernels are being compiled: it takes seconds, and only the first time on a machine."""
    global _announced
    if jit.kept and function.__module__.startswith("minires."):  # else it was said that they are not
        ahead.compiling()
        if not _announced:
            _announced = True
            print("minires: compiling CPU kernels for this machine (cached for the next time)", file=sys.stderr)


numba_private.on_compile(_announce)
