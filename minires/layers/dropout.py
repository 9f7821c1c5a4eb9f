"""Dropout."""
from minires.arguments import number
from minires.backends import ops_for
from minires.init import default_rng
from minires.layer import Layer


class Dropout(Layer):
    """In training, set each element to zero with probability p and scale the rest so that the mean is kept.

    x, y: any shape

        y = x * keep / (1 - p), keep drawn anew each forward        evaluation: y = x

    Backward. Given the draw, y is x times a diagonal matrix, which is its own transpose: dx = dy * keep / (1 - p).

    Source: Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html
    rng: the Generator the draws come from, or a seed (see `minires.init.default_rng`). UserError unless 0 <= p < 1.
    """

    def __init__(self, p=0.5, *, rng=None):
        self.p = number("p, the probability of dropping,", p, 0, below=1)
        self.rng = default_rng(rng)

    def forward(self, x):
        if not self.training or self.p == 0:
            self._save(None)
            return x
        keep = ops_for(x).dropout_keep(x, self.rng, self.p)
        self._save(keep)
        return ops_for(x).dropout_forward(x, keep, self.p)

    def backward(self, dy):
        (keep,) = self._saved()
        return dy if keep is None else ops_for(dy).dropout_backward(dy, keep, self.p)
