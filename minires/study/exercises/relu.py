"""ReLU."""
from minires.layers import ReLU
from minires.study.exercises.checker.exercise import BLANK, Case, Exercise, Mistake

CODE = f"""
import numpy as np

from minires.layer import Layer


class ReLU(Layer):
    def forward(self, x):
        y = np.maximum(x, 0)
        self._save(y)
        return y

    def backward(self, dy):
        (y,) = self._saved()
        {BLANK}
"""

EXERCISE = Exercise(
    title="the rectifier",
    engine=ReLU,
    make=lambda ReLU, rng: ReLU(),
    letters={"x": "N H W C", "y": "N H W C"},
    formula="y = max(x, 0)",
    keeps="y",
    code=CODE,
    cases=(Case((1, 4, 5, 3)), Case((2, 5, 3, 4))),
    mistakes=(
        Mistake("mask missing", "dx lets every dy through: where x is negative y does not move, and dx is 0",
                lambda s: s.dy),
        Mistake("mask of dy", "dx is masked by the sign of dy: what decides is whether x, or y, is positive",
                lambda s: s.dy * (s.dy > 0)),
        Mistake("mask inverted", "dx passes where x is negative and is 0 where x is positive: the mask is the wrong way "
                "round", lambda s: s.dy * (s.y <= 0)),
        Mistake("times y", "dx is dy times y: the slope of y where it is positive is 1, not y", lambda s: s.dy * s.y),
        Mistake("comparison of the product", "dx is where dy * y > 0: Python multiplies before it compares, write "
                "dy * (y > 0)", lambda s: (s.dy * s.y > 0).astype(s.dtype)),
        Mistake("slope without dy", "dx is the slope of ReLU alone: the chain rule multiplies it by dy",
                lambda s: (s.y > 0).astype(s.dtype)),
        Mistake("relu of dy", "dx is masked by x and by the sign of dy: only the first belongs (the second is guided "
                "backpropagation)", lambda s: s.dy * (s.dy > 0) * (s.y > 0)),
    ),
)
