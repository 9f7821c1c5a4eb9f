"""How objects print themselves: as the call that makes them, `Conv2d(3, 16, 3, padding=1, bias=False)`."""
import inspect

import numpy as np

WIDEST = 70  # characters of one argument; a longer one is shortened to its class


class Shown:
    """Prints itself by `describe`."""

    def __repr__(self):
        return describe(self)


def describe(thing, children=()):
    """The class and those of the constructor's arguments that are kept as attributes of the same name.

    Defaults, generators and what is not kept are left out, of arrays the shape is told. children: (name, object) pairs; they
    stand in the arguments' place, one per line, indented, as PyTorch prints modules.
    """
    name = type(thing).__name__
    lines = [f"({key}): {child!r}".replace("\n", "\n  ") for key, child in children]
    if lines:
        return f"{name}(\n  " + "\n  ".join(lines) + "\n)"
    shown, by_place = [], True
    for key, argument in inspect.signature(type(thing)).parameters.items():
        value = vars(thing).get(key, argument.empty)
        if isinstance(argument.default, bool) and not isinstance(value, bool) and value is not argument.empty:
            value = value is not None  # bias=True makes an attribute bias that is a Parameter
        if value is argument.empty or isinstance(value, np.random.Generator) or _told(value) == _told(argument.default):
            by_place = False
            continue
        by_place = by_place and argument.default is argument.empty and argument.kind is argument.POSITIONAL_OR_KEYWORD
        shown.append(_told(value) if by_place else f"{key}={_told(value)}")
    return f"{name}({', '.join(shown)})"


def _told(value):
    """A value in a few characters."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"<{value.dtype} {tuple(value.shape)}>" if value.shape else repr(value.item())
    if isinstance(value, tuple | list):
        if len(value) == 2 and isinstance(value[0], int) and value[0] == value[1]:
            return repr(value[0])  # a pair of rows and columns alike
        first = [_told(item) for item in value[:4]] if len(value) <= 4 else [_told(value[0]), f"... {len(value)} in all"]
        return f"({', '.join(first)})" if isinstance(value, tuple) else f"[{', '.join(first)}]"
    text = repr(value)
    return text if "\n" not in text and len(text) <= WIDEST else f"{type(value).__name__}(...)"
