"""A bug as data, and the context manager that plants it into the engine."""
import importlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps

import minires.layers
import minires.losses
from minires.backends import HOST_BACKENDS
from minires.layer import Layer, heard
from minires.study.subjects import LAYERS, LOSSES, PLANNED


@dataclass(frozen=True)
class Bug:
    """A mistake in a backward pass.

    name: its family, then what is wrong; mistake: what the programmer did, in a sentence.
    layers: the names of the layer or loss classes that compute wrongly with it.
    place: the operator of the back ends that is replaced, or "backward": the method of those classes.
    wrong: wrong(right, *arguments) computes in its place; right is the replaced function, arguments are those of the call.
    network: the one of `training.NETWORKS` that has the layer.
    planned: only plans have it, in an operator that they put in the place of the layers' own.
    """

    name: str
    mistake: str
    layers: tuple
    place: str
    wrong: Callable
    network: str = "residual"
    planned: bool = False

    def cases(self):
        """{name: (make, shape of x)}: the rows of `minires.study.subjects` that use what is wrong."""
        rows = PLANNED if self.planned else {**LAYERS, **LOSSES}
        return {name: row for name, row in rows.items() if name.split()[0] in self.layers}


@contextmanager
def inject(bug, backends=HOST_BACKENDS):
    """Inside, every layer of the process computes with `bug`; afterwards, however the block ends, none does.

    backends: those whose operators are replaced, for a bug in an operator. A plan has the bug if its first run is inside,
    and has it for good, since that run notes what all others repeat: make plans inside, and drop them with the block.
    """
    if bug.place == "backward":
        owners = [getattr(minires.layers, name, None) or getattr(minires.losses, name) for name in bug.layers]
    else:
        owners = [importlib.import_module(f"minires.backends.{name}") for name in backends]
    own = [vars(owner).get(bug.place) for owner in owners]  # None: a method that the class inherits
    wrongs = [_bind(bug.wrong, getattr(owner, bug.place), getattr(owner, "here", _call)) for owner in owners]
    try:
        for owner, wrong in zip(owners, wrongs, strict=True):
            is_layer = isinstance(owner, type) and issubclass(owner, Layer)
            setattr(owner, bug.place, heard(wrong) if is_layer else wrong)  # listeners are told what it returns
        yield
    finally:
        for owner, function in zip(owners, own, strict=True):
            if function is not None:
                setattr(owner, bug.place, function)
            elif bug.place in vars(owner):
                delattr(owner, bug.place)


def _bind(wrong, right, here):
    @wraps(right)
    def planted(*arguments):
        return here(wrong, right, *arguments)  # a plan repeats all of it, what NumPy computes in it too

    return planted


def _call(function, *arguments):
    return function(*arguments)
