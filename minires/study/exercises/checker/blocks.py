"""Wrong backward passes of residual blocks: each runs the engine's block with something left out or misplaced."""
from minires.layer import calls_go_to
from minires.study.exercises.checker.exercise import Mistake


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


def parts(depth):
    """The letters of a block's parameters but its convolutions' weights and shortcut."""
    return {f"bn{index}.{name}": "O" for index in range(1, depth + 1) for name in ("weight", "bias")}
