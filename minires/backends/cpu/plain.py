"""What NumPy itself computes on the CPU: the linear layer, by BLAS, and the losses, small beside any convolution."""
from functools import wraps

from minires.backends import reference
from minires.backends.cpu.threads import here


def _called_here(function):
    """An operator of the reference that a program has too."""
    @wraps(function)
    def call(*arguments):
        return here(function, *arguments)

    return call


for _name in ("dropout_keep", "linear_forward", "linear_backward", "softmax_cross_entropy_forward",
              "softmax_cross_entropy_backward", "mse_forward", "mse_backward"):
    globals()[_name] = _called_here(getattr(reference, _name))
