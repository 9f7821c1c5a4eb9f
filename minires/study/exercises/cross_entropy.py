"""Softmax and cross-entropy in one."""
import numpy as np

from minires.losses import CrossEntropyLoss
from minires.study.exercises.checker.exercise import BLANK, Case, Exercise, Mistake

CODE = f"""
import numpy as np


class CrossEntropyLoss:
    def forward(self, y, target):
        shifted = y - y.max(1, keepdims=True)  # the largest exponent is 0: nothing overflows
        log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        self.kept = np.exp(log_p), target
        return float(-log_p[np.arange(len(target)), target].mean())

    def backward(self):
        p, target = self.kept
        {BLANK}
"""


def softmax(s):
    """p: (N, K)."""
    e = np.exp(s.x - s.x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def one_hot(s):
    """1 at each row's target: (N, K)."""
    return np.eye(s.x.shape[1])[s.target]


EXERCISE = Exercise(
    title="softmax and cross-entropy",
    engine=CrossEntropyLoss,
    make=lambda CrossEntropyLoss, rng: CrossEntropyLoss(),
    target=lambda rng, shape: rng.integers(0, shape[1], shape[0]),
    letters={"x": "N K", "y": ""},
    formula="p = softmax(y) in each row\nloss = mean over N of -log p[n, target[n]]; target: (N,) integers",
    keeps="p, (N, K), and target",
    code=CODE,
    cases=(Case((1, 4)), Case((3, 5)), Case((7, 6))),
    mistakes=(
        Mistake("not averaged", "dy is exactly N = {N} times too large: the loss is a mean over the batch, so divide by N",
                lambda s: s.right["dx"] * s.dims["N"]),
        Mistake("one-hot missing", "dy lacks the target: subtract 1 from p at each row's target, p is only one of two "
                "terms", lambda s: softmax(s) / s.dims["N"]),
        Mistake("softmax missing", "dy lacks p: it is -1 at the target and 0 elsewhere, but every logit moves the "
                "softmax's sum", lambda s: -one_hot(s) / s.dims["N"]),
        Mistake("targets of all rows", "dy subtracts 1 at every row's target in every row: name row and class together, "
                "p[np.arange(N), target]", lambda s: (softmax(s) - one_hot(s).max(0)) / s.dims["N"]),
        Mistake("sign flipped", "dy has its sign flipped: it is one_hot - p, and must be p - one_hot",
                lambda s: -s.right["dx"]),
        Mistake("gradient by p", "dy is the gradient by p, -1 / p at the target: go on through the softmax to the logits",
                lambda s: -one_hot(s) / softmax(s) / s.dims["N"]),
        Mistake("softmax diagonal only", "dy goes through the diagonal p (1 - p) of the softmax's Jacobian only: a logit "
                "moves the other classes' p too", lambda s: one_hot(s) * (softmax(s) - 1) / s.dims["N"]),
        Mistake("p (1 - p) once more", "dy is multiplied by p (1 - p): that factor has cancelled already in p - one_hot",
                lambda s: s.right["dx"] * softmax(s) * (1 - softmax(s))),
        Mistake("averaged over K too", "dy is exactly K = {K} times too small: the loss is a mean over N, not over the "
                "classes", lambda s: s.right["dx"] / s.dims["K"]),
        Mistake("neither one-hot nor mean", "dy is p alone: subtract 1 at each row's target and divide by N", softmax),
    ),
)
