"""What the kernels must know of the processor: how wide its vectors are and how many registers hold them.

The features are those that Numba compiles for: the host's, or what NUMBA_CPU_NAME and NUMBA_CPU_FEATURES say.
"""
import platform

import llvmlite.binding as llvm
from numba.core import config


def _features():
    if config.CPU_FEATURES is not None:
        return {item[1:] for item in config.CPU_FEATURES.split(",") if item.startswith("+")}
    if config.CPU_NAME not in (None, "host", llvm.get_host_cpu_name()):
        return set()  # a named processor without its features: assume the baseline
    return {name for name, present in llvm.get_host_cpu_features().items() if present}


def _vector_unit():
    features = _features()
    if "avx512f" in features:
        return 64, 32
    if "avx" in features:
        return 32, 16
    if platform.machine().lower() in ("arm64", "aarch64"):
        return 16, 32  # NEON
    return 16, 16  # SSE2, or an unknown processor


VECTOR_BYTES, VECTOR_REGISTERS = _vector_unit()


def lanes_of(dtype):
    """Elements of `dtype` in one vector register."""
    return VECTOR_BYTES // dtype.itemsize
