"""What arguments are checked with: one function a kind, each returns the value as Python's own, or raises a UserError.

    self.stride = pair("stride", stride, 1)
    self.eps = number("eps", eps, above=0)

NumPy's integers are integers, its floats are numbers, and a bool is neither. A number is finite unless nothing else is said.
"""
import math
import sys
from pathlib import Path

import numpy as np

from minires.errors import UserError

MOST = 2**20  # channels, classes, pixels a side: above it a number is a slip, and its arrays would not fit any memory
MOST_WEIGHTS = 2**28  # of one layer; VGG-16's largest has 103 million


def is_integer(value):
    """Whether a value is a whole number: Python's or NumPy's, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value):
    """Whether a value is a real number: Python's or NumPy's, finite or not, and no bool."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def integer(name, value, least=None, most=None):
    """An int in least .. most."""
    if not is_integer(value) or (least is not None and value < least) or (most is not None and value > most):
        bounds = ("" if least is None else f" of at least {least}") + ("" if most is None else f" and at most {most:,}")
        raise UserError(f"{name} must be an int{bounds}, got {shown(value)}")
    return int(value)


def count(name, value, most=MOST):
    """An int of at least 1."""
    return integer(name, value, 1, most)


def pair(name, value, least, most=MOST):
    """(rows, columns) from an int or a pair of ints that are at least `least`."""
    both = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2 or not all(is_integer(v) and least <= v <= most for v in both):
        raise UserError(f"{name} must be an int of at least {least} or a pair of them, got {shown(value)}")
    return int(both[0]), int(both[1])


def number(name, value, least=None, most=None, *, above=None, below=None, infinite=False):
    """A float, finite unless `infinite`, in least .. most, both allowed, or between above and below, neither allowed."""
    value = value.item() if isinstance(value, np.integer | np.floating) else value
    largest = math.inf if infinite else sys.float_info.max  # an int may be larger, and is compared without becoming a float
    fits = (is_number(value) and -largest <= value <= largest
            and (least is None or value >= least) and (most is None or value <= most)
            and (above is None or value > above) and (below is None or value < below))
    if not fits:
        bounds = [f"{word} {bound:g}" for word, bound in (("at least", least), ("above", above), ("at most", most),
                                                          ("below", below)) if bound is not None]
        raise UserError(f"{name} must be a number{' ' + ' and '.join(bounds) if bounds else ''}, got {shown(value)}")
    return value


def room(owner, shape):
    """Refuse weights of a shape that no memory holds, before they are asked for: a slip in one of the sizes."""
    if math.prod(map(int, shape)) > MOST_WEIGHTS:
        raise UserError(f"{type(owner).__name__} would have weights of shape {tuple(map(int, shape))}, "
                        f"{math.prod(map(int, shape)):,} numbers: expected at most {MOST_WEIGHTS:,}, so make one of "
                        "its sizes smaller")


def flag(name, value):
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise UserError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def choice(name, value, choices):
    """One of some strings."""
    if not isinstance(value, str) or value not in choices:
        raise UserError(f"unknown {name} {shown(value)}: choose {', '.join(choices[:-1])} or {choices[-1]}")
    return value


def text(name, value, *, optional=False):
    """A string, or None where it is optional."""
    if not (isinstance(value, str) or (optional and value is None)):
        raise UserError(f"{name} must be text, got {shown(value)}")
    return value


def path(name, value):
    """A Path, with ~ for the home folder."""
    if not isinstance(value, str | Path):
        raise UserError(f"{name} must be a path, got {shown(value)}")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:  # nobody of that name
        raise UserError(f"{name} {value} cannot be understood ({error}): write the folder's path") from error


def seconds(name, value):
    """Seconds from a number, or from a text such as 90s, 5m or 1h; 0 means never."""
    units = {"s": 1, "m": 60, "h": 3600}
    if isinstance(value, str):
        figure, unit = (value[:-1], value[-1]) if value[-1:] in units else (value, "s")
        try:
            value_of = float(figure) * units[unit]
        except ValueError:
            value_of = math.nan
        if not 0 <= value_of < math.inf:
            raise UserError(f"{name} {value!r} is no time: expected one such as 90s, 5m or 1h, or 0 for never")
        return value_of
    return number(name, value, 0)


def shown(value):
    """A value as a message shows it: in a few characters."""
    try:
        said = repr(value)
    except Exception:  # a class of somebody's whose repr is broken
        said = f"a {type(value).__name__}"
    return said if len(said) <= 60 and "\n" not in said else f"{said[:57].splitlines()[0]}..."
