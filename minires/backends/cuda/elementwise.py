"""Element by element: kernels/elementwise.cu."""
import cupy

from minires.backends import reference
from minires.backends.cuda.compiler import kernel, launch_over
from minires.backends.cuda.launches import here


def _map(name, *arguments):
    """A new array of the first argument's shape, computed by a kernel that takes (arguments, result, more, count)."""
    arrays = [cupy.ascontiguousarray(each) for each in arguments if isinstance(each, cupy.ndarray)]
    scalars = [each for each in arguments if not isinstance(each, cupy.ndarray)]
    result = cupy.empty(arrays[0].shape, arrays[0].dtype)
    launch_over(result.size, kernel("elementwise.cu", name, result.dtype), (*arrays, result, *scalars, result.size))
    return result


def relu_forward(x):
    return _map("relu_forward", x)


def relu_backward(dy, y):
    return _map("relu_backward", dy, y)


def gelu_forward(x):
    return _map("gelu_forward", x)


def gelu_backward(dy, x):
    return _map("gelu_backward", dy, x)


def silu_forward(x):
    return _map("silu_forward", x)


def silu_backward(dy, x):
    return _map("silu_backward", dy, x)


def leaky_relu_forward(x, slope):
    return _map("leaky_relu_backward", x, x, float(slope))


def leaky_relu_backward(dy, y, slope):
    return _map("leaky_relu_backward", dy, y, float(slope))


def add(a, b):
    return _map("add", a, b)


def dropout_keep(x, rng, p):
    return cupy.asarray(here(reference.dropout_keep, x, rng, p))


def dropout_forward(x, keep, p):
    return _map("dropout", x, keep, float(1 - p))


def dropout_backward(dy, keep, p):
    return dropout_forward(dy, keep, p)
