"""A layer that is computed as it is planned: for checking what `minires.compile` runs by what checks a layer."""
import numpy as np

from minires.layer import Layer
from minires.plan import compile


class Planned(Layer):
    """The inner layer's y and dx, by a planned training step (see `minires.plan`); parameters and keys are the inner one's.

    x, y: as the inner layer has them. The plan computes forward and backward in one, so backward runs both.
    """

    def __init__(self, inner):
        self.inner, self._step = inner, compile(inner, Given(), input_gradient=True)

    def named_layers(self, prefix=""):
        """The inner layer's, by its own names."""
        yield from self.inner.named_layers(prefix)

    def forward(self, x):
        self._save(x)
        y = self.inner.forward(x)
        self.inner.forget()
        return y

    def backward(self, dy):
        (x,) = self._saved()
        before = [parameter.grad.copy() for parameter in self.parameters()]
        _, _, dx = self._step(x, dy)
        for parameter, gradient in zip(self.parameters(), before, strict=True):
            parameter.grad += gradient
        return dx


class Given:
    """A loss whose gradient is given, in the place of the target."""

    def forward(self, y, target):
        self._target = target
        return np.float64(0)

    def backward(self):
        return self._target
