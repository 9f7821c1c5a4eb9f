"""Cross-entropy against shares of classes: NumPy's, by `here`, so that a program has it too."""
from minires.backends import soft_targets
from minires.backends.cpu.threads import here


def soft_cross_entropy_forward(logits, q):
    """See minires.backends.soft_targets."""
    return here(soft_targets.soft_cross_entropy_forward, logits, q)


def soft_cross_entropy_backward(softmax, q):
    """See minires.backends.soft_targets."""
    return here(soft_targets.soft_cross_entropy_backward, softmax, q)
