"""The back end without numbers: layers run on it once, and the operators that they call are written down.

    tracer = Tracer()
    x = tracer.array((128, 32, 32, 3), np.float32)
    with tracer.tracing():
        y = layer.forward(x)
    tracer.steps            # every operator in order, with what it reads and writes

An `Array` has a shape and a dtype, and whoever asks for more gets Untraceable. Parameters, gradients and running statistics
are arrays of NumPy or CuPy that an operator is given: the program refers to them as they are, and reads them when it runs.
Each operator has one rule here, which says what its results look like.
"""
import importlib
import math
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from minires.backends import host_backend, tracer_of_caller
from minires.backends.reference import output_size


class Untraceable(Exception):
    """An array without numbers was asked for them."""


class Array(NDArrayOperatorsMixin):
    """A value of the program. base: the Array whose memory it is, where it is only seen in another shape."""

    def __init__(self, tracer, shape, dtype, base=None):
        self._tracer, self.shape, self.dtype, self.base = tracer, tuple(shape), np.dtype(dtype), base
        self.ndim, self.size, self.device = len(self.shape), math.prod(self.shape), tracer.device
        self.nbytes = self.size * self.dtype.itemsize

    __hash__ = object.__hash__

    def __eq__(self, other):
        if other is self:
            return True
        raise Untraceable("arrays are compared")

    def __len__(self):
        return self.shape[0]

    def __repr__(self):
        return f"Array({self.shape}, {self.dtype})"

    def reshape(self, *shape):
        shape = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        if -1 in shape:
            known = -math.prod(shape)
            shape = tuple(self.size // known if size == -1 else size for size in shape)
        if math.prod(shape) != self.size:
            raise ValueError(f"cannot reshape an array of shape {self.shape} into {tuple(shape)}")
        seen = Array(self._tracer, shape, self.dtype, self if self.base is None else self.base)
        return self._tracer.step("reshape", (self, tuple(shape)), [seen])

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if method != "__call__" or options or ufunc.nout != 1:
            raise Untraceable(f"numpy.{ufunc.__name__} with {', '.join(options) or method} is not traced")
        dtypes = [each.dtype if hasattr(each, "dtype") else type(each) for each in inputs]
        shape = np.broadcast_shapes(*(np.shape(each) if not isinstance(each, Array) else each.shape for each in inputs))
        dtype = ufunc.resolve_dtypes((*dtypes, None))[-1]
        if ufunc is np.add and all(isinstance(a, Array) and (a.shape, a.dtype) == (shape, dtype) for a in inputs):
            return self._tracer.add(*inputs)
        return self._tracer.step("numpy", (ufunc, *inputs), [Array(self._tracer, shape, dtype)])

    def _refuse(self, *_, **__):
        raise Untraceable("the numbers of an array are asked for")

    __array__ = __float__ = __int__ = __bool__ = __iter__ = __getitem__ = __setitem__ = __array_function__ = _refuse


@dataclass(eq=False)
class Step:
    """One operator: its name, arguments (Arrays, arrays, numbers, nested tuples), and the Arrays that it makes.

    layer: the dotted name of the layer that called it; backward: whether in its backward pass.
    """

    operator: str
    arguments: tuple
    results: tuple
    layer: str = ""
    backward: bool = False
    reason: str = ""  # of an opaque step

    @cached_property
    def reads(self):
        """The Arrays among its arguments, in order."""
        return tuple(arrays_in(self.arguments))


def arrays_in(value):
    """The Arrays in nested tuples, in order."""
    if isinstance(value, Array):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from arrays_in(part)


def _like(x, *_):
    return [x]


def _channels(count):
    return lambda x, *_: [((x.shape[-1],), x.dtype)] * count


def _of_shape(_, x_shape, *__):
    return [x_shape]


def _nothing(*_):
    return []


def _out(x, kernel_size, stride, padding, dilation, channels):
    axes = zip(x.shape[1:3], kernel_size, stride, padding, dilation, strict=True)
    return (x.shape[0], *(output_size(*axis) for axis in axes), channels)


def _convolved(x, weight, stride, padding, dilation=(1, 1)):
    return _out(x, weight.shape[:2], stride, padding, dilation, weight.shape[3])


def _pooled(x, kernel_size, stride, padding, dilation=(1, 1)):
    return _out(x, kernel_size, stride, padding, dilation, x.shape[3])


def _padded_shortcut(x, out_channels, stride):
    return [(x.shape[0], -(-x.shape[1] // stride[0]), -(-x.shape[2] // stride[1]), out_channels)]


def _layer_statistics(x, *_):
    return [x, (*x.shape[:-1], 1), (*x.shape[:-1], 1)]


def _unit_gradient(g, z, normalisation, x, prologue, weight, stride, padding, residual_gradient, need_dx, front=None,
                   add_to=None, shortcut=None, fresh=False):
    sums = [weight.shape[2:3]] * 2 if need_dx and (front or prologue) else [None, None]
    return [x.shape if need_dx else None, weight.shape if add_to is None else None, *sums]


def _coefficients(sum_g, sum_gx, var, weight, eps, count, add_to=(None, None)):
    return [var] * 3 + [var if gradient is None else None for gradient in add_to]


def _unit(x, weight, stride, padding):
    return [_convolved(x, weight, stride, padding), weight.shape[3:], weight.shape[3:]]


# An operator's results from its arguments: an array to be like, a shape of the first array's dtype, (shape, dtype), or None.
RULES = {
    "add": _like, "add_into": _nothing, "zero": _nothing, "update_running": _nothing,
    "relu_forward": _like, "relu_backward": _like, "leaky_relu_forward": _like, "leaky_relu_backward": _like,
    "gelu_forward": _like, "gelu_backward": _like, "silu_forward": _like, "silu_backward": _like,
    "dropout_keep": lambda x, *_: [(x.shape, np.bool_)], "dropout_forward": _like, "dropout_backward": _like,
    "conv2d_forward": lambda x, weight, bias, *geometry: [_convolved(x, weight, *geometry)],
    "conv2d_input_gradient": lambda dy, weight, x_shape, *_: [x_shape],
    "conv2d_weight_gradient": lambda dy, x, kernel_size, *_: [(*kernel_size, x.shape[3], dy.shape[3])],
    "channel_sum": _channels(1), "gradient_sums": _channels(2), "batch_moments": _channels(2),
    "batchnorm_forward": lambda x, *_: [x, x.shape[-1:], x.shape[-1:]], "batchnorm_apply": _like,
    "batchnorm_backward": lambda dy, *_: [dy, dy.shape[-1:], dy.shape[-1:]],
    "normalisation_scale": lambda weight, var, eps: [var], "normalise": _like, "normalise_gradient": _like,
    "batchnorm_coefficients": _coefficients,
    "layernorm_forward": _layer_statistics,
    "layernorm_backward": lambda dy, *_: [dy, dy.shape[-1:], dy.shape[-1:]],
    "groupnorm_forward": lambda x, weight, bias, groups, eps: [x, *[(x.shape[0], 1, 1, groups, 1)] * 2],
    "groupnorm_backward": lambda dy, *_: [dy, dy.shape[-1:], dy.shape[-1:]],
    "maxpool2d_forward": lambda x, *geometry: [_pooled(x, *geometry), (_pooled(x, *geometry), np.int32)],
    "maxpool2d_backward": lambda dy, argmax, x_shape, *_: [x_shape],
    "avgpool2d_forward": lambda x, *geometry: [_pooled(x, *geometry)], "avgpool2d_backward": _of_shape,
    "global_avgpool_forward": lambda x: [(x.shape[0], x.shape[3])], "global_avgpool_backward": _of_shape,
    "pad_shortcut_forward": _padded_shortcut, "pad_shortcut_backward": _of_shape,
    "linear_forward": lambda x, weight, bias: [(x.shape[0], weight.shape[1])],
    "linear_backward": lambda dy, x, weight: [x, weight.shape, weight.shape[1:]],
    "softmax_cross_entropy_forward": lambda logits, *_: [(), logits], "softmax_cross_entropy_backward": _like,
    "soft_cross_entropy_forward": lambda logits, q: [(), logits], "soft_cross_entropy_backward": _like,
    "mse_forward": lambda *_: [()], "mse_backward": _like,
    # what the plan rewrites them to
    "conv2d_moments": lambda x, prologue, *rest: _unit(x, *rest),
    "add_relu_conv2d_moments": lambda z, prologue, residual, *rest: [z, *_unit(z, *rest)],
    "conv2d_bias_relu": lambda x, weight, bias, residual, relu, stride, padding, prepared=None: [
        _convolved(x, weight, stride, padding)],
    "normalise_add_relu": _like, "add_relu_gradient": lambda dy, *_: [dy, dy.shape[-1:], dy.shape[-1:]],
    "conv2d_unit_gradient": _unit_gradient,
    "folded": lambda weight, *_: [weight, weight.shape[-1:]], "prepare": _like,
}
# The places of the arguments that an operator changes.
WRITES = {"add_into": (0,), "zero": (0,), "update_running": (0, 1), "batchnorm_coefficients": (6,),
          "conv2d_unit_gradient": (11,)}
# Operators whose first result may lie where one of these arguments lay: each element is read before it is written.
IN_PLACE = {"conv2d_unit_gradient": (8,), "add_relu_gradient": (0,), "normalise_add_relu": (2, 0), "add": (0, 1),
            "relu_forward": (0,), "relu_backward": (0,), "gelu_forward": (0,), "gelu_backward": (0,), "silu_forward": (0,),
            "silu_backward": (0,), "leaky_relu_forward": (0,), "leaky_relu_backward": (0,), "normalise": (0,),
            "normalise_gradient": (0,)}


def in_place(step):
    """The arguments of a step where its first result may lie: IN_PLACE, and what the host's back end adds."""
    places = IN_PLACE.get(step.operator, ())
    if places and step.results[0].device == "cpu":
        more = getattr(importlib.import_module(f"minires.backends.{host_backend()}"), "in_place", None)
        places += more(step.operator, step.arguments) if more else ()
    return places


class Tracer:
    """Notes what is called on it as an operator; device: "cpu" or "cuda", where the program will run."""

    def __init__(self, device="cpu"):
        self.device, self.steps, self.layer, self.backward = device, [], "", False

    @contextmanager
    def tracing(self):
        """Inside, every array's back end is this tracer."""
        token = tracer_of_caller.set(self)
        try:
            yield
        finally:
            tracer_of_caller.reset(token)

    def array(self, shape, dtype):
        """A value that no step makes: an input of the program."""
        return Array(self, shape, dtype)

    def __getattr__(self, operator):
        if operator not in RULES:
            raise AttributeError(operator)

        def call(*arguments):
            return self.step(operator, arguments, self.results(operator, arguments))

        return call

    def results(self, operator, arguments):
        """New Arrays for what an operator makes of some arguments; None where it makes nothing."""
        made = RULES[operator](*arguments)
        dtype = next((array.dtype for array in arguments if hasattr(array, "dtype")), None)
        return [self._made(value, dtype) for value in made]

    def _made(self, value, dtype):
        if value is None:
            return None
        if hasattr(value, "dtype"):
            return Array(self, value.shape, value.dtype)
        if len(value) == 2 and isinstance(value[0], tuple):
            return Array(self, *value)
        return Array(self, value, dtype)

    def step(self, operator, arguments, results, reason=""):
        """Note a step; -> what the operator returns."""
        self.steps.append(Step(operator, tuple(arguments), tuple(results), self.layer, self.backward, reason))
        return tuple(results) if len(results) > 1 else results[0] if results else None


def where(error):
    """The innermost line of a program that an error came through, outside this project's tracing: "file.py:12: the line"."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    return f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}"
