"""The optimisers' updates, one launch for all parameters: kernels/optim.cu."""
from functools import lru_cache

import cupy
import numpy as np

from minires.backends.cuda.compiler import kernel
from minires.errors import UserError

PIECE = 2048  # neighbouring elements of one array that a block takes
MOST_BLOCKS = 1 << 13


@lru_cache(maxsize=8)
def _tables(device, addresses, sizes, decays, dtype):
    """On the device, and kept while the arrays stay where they are: the tables that optim.cu describes."""
    pieces = [-(-size // PIECE) for size in sizes]
    owner = np.repeat(np.arange(len(sizes), dtype=np.int32), pieces)
    start = np.concatenate([np.arange(count, dtype=np.int64) * PIECE for count in pieces])
    rows = [cupy.asarray(np.array(row, np.uint64)) for row in addresses]
    return (*rows, cupy.asarray(np.array(sizes, np.int64)), cupy.asarray(np.array(decays, dtype)), cupy.asarray(owner),
            cupy.asarray(start), len(owner), PIECE)


def _launch(name, changed, grads, decays, numbers):
    """changed: tuples of arrays that are updated in place, the parameters first."""
    plain = [[cupy.ascontiguousarray(array) for array in arrays] for arrays in changed]
    grads = [cupy.ascontiguousarray(grad) for grad in grads]
    lists, dtype = [plain[0], grads, *plain[1:]], grads[0].dtype
    odd = next((array.dtype for arrays in lists for array in arrays if array.dtype != dtype), None)
    if odd is not None:  # nobody could tell any more: the kernel gets bare addresses
        raise UserError(f"the optimiser's arrays are {dtype} and {odd}: make the optimiser after model.astype(...)")
    addresses = tuple(tuple(array.data.ptr for array in arrays) for arrays in lists)
    tables = _tables(cupy.cuda.Device().id, addresses, tuple(grad.size for grad in grads), tuple(decays), dtype)
    kernel("optim.cu", name, dtype)((min(tables[-2], MOST_BLOCKS),), (256,), (*tables, *numbers))
    for arrays, copies in zip(changed, plain, strict=True):
        for array, copy in zip(arrays, copies, strict=True):
            if copy is not array:
                array[...] = copy


def sgd_update(parameters, grads, velocities, lr, momentum, weight_decays, nesterov):
    _launch("sgd", (parameters, velocities), grads, weight_decays, (float(lr), float(momentum), bool(nesterov)))


def adamw_update(parameters, grads, firsts, seconds, step, lr, betas, eps, weight_decays):
    (b1, b2), unbias = betas, [1 - beta**step for beta in betas]
    numbers = (lr, b1, 1 - b1, b2, 1 - b2, lr / unbias[0], unbias[1], eps)
    _launch("adamw", (parameters, firsts, seconds), grads, weight_decays, tuple(map(float, numbers)))
