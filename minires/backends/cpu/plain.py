"""What NumPy itself computes on the CPU: the linear layer, by BLAS, and the losses, small beside any convolution.

Called by `here`, so that a program has them too.
"""
from minires.backends import reference
from minires.backends.cpu.threads import here


def dropout_keep(x, rng, p):
    """See reference.dropout_keep."""
    return here(reference.dropout_keep, x, rng, p)


def linear_forward(x, weight, bias):
    """See reference.linear_forward."""
    return here(reference.linear_forward, x, weight, bias)


def linear_backward(dy, x, weight):
    """See reference.linear_backward."""
    return here(reference.linear_backward, dy, x, weight)


def softmax_cross_entropy_forward(logits, target, label_smoothing):
    """See reference.softmax_cross_entropy_forward."""
    return here(reference.softmax_cross_entropy_forward, logits, target, label_smoothing)


def softmax_cross_entropy_backward(softmax, target, label_smoothing):
    """See reference.softmax_cross_entropy_backward."""
    return here(reference.softmax_cross_entropy_backward, softmax, target, label_smoothing)


def mse_forward(y, target):
    """See reference.mse_forward."""
    return here(reference.mse_forward, y, target)


def mse_backward(y, target):
    """See reference.mse_backward."""
    return here(reference.mse_backward, y, target)
