"""How many threads this process may have, found before Numba is imported: it is not with a NUMBA_NUM_THREADS below 1."""
import os
import sys

from minires import machine


def _most_threads():
    cores = machine.cores()
    limit = os.environ.get("NUMBA_NUM_THREADS", cores)
    try:
        if int(limit) >= 1:
            return min(cores, int(limit))
    except ValueError:  # no number
        pass
    print(f"minires: NUMBA_NUM_THREADS={limit!r} is ignored: it must be a whole number from 1", file=sys.stderr)
    del os.environ["NUMBA_NUM_THREADS"]
    return cores


MOST_THREADS = _most_threads()
