"""Where every value of a program lies: lifetimes are known, so each gets an offset in one slab before anything runs.

A value lives from the step that makes it to the last that reads it. The largest are placed first, each at the lowest offset
that is free while it lives. What a forward pass makes and backward reads lies there in between; where it can be made again
from values that live anyway it is dropped and made again just before backward comes to it (recomputation, also called
checkpointing: Chen et al. 2016, https://arxiv.org/abs/1604.06174), if that lowers the highest number of bytes alive.
"""
from dataclasses import replace

from minires.backends.trace import Array, in_place
from minires.plan.program import like, root

ALIGNMENT = 64  # bytes: a cache line
SMALLEST = 1 << 14  # bytes; smaller values are left to the back end
FEW_CHANNELS = 4  # of a convolution that is soon done again: a network's first


class Memory:
    """offsets: {Array: byte in the slab}; peak_bytes: the size of the slab; lives: {Array: (first step, last step)}, of
    values in one place those of the first."""

    def __init__(self, program):
        self.lives, holders = lifetimes(program.steps, program.outputs)
        self.offsets, self.peak_bytes = _place(self.lives)
        self.offsets.update({array: self.offsets[holder] for array, holder in holders.items() if holder in self.offsets})


def lifetimes(steps, outputs):
    """{Array: (index of the step that makes it, of the last that reads it)} of all that has a place, and {Array: in whose}.

    A value takes the place of one that ends where it is made, if `in_place` says so.
    """
    first, last = {}, {}
    for index, step in enumerate(steps):
        for array in step.results:
            if array is not None and root(array) is array:
                first[array] = last[array] = index
        for array in step.reads:
            if root(array) in first:
                last[root(array)] = index
    for array in outputs:
        if root(array) in first:
            last[root(array)] = len(steps)
    holders = {}
    for index, step in enumerate(steps):
        result = step.results[0] if step.results else None
        for place in in_place(step) if result in first else ():
            old = step.arguments[place]
            if isinstance(old, Array) and last.get(root(old)) == index and old.nbytes == result.nbytes and (
                    sum(root(array) is root(old) for array in step.reads) == 1):
                holder = holders.get(root(old), root(old))
                holders[result], last[holder] = holder, last[result]
                break
    return {array: (first[array], last[array]) for array in first
            if array.nbytes >= SMALLEST and array not in holders}, holders


def alive(lives, count):
    """The bytes that are alive at each of `count` steps."""
    change = [0] * (count + 2)
    for array, (first, last) in lives.items():
        change[first] += _rounded(array)
        change[last + 1] -= _rounded(array)
    total, found = 0, []
    for index in range(count):
        total += change[index]
        found.append(total)
    return found


def _rounded(array):
    return -(-array.nbytes // ALIGNMENT) * ALIGNMENT


def _place(lives):
    offsets, size = {}, 0
    for array in sorted(lives, key=lambda array: (-array.nbytes, lives[array])):
        first, last = lives[array]
        taken = sorted((offsets[other], offsets[other] + _rounded(other)) for other in offsets
                       if lives[other][0] <= last and first <= lives[other][1])
        at = 0
        for start, end in taken:
            if at + _rounded(array) <= start:
                break
            at = max(at, end)
        offsets[array] = at
        size = max(size, at + _rounded(array))
    return offsets, size


def recompute(program):
    """Drop values that can be made again while they wait for backward, as long as that lowers the peak.

    Sums, ReLUs, normalisations, padded shortcuts and convolutions of few channels are done again; each where the first step
    of backward reads its value, after those of its own inputs that were dropped too.
    """
    steps = program.steps
    begin = next((index for index, step in enumerate(steps) if step.backward), len(steps))
    recipes, (lives, _) = _recipes(steps[:begin]), lifetimes(steps, program.outputs)
    waiting = [array for array in lives if array in recipes and lives[array][0] < begin < lives[array][1] < len(steps)]
    dropped, peak = set(), max(alive(lives, len(steps)), default=0)

    def peak_of(some):
        tried = _made_again(steps, begin, recipes, some)
        return max(alive(lifetimes(tried, program.outputs)[0], len(tried)))

    def change(arrays):  # all of some arrays at once, if that does not raise the peak, or halves of them
        nonlocal dropped, peak
        found = peak_of(dropped ^ set(arrays)) if arrays else peak + 1
        if found <= peak:
            dropped, peak = dropped ^ set(arrays), found
        elif len(arrays) > 1:
            change(arrays[:len(arrays) // 2])
            change(arrays[len(arrays) // 2:])

    waiting.sort(key=lambda array: (-array.nbytes, -lives[array][0]))
    for size in dict.fromkeys(array.nbytes for array in waiting):
        change([array for array in waiting if array.nbytes == size])
    change([array for array in waiting[::-1] if array in dropped])  # and back, where it was of no use
    program.steps = _made_again(steps, begin, recipes, dropped) if dropped else steps


def _recipes(steps):
    """{Array: a Step that makes it alone} of what is soon made again."""
    found = {}
    for step in steps:
        y = step.results[0] if step.results else None
        if step.operator in ("normalise_add_relu", "relu_forward", "add", "pad_shortcut_forward"):
            found[y] = step
        elif step.operator == "add_relu_conv2d_moments":
            found[y] = like(step, "normalise_add_relu", step.arguments[:3], [y])
        elif step.operator == "conv2d_moments" and step.arguments[1] is None and step.arguments[0].shape[3] <= FEW_CHANNELS:
            x, _, weight, stride, padding = step.arguments
            found[y] = like(step, "conv2d_forward", (x, weight, None, stride, padding, (1, 1)), [y])
    return found


def _made_again(steps, begin, recipes, dropped):
    """Steps in which `dropped` values are made again, before the first step from `begin` on that reads them.

    A convolution's is not kept from one that is made again of it to the one that reads it itself, but made twice.
    """
    made, again = steps[:begin], {}

    def make(array, known):
        recipe = recipes[array]
        own = dict(known)
        for read in recipe.reads:
            if read in dropped and read not in known:
                make(read, own if recipes[read].operator == "conv2d_forward" else known)
        own = {**known, **own}
        known[array] = Array(array._tracer, array.shape, array.dtype)
        made.append(like(recipe, recipe.operator, _replaced(recipe.arguments, own), [known[array]]))
        made[-1].backward = True

    for step in steps[begin:]:
        for array in step.reads:
            if array in dropped and array not in again:
                make(array, again)
        old = again.keys().isdisjoint(step.reads)
        made.append(step if old else replace(step, arguments=_replaced(step.arguments, again)))
    return made


def _replaced(value, again):
    """`value` with Arrays replaced, in nested tuples too."""
    if isinstance(value, Array):
        return again.get(value, value)
    return tuple(_replaced(part, again) for part in value) if isinstance(value, tuple) else value
