"""A 1x1 convolution: a linear layer at every pixel."""
from minires.layers import Conv2d
from minires.study.exercises.checker.exercise import BLANK, Case, Exercise, Mistake

CODE = f"""
import numpy as np

from minires.layer import Layer, Parameter


class Conv2d(Layer):
    def __init__(self, in_channels, out_channels, kernel_size=1, stride=1, *, rng):
        self.stride = stride
        self.weight = Parameter(rng.standard_normal((1, 1, in_channels, out_channels), np.float32))
        self.bias = Parameter(np.zeros(out_channels, np.float32))

    def forward(self, x):
        self._save(x)
        seen = x[:, ::self.stride, ::self.stride]
        return seen @ self.weight.data[0, 0] + self.bias.data

    def backward(self, dy):
        (x,) = self._saved()
        seen = x[:, ::self.stride, ::self.stride]  # (N, OH, OW, C)
        {BLANK}
"""


def _filled(s):
    """Every skipped pixel takes the gradient of the one that was read."""
    dx = s.dy @ s.params["weight"][0, 0].T
    step = s.options["stride"]
    return dx.repeat(step, 1).repeat(step, 2)[:, :s.x.shape[1], :s.x.shape[2]]


EXERCISE = Exercise(
    title="a 1x1 convolution with stride",
    engine=Conv2d,
    make=lambda Conv2d, rng, channels, stride: Conv2d(*channels, 1, stride, rng=rng),
    letters={"x": "N H W C", "y": "N OH OW O", "weight": "1 1 C O", "bias": "O"},
    formula="y[n, oh, ow] = x[n, stride * oh, stride * ow] @ weight[0, 0] + bias",
    keeps="x",
    code=CODE,
    cases=(Case((1, 3, 5, 6), channels=(6, 4), stride=1), Case((2, 5, 3, 4), channels=(4, 4), stride=1),
           Case((2, 3, 5, 6), channels=(6, 7), stride=1), Case((2, 7, 8, 3), channels=(3, 6), stride=2)),
    mistakes=(
        Mistake("skipped pixels filled", "dx fills the pixels that the stride skipped: forward never read them, so they "
                "get 0", _filled),
        Mistake("weight not transposed", "dx multiplies dy by weight as it stands, which fits only where C = O: a "
                "gradient goes back through weight^T", lambda s: s.dy @ s.params["weight"][0, 0]
                if s.dims["C"] == s.dims["O"] else s.right["dx"]),
    ),
    hint="It is exercise linear with N * OH * OW rows: np.einsum, or a reshape, sums over all of them.",
)
