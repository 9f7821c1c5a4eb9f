"""The CUDA back end: kernels in kernels/*.cu, launched through CuPy; products of wide matrices by cuBLAS.

What each operator computes, and its arguments, is said in minires.backends.reference and minires.backends.composed.

Reading order: compiler (from a name to a launch), kernels/common.cuh, then each launcher beside its .cu file. Arrays are
CuPy's, in memory of CuPy's pool; launches captures what a program runs as CUDA graphs. Nothing here waits for the device:
results, losses too, stay on it until they are read.
"""
import cupy

from minires.backends import composed, reference
from minires.backends.cuda import conv, elementwise, fused, losses, norm, optim, pool
from minires.backends.cuda.launches import Launches as Launches  # of no operator
from minires.backends.cuda.launches import here as here

globals().update(reference.operators_of(composed, conv, elementwise, fused, losses, norm, optim, pool))


def asarray(array):
    """The array on the current device: copied there, or as it is when it is a CuPy array already."""
    return cupy.asarray(array)
