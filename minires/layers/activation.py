"""The rectifier."""
from minires.backends import ops_for
from minires.layer import Layer


class ReLU(Layer):
    """Pass what is positive.

    x, y: any shape        y = max(x, 0)

    Backward. Each y depends on its own x alone, with slope 1 where x > 0 and 0 where x < 0; at the kink we take 0:

        dx = dy * (y > 0)

    The mask is read off y, which the next layer keeps anyway, so x need not be kept.
    Source: Nair & Hinton 2010, "Rectified Linear Units Improve Restricted Boltzmann Machines".
    """

    def forward(self, x):
        y = ops_for(x).relu_forward(x)
        self._save(y)
        return y

    def backward(self, dy):
        (y,) = self._saved()
        return ops_for(dy).relu_backward(dy, y)
