"""Wrong backward passes of batch and layer normalisation."""
import numpy as np

from minires.study.exercises.checker.exercise import BLANK, Mistake
from minires.study.exercises.checker.report import Diagnosis

# What the exercises on batch normalisation have in common: their file up to forward.
HEAD = """
import numpy as np

from minires.layer import Layer, Parameter


class BatchNorm2d(Layer):
    buffers = ("running_mean", "running_var")

    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        self.eps, self.momentum = eps, momentum
        self.weight = Parameter(np.ones(num_features, np.float32))
        self.bias = Parameter(np.zeros(num_features, np.float32))
        self.running_mean = np.zeros(num_features, np.float32)
        self.running_var = np.ones(num_features, np.float32)
"""

CODE = f"""{HEAD}
    def forward(self, x):
        FORWARD

    def backward(self, dy):
        x_hat, inv_std = self._saved()
        {BLANK}
"""

TRAINING = """m = x.size // x.shape[3]
        mean = x.mean((0, 1, 2))
        var = ((x - mean) ** 2).mean((0, 1, 2))
        keep, take = 1 - self.momentum, self.momentum
        self.running_mean = keep * self.running_mean + take * mean
        self.running_var = keep * self.running_var + take * var * (m / (m - 1))
        inv_std = 1 / np.sqrt(var + self.eps)
        x_hat = (x - mean) * inv_std
        self._save(x_hat, inv_std)
        return self.weight.data * x_hat + self.bias.data"""

EVALUATION = """inv_std = 1 / np.sqrt(self.running_var + self.eps)
        x_hat = (x - self.running_mean) * inv_std
        self._save(x_hat, inv_std)
        return self.weight.data * x_hat + self.bias.data"""

LETTERS = {"x": "N H W C", "y": "N H W C", "weight": "C", "bias": "C"}
OVER = {"batch": (0, 1, 2), "layer": (-1,)}


def statistics(s):
    """x_hat and inv_std of a case, with the batch's statistics or, in evaluation, the running ones."""
    if s.options.get("training", True):
        mean, var = s.x.mean((0, 1, 2)), s.x.var((0, 1, 2))
    else:
        mean, var = s.state["running_mean"], s.state["running_var"]
    inv_std = 1 / np.sqrt(var + s.layer.eps)
    return (s.x - mean) * inv_std, inv_std


def corrected(g, x_hat, inv_std, axes, mean=1.0, var=1.0):
    """inv_std * (g - mean(g) - x_hat mean(g x_hat)) over `axes`, its two correction terms multiplied by mean and var."""
    one, two = g.mean(axes, keepdims=True), (g * x_hat).mean(axes, keepdims=True)
    return inv_std * (g - mean * one - x_hat * two * var)


def batch(s, scaled=True, **terms):
    """dx of batch normalisation in training, with its terms changed."""
    x_hat, inv_std = statistics(s)
    g = s.dy * s.params["weight"] if scaled else s.dy
    return corrected(g, x_hat, inv_std, OVER["batch"], **terms)


def _per_image(s):
    """The two means over one image's pixels instead of the batch's."""
    x_hat, inv_std = statistics(s)
    return corrected(s.dy * s.params["weight"], x_hat, inv_std, (1, 2))


def _inv_std_forgotten(s):
    return s.right["dx"] / statistics(s)[1]


def explain_terms(axes, over):
    """`Exercise.explain` of a normalisation over `axes`: dx = a g + b + c x_hat, g = dy * weight, with numbers a, b and c
    for each channel or pixel (`over`). A least-squares fit tells those of the student's dx, and so which term is wrong."""
    def explain(observations, wrong):
        cases = [seen for seen in observations if "dx" in wrong and not seen.right("dx")]
        if not cases or cases[-1].got["dx"].shape != cases[-1].situation.x.shape:
            return None
        s, got = cases[-1].situation, cases[-1].got["dx"]
        inv_std = 1 / np.sqrt(s.x.var(axes, keepdims=True) + s.layer.eps)
        terms = s.dy * s.params["weight"], np.ones_like(s.x), (s.x - s.x.mean(axes, keepdims=True)) * inv_std
        columns = np.stack([_rows(term, axes) for term in terms], -1)  # (channels or pixels, values, 3)
        found, right = (np.linalg.pinv(columns) @ _rows(dx, axes)[..., None] for dx in (got, s.right["dx"]))
        if np.abs(columns @ found - _rows(got, axes)[..., None]).max() > 1e-8 * np.abs(got).max():
            return None  # it is made of something else
        ratios = (found / right)[..., 0].T  # (3, channels or pixels)
        names = ("g = dy * weight", "the mean (a number that is subtracted)", "the variance (a multiple of x_hat)")
        off = [(name, ratio) for name, ratio in zip(names, ratios, strict=True) if np.abs(ratio - 1).max() > 1e-8]
        if not off:
            return None
        told = [f"the term of {name} is {_factor(ratio, _rows(inv_std, axes)[:, 0])}" for name, ratio in off]
        if len(off) == 3 and np.ptp(ratios, axis=0).max() < 1e-8 * np.abs(ratios).max():
            told = [f"the common factor in front is {_factor(ratios[0], _rows(inv_std, axes)[:, 0])}"]
        fine = "" if len(off) == 3 else "; the rest is right"
        return Diagnosis("wrong term", ["dx"], None, f"dx is made of the three right terms, for each {over} a multiple of "
                         f"g, of 1 and of x_hat, but {' and '.join(told)}{fine}")
    return explain


