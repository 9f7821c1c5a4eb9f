"""The kernels on processors with narrower or wider vectors than this one's: who is asked for is what is compiled for."""
import os
import platform
import subprocess
import sys

import pytest
from numba.core import config

from minires.backends.cpu import host

X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 processors")


@X86
@pytest.mark.parametrize("name, features, expected", [
    ("x86-64", None, (16, 16)), ("nehalem", None, (16, 16)), ("sandybridge", None, (32, 16)), ("znver3", None, (32, 16)),
    ("znver4", None, (64, 32)), ("skylake-avx512", None, (64, 32)), ("generic", "", (16, 16)),
    ("generic", "+avx2", (32, 16)), ("haswell", "-avx", (16, 16))])
def test_a_named_processor_has_its_own_vectors(name, features, expected, monkeypatch):
    monkeypatch.setattr(config, "CPU_NAME", name)
    monkeypatch.setattr(config, "CPU_FEATURES", features)
    assert host._vector_unit() == expected


PROGRAM = """
import numpy as np
from minires.backends import cpu, reference
from minires.backends.cpu.host import VECTOR_BYTES
from minires.backends.cpu.images import poison_scratch
assert VECTOR_BYTES == {width}, VECTOR_BYTES
poison_scratch()
rng = np.random.default_rng({width})
for dtype, tolerance in (("f4", 2e-5), ("f8", 1e-12)):
    # Few kernels, as each is compiled here: direct and Winograd's, of channels that fill no block.
    for C, O, size, stride in [*((*rng.integers(1, 50, 2), 9, 2) for _ in range(6)), (17, 35, 6, 1), (33, 17, 7, 1)]:
        N, C, O = (int(count) for count in (rng.integers(2, 4), C, O))
        x, weight = rng.standard_normal((N, size, size, C)), rng.standard_normal((3, 3, C, O))
        geometry = (stride, stride), (1, 1), (1, 1)
        dy = rng.standard_normal(reference.conv2d_forward(x, weight, None, *geometry).shape)
        for name, arguments in (("conv2d_forward", (x, weight, None)), ("conv2d_input_gradient", (dy, weight, x.shape)),
                                ("conv2d_weight_gradient", (dy, x, (3, 3)))):
            want = getattr(reference, name)(*arguments, *geometry)
            narrow = [each.astype(dtype) if isinstance(each, np.ndarray) else each for each in arguments]
            got = getattr(cpu, name)(*narrow, *geometry)
            assert got.dtype == dtype and np.abs(got - want).max() < tolerance * np.abs(want).max(), (name, dtype, C, O)
"""


@X86
@pytest.mark.parametrize("name, width", [("nehalem", 16), ("znver3", 32)])
def test_convolutions_of_that_width_are_right(name, width):
    """Compiled for that processor and not, as Numba does for a name alone, for this one's further instructions too."""
    environment = {**os.environ, "NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": "", "NUMBA_NUM_THREADS": "1"}
    program = PROGRAM.format(width=width)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
