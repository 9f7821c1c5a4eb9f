"""Wrong backward passes of residual blocks: each runs the engine's block with something left out or misplaced."""
from minires.layer import calls_go_to
from minires.study.exercises.checker.exercise import Mistake
from minires.study.exercises.checker.report import Diagnosis


def _without_shortcut(block, dy):
    return block.branch_backward(block.relu.backward(dy))


def _without_branch(block, dy):
    g = block.relu.backward(dy)
    block.branch_backward(g)
    return block.shortcut.backward(g)


def _shortcut_unmasked(block, dy):
    return block.branch_backward(block.relu.backward(dy)) + block.shortcut.backward(dy)


def _branch_unmasked(block, dy):
    return block.branch_backward(dy) + block.shortcut.backward(block.relu.backward(dy))


def _shortcut_past_projection(block, dy):
    """The shortcut taken for the identity where there is a projection."""
    g = block.relu.backward(dy)
    dx = block.branch_backward(g)
    return dx + (g if dx.shape == g.shape else 0)


def _shortcut_twice(block, dy):
    g = block.relu.backward(dy)
    return block.branch_backward(g) + 2 * block.shortcut.backward(g)


def skipped(*names):
    """The whole backward pass with the backward of some parts replaced by the identity."""
    def backward(block, dy):
        parts = [getattr(block, name) for name in names]
        with calls_go_to(lambda method, layer, g: g if layer in parts else method(layer, g)):
            return block.backward(dy)
    return backward


def _shortcut_of_branch(block, dy):
    """In a block whose shape stays: the shortcut gets what the branch passes on instead of what arrived at the sum."""
    g = block.branch_backward(block.relu.backward(dy))
    return g + block.shortcut.backward(g) if _keeps_shape(block) else None


def _keeps_shape(block):
    return not block.shortcut.parameters()


def block_mistakes(depth):
    """The mistakes of a block of `depth` convolutions."""
    def mistake(name, sentence, backward):
        return Mistake(name, sentence, lambda s: s.gradients(backward))

    def chained(s):
        return s.gradients(_shortcut_of_branch) if _keeps_shape(s.layer) else {}

    return (
        mistake("shortcut forgotten", "dx lacks what comes back through the shortcut: x feeds the branch and the "
                "shortcut, so their gradients add", _without_shortcut),
        mistake("branch forgotten", "dx lacks what comes back through the branch: x feeds the branch and the shortcut, so "
                "their gradients add", _without_branch),
        mistake("last ReLU skipped", "the last ReLU is left out: what reaches the sum is g = relu.backward(dy), not dy",
                skipped("relu")),
        mistake("shortcut gets dy", "the shortcut gets dy: what reaches the sum, and both its terms, is g = "
                "relu.backward(dy)", _shortcut_unmasked),
        mistake("branch gets dy", "the branch gets dy: what reaches the sum, and both its terms, is g = relu.backward(dy)",
                _branch_unmasked),
        mistake("shortcut twice", "dx counts the shortcut twice", _shortcut_twice),
        Mistake("shortcut after the branch", "the shortcut gets what the branch passes on: a sum hands the same g to both "
                "its terms", chained),
        Mistake("projection taken for identity", "dx adds g itself where the shortcut is a projection: call "
                "self.shortcut.backward(g)", _past_projection),
        *(mistake(f"{part} skipped", f"{part} is left out on the way back through the branch", skipped(part))
          for part in (*(f"relu{index}" for index in range(1, depth)), *(f"bn{index}" for index in range(1, depth + 1)))),
        *[mistake("inner ReLUs skipped", "the ReLUs between the convolutions are left out on the way back",
                  skipped(*(f"relu{index}" for index in range(1, depth))))] * (depth > 2),
    )


def _past_projection(s):
    return s.gradients() if _keeps_shape(s.layer) else s.gradients(_shortcut_past_projection)


def explain_block(depth):
    """`Exercise.explain` of a block: a part's gradients show what reached the part, so the first wrong part on the way back
    is where the mistake is made; all that is wrong after it follows from it."""
    order = [f"{part}{index}" for index in range(1, depth + 1) for part in ("conv", "bn", "relu")][:-1]

    def explain(observations, wrong):
        parts = [part for part in order if any(tensor.startswith(f"{part}.") for tensor in wrong)]
        if not parts:
            return None
        first = parts[-1]
        after = order[order.index(first) + 1:]
        known = next((part for part in after if "relu" not in part), None)
        told = f"up to {known} all is right" if known else "it comes right after the last ReLU"
        after = [f"self.{part}.backward" for part in reversed(after[:after.index(known) if known else 0])]
        calls = [f"self.{known}.backward" if known else "self.relu.backward", *after, f"self.{first}.backward"]
        tensors = [tensor for tensor in wrong if tensor == "dx" or tensor.split(".")[0] in parts]
        return Diagnosis("first wrong part", tensors, None,
                         f"{first} is the first part that is wrong on the way back ({told}): forward runs "
                         f"{', '.join(order)}, relu, and backward the other way, {', then '.join(calls)}")
    return explain


def explain_block_error(situation, said):
    """`Exercise.explain_error` of a block: g added to dx as it is, where the shortcut is a projection."""
    shapes = [str(array.shape).replace(" ", "") for array in (situation.x, situation.y)]
    if _keeps_shape(situation.layer) or not all(shape in said for shape in shapes):
        return None
    return Diagnosis("projection taken for identity", ["dx"], situation.case.name,
                     f"the shortcut is not always the identity: at {situation.case.name} it is a projection, and g, "
                     f"{shapes[1]}, is no gradient of x, {shapes[0]}. self.shortcut.backward(g) is right for both ({said})")


def parts(depth):
    """The letters of a block's parameters but its convolutions' weights and shortcut."""
    return {f"bn{index}.{name}": "O" for index in range(1, depth + 1) for name in ("weight", "bias")}
