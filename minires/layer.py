"""Parameter, Layer and Sequential: the contract every layer, block and network keeps.

    y = layer.forward(x)     # also layer(x); keeps what backward needs
    dx = layer.backward(dy)  # dL/dx; adds dL/dparameter to parameter.grad; frees what forward kept
    with inference_mode():   # forward keeps nothing
        y = layer.forward(x)

What the derivations of this project are written in, docstrings and notebooks alike:

    dy, dx      gradients: dL/dy and dL/dx of the loss L, of y's and of x's shape
    δx          a small change of x; δy is the change of y that it makes, to first order
    <a, b>      sum(a * b) over all entries. So δL = <dy, δy>: that is what dy means
    A^T         the transpose of a linear map A, also called its adjoint: <A u, v> = <u, A^T v> for all u and v
    s, x_hat    of a normalisation: 1 / sqrt(var + eps), and (x - mean) * s

A backward pass is a transpose: δy = A δx makes δL = <dy, A δx> = <A^T dy, δx>, hence dx = A^T dy.
"""
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from enum import Enum

import numpy as np

from minires.backends import device_of, ops_for, to_device, to_numpy
from minires.errors import UserError
from minires.reprs import Shown, describe
from minires.watching import Noticed, changed, heard
from minires.watching import calls_go_to as calls_go_to  # for who watches layers
from minires.watching import listening as listening

_inference = ContextVar("minires_inference", default=None)  # inside inference_mode a dict: see inference_cache


@contextmanager
def inference_mode():
    """Inside, forward keeps nothing for a backward pass.

    Change no weight inside (but by load_state_dict, astype or to): what is derived from weights is kept until the block is
    left, so enter it once for many batches.
    """
    token = _inference.set({})
    try:
        yield
    finally:
        _inference.reset(token)


def serving_context():
    """A context (contextvars) that is in inference mode for good, for a program that only answers: `.run(function, ...)`."""
    context = copy_context()
    context.run(_inference.set, {})
    return context


def in_inference_mode():
    """Whether the caller is inside `inference_mode`."""
    return _inference.get() is not None


def inference_cache():
    """The dict that lives as long as the `inference_mode` around the caller, for what is derived from weights."""
    return _inference.get()


class Parameter(Shown, Noticed):
    """An array that is learned, and the gradient of the loss with respect to it, of the same shape and dtype.

    `backward` adds to `grad`; `zero_grad` empties it. `decays` says whether weight decay is meant for it when an
    optimiser is told to spare biases and normalisation. An optimiser multiplies its rate by `lr_factor` and its weight decay
    by `decay_factor`. `frozen = True`: no gradient is computed for it, and no optimiser moves it; `grad` is a new array of
    zeros (`minires.optim.set_parameters` sets all of these by name). `mask`: None, or ones, and zeros where optimisers keep
    the data at zero (`minires.optim.prune`).
    """

    lr_factor = decay_factor = 1.0
    mask, _frozen = None, False

    def __init__(self, data, decays=True):
        self.data = data
        self.grad = np.zeros_like(data)
        self.decays = decays

    @property
    def frozen(self):
        """Whether it stays as it is."""
        return self._frozen

    @frozen.setter
    def frozen(self, frozen):
        if frozen != self._frozen:
            self._frozen, self.grad = bool(frozen), self.grad.copy()  # another array: who planned with the old one notices
            self.zero_grad()

    def zero_grad(self):
        """Set the gradient to zero, in place."""
        self.grad.fill(0)

    def accumulate(self, gradient):
        """grad += gradient, in place, unless frozen."""
        if self._frozen:
            return
        ops_for(self.grad).add_into(self.grad, gradient)

    def convert(self, change):
        """Replace data and gradient by `change` of them (a dtype or device conversion)."""
        self.data, self.grad = change(self.data), change(self.grad)
        self.mask = None if self.mask is None else change(self.mask)


def zero_gradients(parameters):
    """Set the gradients of some parameters to zero, in place."""
    gradients = [parameter.grad for parameter in parameters]
    if gradients:
        ops_for(gradients[0]).zero(gradients)


@contextmanager
def left_as_found(model):
    """Afterwards every layer of a model has the attributes, statistics and random streams that it had before.

    Modes, listeners, what forward kept: all of it. A weight changed in place stays changed.
    """
    found = [(layer, dict(vars(layer)), {name: getattr(layer, name).copy() for name in layer.buffers})
             for _, layer in model.named_layers()]
    streams = [(value, value.bit_generator.state) for _, attributes, _ in found for value in attributes.values()
               if isinstance(value, np.random.Generator)]
    try:
        yield
    finally:
        for layer, attributes, buffers in found:
            vars(layer).clear()
            vars(layer).update(attributes)
            for name, values in buffers.items():
                getattr(layer, name)[...] = values
        for stream, state in streams:
            stream.bit_generator.state = state
        changed()


