"""NVRTC, NVIDIA's compiler as a library, on a machine without a GPU: what it makes of the CUDA kernels.

    python tests/nvrtc.py        registers, spills and shared memory of every kernel on every architecture in use
"""
import ctypes
import re
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).with_name("cuda_host")), str(Path(__file__).parents[1])]

from minires.backends.cuda import compiler, conv

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)  # Turing, Ampere (2), Ada, Hopper, Blackwell (2)
TESTED = (75, 80, 90, 120)  # one of each generation: a compilation for all of them takes two minutes
# The whole numbers with which kernels of more than one template parameter are launched.
INTEGERS = {
    "conv2d_forward": [(BM, BN) for BN, BM in conv.TILES.items()],
    "conv2d_input_gradient": [(BM, BN) for BN, BM in conv.TILES.items()],
    "conv2d_weight_gradient": [(BM, BN) for BN, BM in conv.WEIGHT_TILES.items()],
}
FILES = sorted(path.name for path in compiler.KERNELS.glob("*.cu"))
_KERNEL = re.compile(r"template\s*<\s*typename\s+T\s*((?:,\s*int\s+\w+\s*)*)>\s*__global__\s+void\s+"
                     r"(?:__launch_bounds__\([^)]*\)\s*)?(\w+)")
_RESOURCES = re.compile(r"Compiling entry function '(\w+)' for 'sm_\d+'.*?(\d+) bytes stack frame, "
                        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)", re.S)


class Resources(NamedTuple):
    """What a thread of a kernel takes, and its block's shared memory in bytes."""

    registers: int
    stack: int
    spilled: int
    shared: int


class Compiled(NamedTuple):
    """What NVRTC says: whether it compiled, its log, and {kernel: Resources}."""

    done: bool
    log: str
    kernels: dict


def expressions_in(file):
    """The kernels of a file with their template arguments, as the back end launches them; float and double."""
    found = _KERNEL.findall(compiler.source(file))
    if len(found) != len(re.findall(r"__global__\s+void", compiler.source(file))):
        raise ValueError(f"{file} has a kernel that is not `template <typename T, int ...> __global__ void name`")
    return [f"{name}<{', '.join([T, *map(str, integers)])}>" for parameters, name in found for T in ("float", "double")
            for integers in (INTEGERS[name] if parameters else [()])]


@cache
def library():
    """The NVRTC of the package nvidia-cuda-nvrtc, the newest that is installed, or None."""
    places = [Path(place, "nvidia") for place in sys.path]
    paths = [path for place in places for path in place.glob("*/lib/libnvrtc.so.*") if "alt" not in path.name]
    if not paths:
        return None
    found = ctypes.CDLL(str(max(paths, key=lambda path: int(path.suffix[1:]))))
    found.nvrtcGetErrorString.restype = ctypes.c_char_p
    return found


def version():
    """NVRTC's version, "13.0" for example."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def _log(nvrtc, program):
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, text)
    return text.value.decode()


def compile_source(text, expressions, architecture):
    """Compile CUDA source down to the machine code of sm_`architecture` and read what its assembler reports."""
    nvrtc, program = library(), ctypes.c_void_p()
    options = [*compiler.OPTIONS, "-ftz=true", "--device-as-default-execution-space",  # these two CuPy adds
               f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v",
               "--ptxas-options=-warn-spills"]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None)
    for expression in expressions:
        nvrtc.nvrtcAddNameExpression(program, expression.encode())
    code = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options)))
    log, kernels = _log(nvrtc, program), {}
    if code:
        log += nvrtc.nvrtcGetErrorString(code).decode()
    resources = {name: (registers, stack, int(stores) + int(loads), re.search(r"(\d+) bytes smem", rest))
                 for name, stack, stores, loads, registers, rest in _RESOURCES.findall(log)}
    for expression in expressions if code == 0 else ():
        lowered = ctypes.c_char_p()
        nvrtc.nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(lowered))
        registers, stack, spilled, shared = resources[lowered.value.decode()]
        kernels[expression] = Resources(int(registers), int(stack), spilled, int(shared[1]) if shared else 0)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return Compiled(code == 0, log, kernels)


def main():
    print(f"NVRTC {version()}: registers of a thread (and bytes spilled) by architecture; shared memory of a block in bytes")
    print(f"{'':44}" + "".join(f"{architecture:>8}" for architecture in ARCHITECTURES) + f"{'shared':>8}")
    for file in FILES:
        print(file)
        expressions = expressions_in(file)
        results = {number: compile_source(compiler.source(file), expressions, number) for number in ARCHITECTURES}
        for expression in expressions:
            rows = {number: result.kernels[expression] for number, result in results.items()}
            cells = [f"{row.registers}" + (f" ({row.spilled})" if row.spilled else "") for row in rows.values()]
            print(f"  {expression:42}" + "".join(f"{cell:>8}" for cell in cells) + f"{rows[90].shared:>8}")


if __name__ == "__main__":
    main()
