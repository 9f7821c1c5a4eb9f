"""What layers check: their constructors' arguments (see `minires.arguments`), and that an output has a pixel."""
from minires.arguments import choice, count, flag, number, pair, room
from minires.errors import UserError

__all__ = ["choice", "count", "flag", "number", "pair", "require_output", "room"]


def require_output(layer, x, size):
    """Refuse an x that is too small for the window: `size` is (OH, OW)."""
    if min(size) < 1:
        raise UserError(f"{type(layer).__name__} has no place to put its window on x of shape {tuple(x.shape)}: "
                        f"the output would be {size[0]} x {size[1]} pixels; use a larger x or more padding")
