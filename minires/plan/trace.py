"""From a model to a program: forward, loss and backward run once on arrays without numbers.

What a layer computes that is no operator (it asks for numbers, changes itself, or somebody listens) is *opaque*: the program
calls the layer where it stands, forward and backward, and everything around it is planned.
"""
import numpy as np

from minires.backends import to_device, tracer_of_caller
from minires.backends.trace import Array, Tracer, Untraceable, where
from minires.errors import UserError
from minires.layer import calls_go_to, inference_mode, left_as_found
from minires.plan.program import Program


def trace(model, loss, inputs, device, input_gradient=False):
    """The Program of a training step (its outputs loss, logits and, if asked for, dL/dx); without a loss that of a forward
    pass which keeps nothing.

    inputs: shapes and dtypes of x and target, or of x, as (shape, dtype). Nothing of the model is changed.
    UserError for what the layers refuse; what a layer raises on real arrays too comes through.
    """
    known = {}
    while True:
        tracer = Tracer(device)
        arrays, watch = [tracer.array(*each) for each in inputs], _Watch(tracer, model, known)
        try:
            with tracer.tracing(), left_as_found(model), calls_go_to(watch, tell=False):
                outputs = _step(tracer, watch, model, loss, *arrays)
        except _BackwardOpaque as found:
            known[found.layer] = str(found)
            continue
        if input_gradient and outputs[2] is None:
            raise UserError("the model's backward returns None where dL/dx is asked for: leave input_gradient of its first "
                            "layer True")
        program = Program(tracer.steps, arrays, outputs if loss is None or input_gradient else outputs[:2])
        layers = [layer for layer in watch.opaque if layer is not loss]
        program.opaque = {*watch.opaque, *(below for layer in layers for _, below in layer.named_layers())}
        return program


def _step(tracer, watch, model, loss, x, target=None):
    if loss is None:
        with inference_mode():
            return [model.forward(x)]
    y = model.forward(x)
    value = watch.loss(loss, "forward", (y, target), (), y.dtype)
    gradients = tuple(parameter.grad for parameter in model.parameters())
    if gradients:
        tracer.zero(gradients)
    dy, tracer.backward = watch.loss(loss, "backward", (), y.shape, y.dtype), True
    return [value, y, model.backward(dy)]


class _Watch:
    """Stands between the layers of a model while they are traced: names steps, and makes opaque ones.

    known: {layer: why it is opaque} of those whose backward was found to be; opaque: {layer: the input of its forward}.
    """

    def __init__(self, tracer, model, known):
        self._tracer, self._known, self.opaque = tracer, known, {}
        self._names = {id(layer): name for name, layer in model.named_layers()}

    def __call__(self, method, layer, array):
        tracer, outer = self._tracer, self._tracer.layer
        tracer.layer = self._names.get(id(layer), outer)
        try:
            if method.__name__ == "backward" and layer in self.opaque:
                x = self.opaque[layer]
                return self._called(type(layer).backward, (layer, array), x.shape, x.dtype, "its forward is opaque")
            return self._traced(method, layer, array)
        finally:
            tracer.layer = outer

    def loss(self, loss, name, arguments, shape, dtype):
        """The loss's forward or backward, traced or, if it computes by itself, called."""
        reason = "its forward is opaque" if loss in self.opaque else self._known.get(loss)
        result, reason = self._tried(loss, lambda: (getattr(loss, name)(*arguments), None), reason)
        if reason is None:
            return result
        if name == "backward" and loss not in self.opaque:
            raise _BackwardOpaque(loss, reason)
        self.opaque[loss] = None
        return self._called(getattr(type(loss), name), (loss, *arguments), shape, dtype, reason)

    def _traced(self, method, layer, array):
        reason = "somebody listens to it" if layer.listeners else self._known.get(layer)
        result, reason = self._tried(layer, lambda: _checked(method, layer, array), reason)
        if reason is None:
            return result
        if method.__name__ == "backward":
            raise _BackwardOpaque(layer, reason)
        y, self.opaque[layer] = self._probe(layer, array), array
        return self._called(type(layer).forward, (layer, array), y.shape, y.dtype, reason)

    def _tried(self, owner, function, reason):
        """(what a function of the owner's returns, None), or (None, why it is not traced), and then nothing was."""
        count, before = len(self._tracer.steps), dict(vars(owner))
        try:
            if reason is None:
                result, reason = function()
                if reason is None:
                    return result, None
        except (UserError, _BackwardOpaque):
            raise
        except Exception as error:  # whatever is done with an array that has no numbers
            reason = f"{error if isinstance(error, Untraceable) else repr(error)} ({where(error)})"
        del self._tracer.steps[count:]
        vars(owner).clear()
        vars(owner).update(before)
        return None, reason

    def _called(self, function, arguments, shape, dtype, reason):
        return self._tracer.step("opaque", (function, *arguments), [Array(self._tracer, shape, dtype)], reason)

    def _probe(self, layer, array):
        """What the layer makes of zeros, computed, and leaving no trace: its shape is known no other way."""
        token = tracer_of_caller.set(None)
        try:
            with left_as_found(layer), calls_go_to(None, tell=False), inference_mode(), np.errstate(all="ignore"):
                return layer.forward(to_device(np.zeros(array.shape, array.dtype), array.device))
        finally:
            tracer_of_caller.reset(token)


class _BackwardOpaque(Exception):
    """A layer whose forward can be traced, and whose backward cannot."""

    def __init__(self, layer, reason):
        super().__init__(reason)
        self.layer = layer


def _checked(method, layer, array):
    """(What a layer's method returns, why no program has that or None)."""
    before, result, after = _attributes(layer), method(layer, array), _attributes(layer)
    changed = sorted(name for name in {**before, **after} if before.get(name, _checked) is not after.get(name, _checked))
    if changed:
        return result, f"it changes its own {', '.join(changed)}"
    return result, None if isinstance(result, Array | type(None)) else f"it returns {type(result).__name__}, no array"


def _attributes(layer):
    return {name: value for name, value in vars(layer).items() if name != "_kept"}
