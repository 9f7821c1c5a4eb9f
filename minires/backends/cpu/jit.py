"""How the functions of this back end are compiled, and kept on disk for the next process."""
import hashlib
import sys
from pathlib import Path

import llvmlite
import numba
from numba import config, njit
from numba.extending import overload

from minires.backends.cpu import numba_private
from minires.errors import UserError

if config.DISABLE_JIT:
    raise UserError("the CPU back end is compiled by Numba, which NUMBA_DISABLE_JIT forbids: unset it, or compute within "
                    'use_backend("reference")')

kept = True  # compiled kernels are, as far as is known


def _stamp():
    """What every kernel is made from: the files of this folder, since kernels call functions of each other's, and Numba."""
    content = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    for path in sorted(Path(__file__).parent.glob("[!.]*.py")):
        content.update(path.name.encode() + path.read_bytes())
    return content.hexdigest()[:16]


def _not_kept(folder):
    global kept
    if kept:
        kept = False
        print(f"minires: compiled kernels cannot be kept in {folder}: they are compiled for this process only; set "
              "NUMBA_CACHE_DIR to a folder that can be written", file=sys.stderr)


STAMP = _stamp()
_compile = njit(nogil=True, **numba_private.OPTIONS)


def kernel(function):
    """Compile what `launch` runs."""
    compiled = _compile(function)
    numba_private.keep_on_disk(compiled, STAMP, _not_kept)
    return compiled


def part(function):
    """Let kernels call a function. It stays a Python function itself.

    As one of Numba's own it would be compiled with a second entrance, from Python: a tenth of the time of compiling.
    """
    @overload(function, jit_options=numba_private.OPTIONS, strict=False, prefer_literal=True)
    def implementation(*arguments):
        return function

    return function