@contextmanager
def evaluating(model):
    """Inside, every layer is in evaluation mode; afterwards each in its own again."""
    training = [(layer, "training" in vars(layer)) for _, layer in model.named_layers() if layer.training]
    for layer, _ in training:
        layer.training = False
    try:
        yield
    finally:
        for layer, own in training:
            del layer.training  # the class's is True
            if own:
                layer.training = True


class Kept(Enum):
    """Why a layer holds nothing for backward: no forward yet, a backward used it, or forward was in inference_mode."""

    NOTHING_YET, USED, INFERENCE = range(3)


class Layer(Noticed):
    """A function with a hand-written derivative. Subclasses write `forward` and `backward`, one under the other.

    Attributes that are Parameters or Layers are found automatically, in the order of construction, also inside lists, tuples
    and dicts (`self.parts = [Linear(3, 3)]` is named parts.0); one that is kept in several places is found once. Names in
    the class attribute `buffers` are arrays that are saved but not learned (running statistics).

    listeners: functions called after each forward and backward of this layer, listener(layer, "forward", x, y) and
    listener(layer, "backward", dy, dx); what one returns, if it is not None, takes the place of the result. `listening` adds
    one for a while.
    """

    buffers = ()
    training = True
    listeners = ()
    _kept = Kept.NOTHING_YET  # a tuple once forward has saved something

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        for method in ("forward", "backward"):
            if method in vars(cls):
                setattr(cls, method, heard(vars(cls)[method]))

    def forward(self, x):
        """y from x; outside `inference_mode` it keeps what `backward` will need."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def backward(self, dy):
        """dL/dx from dL/dy; adds to each parameter's `grad`. Once per forward: it frees what forward kept."""
        raise NotImplementedError(f"{type(self).__name__} does not define backward")

    def __call__(self, x):
        return self.forward(x)

    def __repr__(self):
        return describe(self, self.named_children())

    # --- what forward keeps for backward ---

    def _save(self, *kept):
        self._kept = Kept.INFERENCE if in_inference_mode() else kept

    def _saved(self):
        kept, self._kept = self._kept, Kept.USED
        if isinstance(kept, Kept):
            what = {Kept.NOTHING_YET: "nothing yet", Kept.USED: "it for one backward only",
                    Kept.INFERENCE: "nothing in inference_mode"}[kept]
            raise RuntimeError(f"{type(self).__name__}.backward needs what forward keeps, and forward kept {what}: "
                               "call forward, outside inference_mode, before each backward")
        return kept

    def forget(self):
        """Drop what the last forward kept, here and below (after a forward that no backward will follow)."""
        self._kept = Kept.NOTHING_YET
        for _, child in self.named_children():
            child.forget()
        return self

    # --- walking the tree ---

    def named_children(self):
        """Yield (name, Layer) of the direct children, in construction order."""
        return members(Layer, vars(self))

    def named_layers(self, prefix=""):
        """Yield (dotted name, Layer) of this layer (named "") and all below it, depth first, each once."""
        return self._walk(prefix, set())

    def _walk(self, prefix, seen):
        if id(self) not in seen:
            seen.add(id(self))
            yield prefix, self
            for name, child in self.named_children():
                yield from child._walk(f"{prefix}.{name}" if prefix else name, seen)

    def own_parameters(self):
        """Yield (name, Parameter) of what this layer itself keeps, not its children."""
        return members(Parameter, vars(self))

    def named_parameters(self):
        """Yield (dotted name, Parameter) in construction order, each once: PyTorch's state_dict names."""
        seen = set()
        for prefix, layer in self.named_layers():
            for name, value in layer.own_parameters():
                if id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{prefix}.{name}" if prefix else name), value

    def parameters(self):
        """The list of Parameters, in construction order."""
        return [parameter for _, parameter in self.named_parameters()]

    def zero_grad(self):
        """Set every parameter's gradient to zero."""
        zero_gradients(self.parameters())

    # --- modes, dtypes and devices ---

    def train(self, mode=True):
        """Training mode: batch normalisation uses the batch's statistics, dropout drops. Returns self."""
        for _, layer in self.named_layers():
            layer.training = mode
        return self

    def eval(self):
        """Evaluation mode: batch normalisation uses its running statistics, dropout is the identity. Returns self."""
        return self.train(False)

    def _convert(self, change):
        for _, layer in self.named_layers():
            for _, value in layer.own_parameters():
                value.convert(change)
            for name in layer.buffers:
                setattr(layer, name, change(getattr(layer, name)))
        self._weights_changed()
        return self.forget()

    def _weights_changed(self):
        if in_inference_mode():
            inference_cache().clear()

    def astype(self, dtype):
        """Convert parameters and buffers to float32 or float64, in place. Returns self."""
        dtype = np.dtype(dtype)
        if dtype not in (np.float32, np.float64):
            raise UserError(f"cannot convert a layer to {dtype}: minires computes in float32 or float64")
        return self._convert(lambda array: array.astype(dtype))

    def to(self, device):
        """Move parameters and buffers to "cpu" or "cuda", in place. Returns self."""
        return self._convert(lambda array: to_device(array, device))

    # --- saving and loading ---

    def _tensors(self):
        """Yield (dotted name, array) of parameters and buffers, layer by layer."""
        for prefix, layer in self.named_layers():
            own = [(name, value.data) for name, value in layer.own_parameters()]
            for name, array in own + [(name, getattr(layer, name)) for name in layer.buffers]:
                yield (f"{prefix}.{name}" if prefix else name), array

    def state_dict(self):
        """A new dict of copies, NumPy arrays in host memory: PyTorch's keys, this project's layouts."""
        return {name: to_numpy(array).copy() for name, array in self._tensors()}

    def load_state_dict(self, state):
        """Copy the arrays of `state` in. Nothing is changed unless every key and shape fits.

        Raises UserError that lists every missing, extra and misshapen key.
        """
        own = dict(self._tensors())
        problems = [f"missing {name}" for name in own if name not in state]
        problems += [f"unexpected {name}" for name in state if name not in own]
        problems += [f"{name} has shape {tuple(state[name].shape)}, expected {tuple(array.shape)}"
                     for name, array in own.items() if name in state and state[name].shape != array.shape]
        if problems:
            raise UserError(f"these weights do not fit this {type(self).__name__}: " + "; ".join(problems))
        for name, array in own.items():
            array[...] = to_device(np.asarray(state[name], array.dtype), device_of(array))
        self._weights_changed()
        return self

    def _require(self, x, shape=None):
        """Refuse an x whose rank, fixed sizes or dtype do not fit.

        shape: letters for any size, numbers for fixed, (..., C) for up to three axes in front; None for any.
        """
        if not hasattr(x, "ndim") or not hasattr(x, "dtype") or type(x).__module__.split(".")[0] == "torch":
            raise UserError(f"{type(self).__name__} computes with NumPy and CuPy arrays, got a {type(x).__module__}."
                            f"{type(x).__name__}: use numpy.asarray on it")
        if shape is None:
            shape = x.shape
        elif shape[0] is ...:
            shape = (*"NHW"[:x.ndim - 1], *shape[1:])
        fits = x.ndim == len(shape) and all(isinstance(want, str) or want == got
                                            for want, got in zip(shape, x.shape, strict=True))
        if not fits:
            wanted = ", ".join(map(str, shape))
            raise UserError(f"{type(self).__name__} expects x of shape ({wanted}), got {tuple(x.shape)}")
        if x.size == 0:
            raise UserError(f"{type(self).__name__} got an empty x of shape {tuple(x.shape)}: a batch needs an image")
        weights = next((value.data for _, value in self.own_parameters()), x)
        mine, other = device_of(weights), device_of(x)
        if mine != other:
            raise UserError(f"{type(self).__name__} is on {mine} and x on {other}: move one of them, as in "
                            f"layer.to({other!r})")
        own = weights.dtype
        if x.dtype != own or x.dtype not in (np.float32, np.float64):
            raise UserError(f"{type(self).__name__} computes in {own if own != x.dtype else 'float32 or float64'}, "
                            f"got x of dtype {x.dtype}: convert x, or the layer with astype")


