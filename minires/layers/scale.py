"""A learned factor and a learned summand: what a branch without normalisation needs."""
import numpy as np

from minires.arguments import count, number
from minires.backends import ops_for
from minires.layer import Layer, Parameter


class _OfChannels(Layer):
    """A vector of one number a channel, or of a single one for all of them."""

    def _check(self, x, vector):
        self._require(x, (..., vector.data.size) if vector.data.size > 1 else None)

    def _sums(self, values, vector):
        """Over all but the channels, and over those too where they share one number."""
        sums = ops_for(values).channel_sum(values)
        return sums if vector.data.size > 1 else ops_for(sums).channel_sum(sums.reshape(-1, 1))


class Scale(_OfChannels):
    """Multiply each channel, or with one channel everything, by a learned number.

    x, y: (..., C); weight: (C,) or (1,)        y = weight * x

    Backward. y is linear in each of the two: dx = weight * dy, dweight = sum(dy * x) over all that share the weight.
    value: of each weight at the start. At 0 behind a branch, a residual block begins as its shortcut (SkipInit).
    Source: De & Smith 2020, section 4, https://arxiv.org/abs/2002.10444
    """

    def __init__(self, channels=1, value=1.0):
        self.channels, self.value = count("channels", channels), number("value", value)
        self.weight = Parameter(np.full(channels, value, np.float32), decays=False)

    def forward(self, x):
        self._check(x, self.weight)
        self._save(x)
        return x * self.weight.data

    def backward(self, dy):
        (x,) = self._saved()
        self.weight.accumulate(self._sums(dy * x, self.weight))
        return dy * self.weight.data


class Bias(_OfChannels):
    """Add a learned number to each channel, or with one channel to everything.

    x, y: (..., C); bias: (C,) or (1,), 0 at the start        y = x + bias

    Backward. dx = dy, dbias = sum(dy) over all that share the bias.
    Source: Zhang et al. 2019 (Fixup), section 3, https://arxiv.org/abs/1901.09321
    """

    def __init__(self, channels=1):
        self.channels = count("channels", channels)
        self.bias = Parameter(np.zeros(channels, np.float32), decays=False)

    def forward(self, x):
        self._check(x, self.bias)
        self._save()
        return x + self.bias.data

    def backward(self, dy):
        self._saved()
        self.bias.accumulate(self._sums(dy, self.bias))
        return dy