def _rows(array, axes):
    """(channels or pixels, values normalised together)."""
    axes = tuple(axis % array.ndim for axis in axes)
    kept = [axis for axis in range(array.ndim) if axis not in axes]
    return array.transpose(*kept, *axes).reshape(int(np.prod([array.shape[axis] for axis in kept])), -1)


def _factor(ratio, inv_std):
    """A ratio of each channel or pixel in words: one number, times a power of inv_std where that makes it one."""
    if np.abs(ratio).max() < 1e-9:
        return "missing"
    for power in (0, -1, 1, -2, 2, -3, 3):
        number = ratio / inv_std**power
        if np.ptp(number) < 1e-7 * np.abs(number).max():
            times = "" if power == 0 else f"inv_std^{power}" if power > 0 else f"1 / inv_std^{-power}" if power < -1 else \
                "1 / inv_std"
            count = f"{number.mean():.6g}" if abs(number.mean() - 1) > 1e-7 or not times else ""
            return f"{' * '.join(filter(None, (count, times.removesuffix('^1'))))} times what it should be"
    return f"off by a factor of its own in each ({', '.join(f'{one:.4g}' for one in ratio[:4])}, ...)"


PARAMETERS = (
    Mistake("x_hat missing", "dweight is the sum of dy alone, which is dbias: weight multiplies x_hat, so its gradient "
            "does too", lambda s: {"weight": s.dy.sum((0, 1, 2))}),
    Mistake("x for x_hat", "dweight multiplies dy by x: it is x_hat, the normalised x, that weight multiplies",
            lambda s: {"weight": (s.dy * s.x).sum((0, 1, 2))}),
    Mistake("y for x_hat", "dweight multiplies dy by y: it is x_hat that weight multiplies, before weight and bias",
            lambda s: {"weight": (s.dy * s.y).sum((0, 1, 2))}),
)

TRAINING_MISTAKES = (
    Mistake("variance term missing", "dx lacks the term through the variance: - x_hat * mean(dy * x_hat)",
            lambda s: batch(s, var=0)),
    Mistake("mean term missing", "dx lacks the term through the mean: - mean(dy)", lambda s: batch(s, mean=0)),
    Mistake("statistics constant", "dx takes mean and variance as constants, as in evaluation: both depend on every x of "
            "the channel, and two terms are missing", lambda s: batch(s, mean=0, var=0)),
    Mistake("weight missing", "dx lacks the factor weight: y = weight * x_hat + bias, so x_hat's gradient is dy * weight",
            lambda s: batch(s, scaled=False)),
    Mistake("mean term's sign", "dx adds the term through the mean: it is subtracted", lambda s: batch(s, mean=-1)),
    Mistake("variance term's sign", "dx adds the term through the variance: it is subtracted", lambda s: batch(s, var=-1)),
    Mistake("variance term halved", "dx has half of the term through the variance: the square's derivative brings a "
            "factor 2", lambda s: batch(s, var=0.5)),
    Mistake("variance term doubled", "dx has twice the term through the variance: 1 / sqrt(v) has the derivative "
            "-1/2 v^(-3/2), whose half cancels the square's 2", lambda s: batch(s, var=2)),
    Mistake("means not divided", "dx subtracts sums where means belong: divide both correction terms by m = N*H*W",
            lambda s: batch(s, mean=_m(s), var=_m(s))),
    Mistake("means over N", "dx divides its two correction terms by N alone: a channel has m = N*H*W values",
            lambda s: batch(s, mean=_m(s) / len(s.x), var=_m(s) / len(s.x))),
    Mistake("m - 1", "dx divides by m - 1: forward's variance is the biased one, divided by m",
            lambda s: batch(s, mean=_m(s) / (_m(s) - 1), var=_m(s) / (_m(s) - 1))),
    Mistake("m - 1 in the variance", "dx divides the term through the variance by m - 1: forward's variance is the biased "
            "one", lambda s: batch(s, var=_m(s) / (_m(s) - 1))),
    Mistake("means of one image", "dx takes its means over H and W of each image: the statistics are the whole batch's",
            _per_image),
    Mistake("inv_std missing", "dx lacks the factor 1 / sqrt(var + eps)", _inv_std_forgotten),
    Mistake("inv_std squared", "dx divides by the variance: one factor 1 / sqrt(var + eps) is enough",
            lambda s: s.right["dx"] * statistics(s)[1]),
    Mistake("inv_std inverted", "dx divides by inv_std where it should be multiplied by it: x_hat moves by inv_std when x "
            "moves by 1", lambda s: s.right["dx"] / statistics(s)[1] ** 2),
    *PARAMETERS,
)


def _m(s):
    return s.x.size // s.x.shape[-1]
