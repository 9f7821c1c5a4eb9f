"""Every CUDA kernel, in float and double, compiles by NVRTC for each generation in use: no warning, no register spilled.

`python tests/nvrtc.py` prints the registers, spills and shared memory that these tests hold within bounds, for all seven
architectures.
"""
import sys

import nvrtc
import pytest

from minires.backends.cuda import compiler

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NVRTC exists for Linux and Windows only")

REGISTERS_OF_A_PROCESSOR = 1 << 16
SHARED_OF_A_BLOCK = 48 << 10  # bytes that a kernel may name without asking for more
THREADS = 256  # the most that the back end puts into a block


@pytest.fixture(autouse=True)
def _needs_nvrtc():
    assert nvrtc.library(), "these tests compile by NVRTC: pip install nvidia-cuda-nvrtc (the extra `test` names it)"


@pytest.mark.parametrize("architecture", nvrtc.TESTED)
@pytest.mark.parametrize("file", nvrtc.FILES)
def test_compiles_without_a_warning_or_a_spill(file, architecture):
    expressions = nvrtc.expressions_in(file)
    compiled = nvrtc.compile_source(compiler.source(file), expressions, architecture)
    assert compiled.done, compiled.log
    assert "warning" not in compiled.log, compiled.log
    assert compiled.kernels.keys() == set(expressions)
    for name, used in compiled.kernels.items():
        assert used.spilled == 0 and used.stack == 0, f"{name} keeps values outside of registers: {used}"
        assert 0 < used.registers * THREADS <= REGISTERS_OF_A_PROCESSOR, f"{name}: {used}"
        assert used.shared <= SHARED_OF_A_BLOCK, f"{name}: {used}"


def test_a_kernel_that_is_wrong_is_noticed():
    """The same steps on sources with an error, a warning, and more values than registers."""
    kernel = "template <typename T> __global__ void k(T* x) {{ {} }}".format
    wrong = nvrtc.compile_source(kernel("x[0] = missing;"), ["k<float>"], 90)
    assert not wrong.done and "missing" in wrong.log
    careless = nvrtc.compile_source(kernel("int unused = 3; x[0] = 1;"), ["k<float>"], 90)
    assert careless.done and "warning" in careless.log
    loop = "for (int i = 0; i < 300; i++)"
    greedy = nvrtc.compile_source(kernel(f"T v[300]; {loop} v[i] = x[i * 7]; __syncthreads(); {loop} x[i] = v[i];"),
                                  ["k<double>"], 90)
    used = greedy.kernels["k<double>"]
    assert greedy.done and used.registers > 200 and used.spilled + used.stack > 0


def test_every_file_of_kernels_is_compiled():
    assert {"conv.cu", "fused.cu"} <= set(nvrtc.FILES)
    assert "conv2d_forward<double, 256, 16>" in nvrtc.expressions_in("conv.cu")
    assert "col2im<float>" in nvrtc.expressions_in("conv.cu")
