"""Looking inside a network while it runs, and leaving no trace of it.

    with opened(model), tapped(model, on_forward, on_backward):
        model.backward(dy_of(model.forward(x)))
"""
from contextlib import contextmanager

from minires import layer


@contextmanager
def left_as_found(model):
    """Inside, gradients start at zero; afterwards every layer has the attributes and gradients that it had before.

    That covers modes, running statistics, what forward kept and taps; a weight changed in place it does not.
    """
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    with layer.left_as_found(model):
        for parameter, gradient in gradients:
            parameter.grad = gradient.copy()
            parameter.zero_grad()
        try:
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient


@contextmanager
def opened(model):
    """`left_as_found`, and inside: evaluation mode."""
    with left_as_found(model):
        model.eval()
        yield


@contextmanager
def tapped(model, on_forward=None, on_backward=None):
    """Inside, on_forward(name, layer, y) is called after each layer's forward, on_backward(name, layer, dy, dx) after its
    backward, for the model (named "") and all below it."""
    names = {part: name for name, part in model.named_layers()}

    def tell(part, method, array, result):
        if method == "forward" and on_forward is not None:
            on_forward(names[part], part, result)
        if method == "backward" and on_backward is not None:
            on_backward(names[part], part, array, result)

    with layer.listening(names, tell):
        yield
