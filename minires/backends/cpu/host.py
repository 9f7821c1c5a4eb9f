"""What the kernels must know of the processor: how wide its vectors are and how many registers hold them.

The processor is the one that Numba compiles for: the host, or what NUMBA_CPU_NAME and NUMBA_CPU_FEATURES say. A processor
that is named without features has those that LLVM knows of it.
"""
import platform
from pathlib import Path

import llvmlite.binding as llvm
from numba.core import config

# The sum of two vectors of 512 bits: compiled for a processor it names the registers that hold them there.
_SUM = """
define <16 x float> @sum(<16 x float> %a, <16 x float> %b) {
  %c = fadd <16 x float> %a, %b
  ret <16 x float> %c
}
"""


def _instructions():
    """LLVM's assembly of _SUM. For a named processor it is asked: llvmlite lists the features of the host alone."""
    host = llvm.get_host_cpu_name()
    name, features = config.CPU_NAME, config.CPU_FEATURES
    if name in (None, "host", host):
        name, features = host, llvm.get_host_cpu_features().flatten() if features is None else features
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(cpu=name, features=features or "").emit_assembly(llvm.parse_assembly(_SUM))


def _vector_unit():
    if platform.machine().lower() in ("arm64", "aarch64"):
        return 16, 32  # NEON
    instructions = _instructions()
    if "zmm" in instructions:
        return 64, 32  # AVX-512
    if "ymm" in instructions:
        return 32, 16  # AVX
    return 16, 16  # SSE2, or an unknown processor


VECTOR_BYTES, VECTOR_REGISTERS = _vector_unit()


def lanes_of(dtype):
    """Elements of `dtype` in one vector register."""
    return VECTOR_BYTES // dtype.itemsize


BLOCK_BYTES = 64  # channels that lie together, in the kernels' scratch: a line of the cache


def block_of(dtype):
    """Elements of `dtype` in a block of channels."""
    return BLOCK_BYTES // dtype.itemsize


def _second_level_cache():
    """Bytes of it that a core has."""
    try:
        for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
            if (index / "level").read_text().strip() == "2":
                size = (index / "size").read_text().strip()
                return int(size.rstrip("KM")) << (20 if size.endswith("M") else 10)
    except (OSError, ValueError):
        pass
    return 1 << 20 if platform.system() == "Darwin" else 1 << 19


CACHE_BYTES = _second_level_cache()
