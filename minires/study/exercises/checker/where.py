"""Where a gradient that no known mistake explains differs: entries, axes, border, channels."""
import numpy as np

from minires.study.exercises.checker.words import shape as in_letters

WORDS = {"N": "image", "H": "row", "W": "column", "C": "channel", "O": "output channel", "K": "class", "KH": "kernel row",
         "KW": "kernel column", "T": "step"}


def where(exercise, tensor, seen):
    """(name, sentence) about one wrong tensor of one case."""
    got, right, situation = seen.got[tensor], seen.situation.right[tensor], seen.situation
    shown, axes, at = exercise.shown(tensor), exercise.axes(tensor), f"at {situation.case.name}"
    if got.shape != right.shape:
        return "shape", (f"{shown} has shape {got.shape}{situation.letters(got.shape)} {at}, and must have "
                         f"{right.shape} = {in_letters(' '.join(axes))}")
    if not np.isfinite(got).all():
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(got))[0])
        return "not finite", f"{shown} is {got[first]} at {list(first)} {at}: a division by zero or an overflow"
    off, scale = np.abs(got - right), np.abs(right).max()
    if off.max() < 1e-5 * scale and np.array_equal(got, got.astype(np.float32)):
        return "rounded to float32", f"{shown} is right to float32 only: something on the way rounds float64 to float32"
    wrong = off > 1e-9 * scale
    parts = []
    for axis, letter in enumerate(axes):
        places = np.flatnonzero(wrong.any(tuple(other for other in range(wrong.ndim) if other != axis)))
        if 2 * len(places) <= wrong.shape[axis]:
            parts.append(_along(letter, places.tolist(), wrong.shape[axis]))
    if not parts and {"H", "W"} <= set(axes):
        parts += _border(wrong, axes)
    pattern = _pattern(got, right, wrong, axes)
    worst = tuple(int(i) for i in np.unravel_index(off.argmax(), off.shape))
    example = f"{shown}{list(worst)} is {got[worst]:.6g} and should be {right[worst]:.6g}"
    place = f"only in {' and '.join(parts)}" if parts else f"in {wrong.sum()} of {wrong.size} entries"
    return "unknown", f"{shown} is wrong {place} {at}: {pattern}{example}"


def _along(letter, places, size):
    word = WORDS.get(letter, letter)
    if len(places) == 1 and size > 1 and places[0] in (0, size - 1):
        return f"the {'last' if places[0] else 'first'} {word} ({letter} = {places[0]})"
    listed = ", ".join(map(str, places))
    if len(places) > 1 and places == list(range(size - len(places), size)):
        return f"the last {len(places)} {word}s ({letter} = {listed})"
    return f"{word}{'s' if len(places) > 1 else ''} {listed}"


def _border(wrong, axes):
    """Whether the wrong pixels are all on the image's edge, or all inside it."""
    inside = np.zeros(wrong.shape, bool)
    inside[tuple(slice(1, -1) if letter in ("H", "W") else slice(None) for letter in axes)] = True
    if not inside.any():  # an image of one or two rows is all border, which says nothing
        return []
    if not (wrong & inside).any():
        return ["the border pixels"]
    return ["the interior, the border is right"] if not (wrong & ~inside).any() else []


def _pattern(got, right, wrong, axes):
    """How got and right are related, where it is simple: one factor or one offset throughout, or in each channel."""
    rows, want = (array.reshape(-1, array.shape[-1] if array.ndim else 1) for array in (got, right))
    scale = np.abs(want).max()
    factors = (rows * want).sum(0) / np.maximum((want * want).sum(0), 1e-300)
    word = WORDS.get(axes[-1], axes[-1]) if axes else ""
    if len(rows) > 1 and np.abs(rows - want * factors).max() < 1e-9 * scale:
        if np.ptp(factors) < 1e-9 * np.abs(factors).max():
            return f"every entry is {factors[0]:.6g} times the right one; "
        return f"each {word} is off by a factor of its own ({', '.join(f'{f:.4g}' for f in factors[:4])}); "
    offsets = (rows - want).mean(0)
    if len(rows) > 1 and wrong.all() and np.abs(rows - want - offsets).max() < 1e-9 * scale:
        return f"in each {word} the same number is added to every entry, as if the term of a mean were missing; "
    return ""
