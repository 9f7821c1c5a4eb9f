"""Reading constructor arguments: an int or a pair, each with its lower bound."""
from minires.errors import UserError


def pair(name, value, least):
    """(rows, columns) from an int or a pair of ints that are at least `least`, else UserError."""
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2 or not all(isinstance(v, int) and v >= least for v in both):
        raise UserError(f"{name} must be an int of at least {least} or a pair of them, got {value!r}")
    return both


def count(name, value):
    """An int of at least 1, else UserError."""
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{name} must be an int of at least 1, got {value!r}")
    return value


def require_output(layer, x, size):
    """Refuse an x that is too small for the window: `size` is (OH, OW)."""
    if min(size) < 1:
        raise UserError(f"{type(layer).__name__} has no place to put its window on x of shape {tuple(x.shape)}: "
                        f"the output would be {size[0]} x {size[1]} pixels; use a larger x or more padding")
