"""Mistakes that any gradient may have: factors, signs, transposes, flips, a batch or a window cut short."""
from itertools import combinations, permutations

import numpy as np

from minires.study.exercises.checker.exercise import Mistake, shape

PRODUCTS = ("2", "N", "H*W", "N*H*W", "OH*OW", "N*OH*OW", "C", "K", "O", "N*C", "N*K", "KH*KW", "KH*KW*C", "N*H*W*C")
AVERAGED = {
    "N": "you averaged over the batch, the loss already did",
    "H*W": "you averaged over the pixels where a sum belongs",
    "OH*OW": "you averaged over the pixels where a sum belongs",
    "N*H*W": "you took a mean over N, H and W where a sum belongs",
    "N*OH*OW": "you took a mean over N, OH and OW where a sum belongs",
    "2": "a factor 2 is missing, or you divide twice",
}
ENLARGED = {"2": "something is added twice"}


def general_mistakes(exercise, tensor, situations):
    """The Mistakes to try on one tensor, the most telling first; each formula gives {tensor: array}."""
    shown = exercise.shown(tensor)
    known = set().union(*(situation.dims for situation in situations))

    def mistake(name, sentence, formula):
        return Mistake(name, f"{shown} {sentence}", lambda s: {tensor: formula(s)} if tensor in s.right else {})

    if exercise.method == "step":
        return
    if exercise.method == "forward":
        yield mistake("zero", "is zero everywhere", lambda s: np.zeros_like(s.right[tensor]))
        yield mistake("negated", "has its sign flipped", lambda s: -s.right[tensor])
        yield from _moved(exercise, tensor, mistake)
        return
    part, dot, _ = tensor.rpartition(".")
    added = f"call self.{part}.backward" if dot else f"write self.{tensor}.grad += {shown}"
    never = f"is never added to: {added}" if tensor != "dx" else "is zero everywhere"
    yield mistake("zero", never, lambda s: np.zeros_like(s.right[tensor]))
    yield mistake("negated", "has its sign flipped", lambda s: -s.right[tensor])
    if tensor == "dx" and not exercise.target:
        yield mistake("dy passed on", "is dy itself, passed on unchanged", lambda s: s.dy)
    for product in PRODUCTS:
        if not (set(product.split("*")) <= known | {"2"}):
            continue
        size = f"{product} = {{{product}}}" if product != "2" else "2"
        small, large = AVERAGED.get(product, "a sum belongs where you took a mean"), ENLARGED.get(
            product, f"a division by {product} is missing")
        yield mistake(f"divided by {product}", f"is exactly {size} times too small: {small}",
                      lambda s, p=product: s.right[tensor] / value(p, s))
        yield mistake(f"multiplied by {product}", f"is exactly {size} times too large: {large}",
                      lambda s, p=product: s.right[tensor] * value(p, s))
        yield mistake(f"negated and divided by {product}", f"has its sign flipped and is {size} times too small",
                      lambda s, p=product: -s.right[tensor] / value(p, s))
        yield mistake(f"negated and multiplied by {product}", f"has its sign flipped and is {size} times too large",
                      lambda s, p=product: -s.right[tensor] * value(p, s))
    axes = exercise.axes(tensor)
    yield from _moved(exercise, tensor, mistake)
    if not exercise.target:
        yield from _cut_short(exercise, tensor, mistake)
    if tensor != "dx" and len(axes) == 1 and not exercise.target:
        yield from _wrong_axes(exercise, tensor, mistake)
    for other in exercise.letters if tensor != "dx" else ():
        if other not in ("x", "y", tensor):
            yield mistake("swapped", f"holds the gradient that belongs into self.{other}.grad",
                          lambda s, o=other: s.right.get(o, s.right[tensor]))


def _moved(exercise, tensor, mistake):
    """Right numbers in wrong places: transposed, flipped, shifted."""
    axes = exercise.axes(tensor)
    for order in permutations(range(len(axes))):
        if order != tuple(range(len(axes))):
            moved = shape(" ".join(axes[axis] for axis in order))
            yield mistake("transposed", f"is right but transposed: its axes stand as {moved}, and must be "
                          f"{shape(' '.join(axes))}", lambda s, o=order: s.right[tensor].transpose(o))
    spatial = [axis for axis, letter in enumerate(axes) if letter in ("H", "W", "OH", "OW", "KH", "KW")]
    for count in range(1, len(spatial) + 1):
        for flipped in combinations(spatial, count):
            along = " and ".join(axes[axis] for axis in flipped)
            yield mistake("flipped", f"is right but flipped along {along}", lambda s, f=flipped: np.flip(s.right[tensor], f))
    for axis in spatial:
        for step in (1, -1):
            yield mistake("shifted", f"is right but shifted by {step:+d} along {axes[axis]}: an index is off by one",
                          lambda s, a=axis, by=step: np.roll(s.right[tensor], by, a))


def _cut_short(exercise, tensor, mistake):
    """Only a part of dy counts: backward is linear in dy, so the engine tells what that part gives."""
    axes = exercise.axes("y")
    words = {"N": "image", "OH": "output row", "OW": "output column", "H": "row", "W": "column"}
    for axis, letter in enumerate(axes):
        for place, word in ((-1, "last"), (0, "first")) if letter in words else ():
            yield mistake(f"only the {word} {words[letter]}", f"counts only the {word} {words[letter]} of dy: a loop that "
                          "overwrites, or returns too early", lambda s, a=axis, p=place: part(s, a, p, True)[tensor])
            yield mistake(f"without the {word} {words[letter]}", f"leaves out the {word} {words[letter]} of dy: a loop or a "
                          "slice ends one too early", lambda s, a=axis, p=place: part(s, a, p, False)[tensor])


def part(situation, axis, place, kept):
    """The engine's gradients of dy with one index of an axis kept alone, or left out; remembered by the situation."""
    memory = vars(situation).setdefault("parts", {})
    if (axis, place, kept) not in memory:
        mask = np.full(situation.dy.shape, not kept)
        np.moveaxis(mask, axis, 0)[place] = kept
        memory[axis, place, kept] = situation.gradients(dy=situation.dy * mask)
    return memory[axis, place, kept]


def _wrong_axes(exercise, tensor, mistake):
    """Sums of dy over other axes than all but the last, with and without the shape that is wanted."""
    axes = exercise.axes("y")
    for count in range(len(axes) + 1):
        for summed in combinations(range(len(axes)), count):
            if summed != tuple(range(len(axes) - 1)):
                over = ", ".join(axes[axis] for axis in summed) or "nothing"
                yield mistake("summed over the wrong axes", f"is dy summed over {over}; it must be summed over "
                              f"{', '.join(axes[:-1])}, so that one number for each {axes[-1]} is left",
                              lambda s, a=summed: _fit(s.dy.sum(a), s.right[tensor].shape))


def _fit(array, wanted):
    try:
        return np.broadcast_to(array, wanted)
    except ValueError:
        return array


def value(product, situation):
    """The number that "N*H*W" stands for in a case."""
    return int(np.prod([situation.dims.get(letter, 2) for letter in product.split("*")]))
