"""Global average pooling."""
import numpy as np

from minires.layers import GlobalAvgPool2d
from minires.study.exercises.checker.exercise import BLANK, Case, Exercise, Mistake

CODE = f"""
import numpy as np

from minires.layer import Layer


class GlobalAvgPool2d(Layer):
    def forward(self, x):
        self._save(x.shape)
        return x.mean((1, 2))

    def backward(self, dy):
        (x_shape,) = self._saved()
        {BLANK}
"""


def _at(s, index):
    dx = np.zeros_like(s.x)
    dx[:, index, index] = s.dy
    return dx


def _at_largest(s):
    flat = s.x.reshape(len(s.x), -1, s.x.shape[-1])
    return ((flat == flat.max(1, keepdims=True)) * s.dy[:, None]).reshape(s.x.shape)


EXERCISE = Exercise(
    title="global average pooling",
    engine=GlobalAvgPool2d,
    make=lambda GlobalAvgPool2d, rng: GlobalAvgPool2d(),
    letters={"x": "N H W C", "y": "N C"},
    formula="y = mean of x over H and W",
    keeps="x's shape",
    code=CODE,
    cases=(Case((1, 4, 5, 3)), Case((2, 5, 3, 4)), Case((5, 3, 6, 2))),
    mistakes=(
        Mistake("not divided", "dx is exactly H*W = {H*W} times too large: each pixel moves the mean by 1 / (H*W)",
                lambda s: s.right["dx"] * s.dims["H"] * s.dims["W"]),
        Mistake("divided by one side", "dx is divided by one side of the image only: a mean over H and W divides by H*W",
                lambda s: s.right["dx"] * s.dims["H"]),
        Mistake("divided by one side", "dx is divided by one side of the image only: a mean over H and W divides by H*W",
                lambda s: s.right["dx"] * s.dims["W"]),
        Mistake("divided by C too", "dx is exactly C = {C} times too small: the mean is over H and W, not over the "
                "channels", lambda s: s.right["dx"] / s.dims["C"]),
        Mistake("one pixel only", "dx gives all of dy to the first pixel: every pixel took part in the mean",
                lambda s: _at(s, 0)),
        Mistake("largest only", "dx gives dy to the largest pixel: that is max pooling's gradient", _at_largest),
    ),
)
