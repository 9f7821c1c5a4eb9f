"""How the functions of this back end are compiled."""
from numba import njit
from numba.extending import overload

kernel = njit(nogil=True, cache=True, no_cfunc_wrapper=True)  # what `launch` runs


def part(function):
    """Let kernels call a function. It stays a Python function itself.

    As one of Numba's own it would be compiled with a second entrance, from Python: a tenth of the time of compiling.
    """
    @overload(function, jit_options={"no_cfunc_wrapper": True}, strict=False, prefer_literal=True)
    def implementation(*arguments):
        return function

    return function
