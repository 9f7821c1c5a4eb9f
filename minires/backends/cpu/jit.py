"""How the functions of this back end are compiled.

Without Numba's reference counts (`_nrt`): kernels make no arrays, and those that they are given live until they end.
Counting two dozen of them takes longer than starting a kernel.
"""
from numba import njit
from numba.extending import overload

kernel = njit(nogil=True, cache=True, no_cfunc_wrapper=True, _nrt=False)  # what `launch` runs


def part(function):
    """Let kernels call a function. It stays a Python function itself.

    As one of Numba's own it would be compiled with a second entrance, from Python: a tenth of the time of compiling.
    """
    @overload(function, jit_options={"no_cfunc_wrapper": True, "_nrt": False}, strict=False, prefer_literal=True)
    def implementation(*arguments):
        return function

    return function
