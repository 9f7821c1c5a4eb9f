"""What the notebooks of examples/ share: to compare a derivation with the project's lines and differences, and to ask."""
import inspect
import textwrap

import numpy as np

from minires.study.turns import TURNS

RTOL, ATOL = 1e-9, 1e-12  # of an answer: what rounding in float64 leaves, whatever the order of sums


def source(*functions):
    """The project's own lines, read from its files, to be shown by a notebook."""
    from IPython.display import Markdown

    parts = [f"# {function.__module__}\n{textwrap.dedent(inspect.getsource(function))}" for function in functions]
    return Markdown('<div style="font-family: monospace">\n\n```python\n' + "\n".join(parts) + "```\n\n</div>")


def numerical(f, x, h=1e-6):
    """df/dx entry by entry, by central differences; f(x) is one number; x, df/dx: any one shape."""
    slopes = np.empty_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = h
        slopes[index] = (f(x + step) - f(x - step)) / (2 * h)
    return slopes


def agree(what, *arrays):
    """Stop unless the arrays have one shape and the same values up to rounding."""
    for other in arrays[1:]:
        np.testing.assert_allclose(other, arrays[0], rtol=1e-7, atol=1e-7, strict=True)
    print(f"{what}: {len(arrays)} ways, one result")


def turn(name, answer):
    """Print whether `answer`, the reader's function, computes what TURNS[name] asks for, or what is wrong with it."""
    print(verdict(TURNS[name], answer))


def verdict(asked, answer):
    """One sentence: not written yet, right, or what is wrong."""
    arguments = asked.arguments(np.random.default_rng(0))
    right = asked.right(*arguments)
    try:
        found = answer(*(argument.copy() for argument in arguments))
        if found is None or found is Ellipsis:
            return "your turn: nothing is returned yet"
        found = np.asarray(found)
    except Exception as error:  # the reader's, whatever it is
        return f"not yet: {type(error).__name__}: {error}"
    if found.dtype.kind not in "biuf":
        return f"not yet: the entries are of {found.dtype}, and must be numbers"
    if found.shape != right.shape:
        return f"not yet: the shape is {found.shape}, and must be {right.shape}"
    if _same(found, right):
        return "right"
    for sentence, wrong in asked.mistakes.items():
        if _same(found, wrong(*arguments)):
            return f"not yet: {sentence}"
    off = ~np.isclose(found, right, RTOL, ATOL)
    first = tuple(int(place) for place in np.argwhere(off)[0])
    return (f"not yet: {off.sum()} of {off.size} entries are wrong; at {list(first)} stands {found[first]:.12g}, and should "
            f"{right[first]:.12g}")


def _same(found, right):
    return found.shape == right.shape and np.allclose(found, right, RTOL, ATOL)
