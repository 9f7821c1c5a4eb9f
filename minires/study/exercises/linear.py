"""The linear layer."""
from minires.layers import Linear
from minires.study.exercises.checker.exercise import BLANK, Case, Exercise, Mistake

CODE = f"""
import numpy as np

from minires.layer import Layer, Parameter


class Linear(Layer):
    def __init__(self, in_features, out_features, *, rng):
        self.weight = Parameter(rng.standard_normal((in_features, out_features), np.float32))
        self.bias = Parameter(np.zeros(out_features, np.float32))

    def forward(self, x):
        self._save(x)
        return x @ self.weight.data + self.bias.data

    def backward(self, dy):
        (x,) = self._saved()
        {BLANK}
"""

EXERCISE = Exercise(
    title="the linear layer",
    engine=Linear,
    make=lambda Linear, rng, features: Linear(*features, rng=rng),
    letters={"x": "N C", "y": "N K", "weight": "C K", "bias": "K"},
    formula="y = x @ weight + bias",
    keeps="x",
    code=CODE,
    cases=(Case((1, 7), features=(7, 5)), Case((3, 4), features=(4, 4)), Case((3, 7), features=(7, 5))),
    mistakes=(
        Mistake("weight not transposed", "dx multiplies dy by weight as it stands, which fits only where C = K: a gradient "
                "goes back through weight^T", lambda s: s.dy @ s.params["weight"] if _square(s) else s.right["dx"]),
        Mistake("dy not transposed", "dweight is dy^T x, of shape (K, C): it must be x^T dy, (C, K)",
                lambda s: {"weight": s.dy.T @ s.x if _square(s) else s.right["weight"]}),
    ),
)


def _square(s):
    return s.dims["C"] == s.dims["K"]
