"""The CPU back end: Numba kernels for what costs time; BLAS, through NumPy, for the one small matrix product.

Reading order: microkernel (the inner loop), images (how images lie in scratch, and what is done to them on the way), units
(how work is shared out), geometry (which elements are multiplied), direct, transforms, winograd, algorithm and convolution
(the operators), norm, pool, elementwise, plain; and simd (vectors as values), host (how wide they are), arena (memory that
is used again), threads and counter (who computes what), launches (all of it again, without Python), jit and ahead (how and
when kernels are compiled), llvm and numba_private (phrases of the compiler's language, and what is assumed of it),
environment (what is read before the compiler is there).
"""
import sys

from minires.backends.cpu.environment import MOST_THREADS  # before anything that imports Numba

# isort: split
from minires.backends import composed, reference
from minires.backends.cpu import (
    activations,
    convolution,
    elementwise,
    groupnorm,
    jit,
    norm,
    numba_private,
    plain,
    pool,
    soft_targets,
    threads,
)
from minires.backends.cpu.ahead import ahead
from minires.backends.cpu.algorithm import kernel_name as kernel_name  # of no operator, as what follows
from minires.backends.cpu.convolution import in_place as in_place
from minires.backends.cpu.launches import Launches as Launches
from minires.backends.cpu.threads import here as here
from minires.errors import UserError

globals().update(reference.operators_of(composed, activations, convolution, elementwise, groupnorm, norm, plain, pool,
                                        soft_targets))


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
