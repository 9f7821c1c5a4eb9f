"""Activations, element by element: ReLU and its smooth or leaky relatives."""
from minires.arguments import number
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


class LeakyReLU(Layer):
    """Pass what is positive, and a little of what is negative, so that no unit is dead for ever.

    x, y: any shape        y = x where x > 0, else slope * x

    Backward. dx = dy where x > 0, else slope * dy, which is also its value at the kink; y has the sign of x, so the mask
    is read off y, as in ReLU. UserError unless 0 <= slope < infinity.
    Source: Maas et al. 2013, "Rectifier Nonlinearities Improve Neural Network Acoustic Models", section 2.
    """

    def __init__(self, slope=0.01):
        self.slope = number("slope", slope, 0)

    def forward(self, x):
        self._require(x)
        y = ops_for(x).leaky_relu_forward(x, self.slope)
        self._save(y)
        return y

    def backward(self, dy):
        (y,) = self._saved()
        return ops_for(dy).leaky_relu_backward(dy, y, self.slope)


class GELU(Layer):
    """Weigh x by the probability that a standard normal number is below it: the exact form, by the error function.

    x, y: any shape        y = x Φ(x)        Φ(x) = (1 + erf(x / sqrt(2))) / 2

    Backward. Φ' is the normal density φ(x) = exp(-x^2 / 2) / sqrt(2 π), so by the product rule

        dx = dy * (Φ(x) + x φ(x))

    The slope is no function of y alone (y falls, then rises), so x is kept.
    Source: Hendrycks & Gimpel 2016, section 2, https://arxiv.org/abs/1606.08415
    """

    def forward(self, x):
        self._require(x)
        self._save(x)
        return ops_for(x).gelu_forward(x)

    def backward(self, dy):
        (x,) = self._saved()
        return ops_for(dy).gelu_backward(dy, x)


class SiLU(Layer):
    """Weigh x by its own sigmoid (also called swish).

    x, y: any shape        y = x σ(x)        σ(x) = 1 / (1 + exp(-x))

    Backward. σ' = σ (1 - σ), so by the product rule

        dx = dy * (σ(x) + x σ(x) (1 - σ(x)))

    Source: Elfwing et al. 2017, section 2, https://arxiv.org/abs/1702.03118
    """

    def forward(self, x):
        self._require(x)
        self._save(x)
        return ops_for(x).silu_forward(x)

    def backward(self, dy):
        (x,) = self._saved()
        return ops_for(dy).silu_backward(dy, x)
