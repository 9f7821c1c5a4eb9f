"""Layer normalisation."""
import numpy as np

from minires.layers import LayerNorm
from minires.study.exercises.checker.exercise import BLANK, Case, Exercise, Mistake
from minires.study.exercises.checker.normalisation import OVER, PARAMETERS, corrected, explain_terms

CODE = f"""
import numpy as np

from minires.layer import Layer, Parameter


class LayerNorm(Layer):
    def __init__(self, num_features, eps=1e-5):
        self.eps = eps
        self.weight = Parameter(np.ones(num_features, np.float32))
        self.bias = Parameter(np.zeros(num_features, np.float32))

    def forward(self, x):
        mean = x.mean(-1, keepdims=True)
        var = ((x - mean) ** 2).mean(-1, keepdims=True)
        inv_std = 1 / np.sqrt(var + self.eps)
        x_hat = (x - mean) * inv_std
        self._save(x_hat, inv_std)
        return self.weight.data * x_hat + self.bias.data

    def backward(self, dy):
        x_hat, inv_std = self._saved()
        {BLANK}
"""


def _dx(s, axes=(-1,), g=None, **terms):
    inv_std = 1 / np.sqrt(s.x.var(-1, keepdims=True) + s.layer.eps)
    x_hat = (s.x - s.x.mean(-1, keepdims=True)) * inv_std
    return corrected(s.dy * s.params["weight"] if g is None else g, x_hat, inv_std, axes, **terms)


EXERCISE = Exercise(
    title="layer normalisation",
    engine=LayerNorm,
    make=lambda LayerNorm, rng: LayerNorm(6),
    letters={"x": "N H W C", "y": "N H W C", "weight": "C", "bias": "C"},
    formula="mean, var = mean and biased variance over the C channels of each pixel\n"
            "inv_std = 1 / sqrt(var + eps)        x_hat = (x - mean) * inv_std        y = weight * x_hat + bias",
    keeps="x_hat, (N, H, W, C), and inv_std, (N, H, W, 1)",
    code=CODE,
    cases=(Case((1, 5, 3, 6)), Case((2, 3, 4, 6)), Case((3, 2, 5, 6))),
    mistakes=(
        Mistake("variance term missing", "dx lacks the term through the variance: - x_hat * mean(g * x_hat), g = weight * "
                "dy", lambda s: _dx(s, var=0)),
        Mistake("mean term missing", "dx lacks the term through the mean: - mean(g), g = weight * dy",
                lambda s: _dx(s, mean=0)),
        Mistake("statistics constant", "dx takes mean and variance as constants: both depend on every channel of the pixel",
                lambda s: _dx(s, mean=0, var=0)),
        Mistake("weight outside", "dx applies weight after the means, as batch normalisation may: here weight varies "
                "along the axis that is normalised, so it belongs inside them",
                lambda s: s.params["weight"] * _dx(s, g=s.dy)),
        Mistake("weight missing", "dx lacks weight: the gradient at x_hat is weight * dy", lambda s: _dx(s, g=s.dy)),
        Mistake("means over the batch", "dx takes its means over N, H and W, as in batch normalisation: here each pixel "
                "has its own, over its C channels", lambda s: _dx(s, (0, 1, 2))),
        Mistake("means not divided", "dx subtracts sums where means belong: divide both correction terms by C",
                lambda s: _dx(s, mean=s.dims["C"], var=s.dims["C"])),
        Mistake("variance term halved", "dx has half of the term through the variance: the square's derivative brings a "
                "factor 2", lambda s: _dx(s, var=0.5)),
        Mistake("inv_std inverted", "dx divides by inv_std where it should be multiplied by it: x_hat moves by inv_std when "
                "x moves by 1", lambda s: s.right["dx"] * (s.x.var(-1, keepdims=True) + s.layer.eps)),
        *PARAMETERS,
    ),
    explain=explain_terms(OVER["layer"], "pixel"),
)