def members(kind, attributes):
    """Yield (name, value) of the values of a kind among a layer's attributes, and in the containers among them."""
    for name, value in attributes.items():
        if isinstance(value, kind):
            yield name, value
        elif isinstance(value, list | tuple | dict) and name not in ("_kept", "listeners"):
            yield from _contained(kind, name, value, ())


def _contained(kind, name, container, around):
    if any(container is outer for outer in around):
        raise UserError(f"{name} is kept in itself: layers are found in lists, tuples and dicts that end")
    for key, value in container.items() if isinstance(container, dict) else enumerate(container):
        if isinstance(value, kind):
            yield f"{name}.{key}", value
        elif isinstance(value, list | tuple | dict):
            yield from _contained(kind, f"{name}.{key}", value, (*around, container))


class Sequential(Layer):
    """Layers one after another; backward walks them in reverse, which is the chain rule."""

    def __init__(self, *layers):
        for index, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                star = ": write Sequential(*layers)" if isinstance(layer, list | tuple) else ""
                raise UserError(f"Sequential takes layers, got a {type(layer).__name__} at place {index}{star}")
            setattr(self, str(index), layer)

    def __iter__(self):
        return iter([layer for _, layer in self.named_children()])

    def __len__(self):
        return len(list(self.named_children()))

    def __getitem__(self, index):
        return list(self)[index]

    def forward(self, x):
        for layer in self:
            x = layer.forward(x)
        return x

    def backward(self, dy):
        for layer in reversed(list(self)):
            dy = layer.backward(dy)
        return dy
