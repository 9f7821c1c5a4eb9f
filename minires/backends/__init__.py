"""Back ends: the operators as pairs of plain functions, forward and backward, on arrays.

    reference   NumPy, written as the derivation is written: the oracle for the others
    cpu         Numba kernels, what a NumPy array gets by default
    cuda        CuPy, what a CuPy array gets

All expose the same functions with the same signatures, so a layer never asks where its arrays live.
"""
import importlib
import importlib.util
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from minires.errors import UserError

HOST_BACKENDS = ("reference", "cpu")
_working = set()  # devices that were tried
_host_backend = ContextVar("minires_host_backend", default="cpu")
tracer_of_caller = ContextVar("minires_tracer", default=None)  # who notes operators instead of computing them


def ops_for(array):
    """The back end module for an array: `cuda` for CuPy's, else `cpu` or what `use_backend` chose.

    Raises TypeError for anything that is neither a NumPy nor a CuPy array.
    """
    tracer = tracer_of_caller.get()
    if tracer is not None:
        return tracer
    if isinstance(array, np.ndarray):
        return importlib.import_module(f"minires.backends.{_host_backend.get()}")
    if type(array).__module__.split(".")[0] == "cupy":
        return importlib.import_module("minires.backends.cuda")
    raise TypeError(f"minires works on NumPy and CuPy arrays, got {type(array).__name__}: use numpy.asarray on it")


def device_of(array):
    """"cpu" or "cuda": where an array lies."""
    return "cpu" if isinstance(array, np.ndarray) or getattr(array, "device", None) == "cpu" else "cuda"


@contextmanager
def use_backend(name):
    """Within `with use_backend("reference"):` NumPy arrays are computed by that back end.

    Raises UserError for a name that is not in HOST_BACKENDS.
    """
    if name not in HOST_BACKENDS:
        raise UserError(f"unknown back end {name!r} for NumPy arrays: choose one of {', '.join(HOST_BACKENDS)}")
    token = _host_backend.set(name)
    try:
        yield
    finally:
        _host_backend.reset(token)


def host_backend():
    """The name of the back end that computes NumPy arrays here."""
    return _host_backend.get()


def set_num_threads(count):
    """Use `count` CPU threads in the Numba kernels, 1 <= count <= the cores of this process.

    Raises UserError for a count outside that range.
    """
    importlib.import_module("minires.backends.cpu").set_num_threads(count)


def to_device(array, device):
    """A NumPy or CuPy array on `device`, "cpu" or "cuda" (no copy when it is there already)."""
    if device == "cpu":
        return to_numpy(array)
    if device not in _working:
        require_device(device)
    return importlib.import_module("minires.backends.cuda").asarray(array)


def require_device(device):
    """UserError, one sentence that says what is missing and what to install, unless `device`, "cpu" or "cuda", works."""
    if device not in ("cpu", "cuda"):
        raise UserError(f"unknown device {device!r}: choose cpu or cuda")
    if device == "cpu":
        return
    extra = "pip install 'minires[cuda12]' or 'minires[cuda13]', as your driver has it"
    if importlib.util.find_spec("cupy") is None:
        raise UserError(f"device cuda needs CuPy, which is not installed: {extra}")
    try:
        trial = importlib.import_module("minires.backends.cuda.trial")
    except ImportError as error:
        raise UserError("device cuda needs CuPy, which is installed but does not load "
                        f"({_first_line(error)}): {extra}") from error
    problem = trial.what_is_missing()
    if problem is not None:
        raise UserError(problem.format(extra=extra))
    _working.add(device)


@contextmanager
def memory_advice(batch_size):
    """Within, memory that does not suffice, the device's or the host's, is a UserError that names a batch size to try."""
    try:
        yield
    except MemoryError as error:
        smaller = f"try a batch size of {batch_size // 2}" if batch_size > 1 else "use a smaller network or smaller images"
        raise UserError(f"a batch of {batch_size} does not fit into memory ({_first_line(error)}): {smaller}") from error


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def to_numpy(array):
    """The array in host memory (a NumPy array is returned as it is)."""
    return array if isinstance(array, np.ndarray) else array.get()
