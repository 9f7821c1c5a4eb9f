"""The value of softmax and cross-entropy, without overflow."""
import numpy as np

from minires.losses import CrossEntropyLoss
from minires.study.exercises.checker.exercise import Case, Mistake
from minires.study.exercises.checker.forward import ForwardExercise
from minires.study.exercises.checker.words import blank

CODE = f"""
import numpy as np


class CrossEntropyLoss:
    def forward(self, y, target):
        {blank("forward")}
"""


def log_p(s):
    """(N, K)."""
    shifted = s.x - s.x.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def at_target(s, values):
    """The entry of each row's target: (N,)."""
    return values[np.arange(len(s.target)), s.target]


def loss(value):
    return {"loss": np.atleast_1d(value)}


def _whole_batch(s):
    whole = s.x.max() + np.log(np.exp(s.x - s.x.max()).sum())
    return loss((whole - at_target(s, s.x)).mean())


EXERCISE = ForwardExercise(
    title="forward: softmax and cross-entropy, without overflow",
    engine=CrossEntropyLoss,
    make=lambda CrossEntropyLoss, rng: CrossEntropyLoss(),
    target=lambda rng, shape: rng.integers(0, shape[1], shape[0]),
    letters={"x": "N K", "loss": "1"},
    formula="p = softmax(y) in each row, exp(y) / sum exp(y)\n"
            "loss = mean over N of -log p[n, target[n]]; target: (N,) integers",
    code=CODE,
    cases=(Case((1, 4)), Case((3, 5)), Case((4, 6), scale=1000)),
    mistakes=(
        Mistake("sign missing", "the loss is negative: log p is, and the loss is -log p",
                lambda s: loss(at_target(s, log_p(s)).mean())),
        Mistake("sum for mean", "the loss is exactly N = {N} times too large: it is a mean over the batch",
                lambda s: loss(-at_target(s, log_p(s)).sum())),
        Mistake("logarithm missing", "the loss is made of p itself, and must be of -log p",
                lambda s: loss(-np.exp(at_target(s, log_p(s))).mean())),
        Mistake("softmax of the batch", "p is normalised over the whole batch: each row adds up to 1, sum(1, keepdims=True)",
                _whole_batch),
        Mistake("base 2", "the logarithm is to base 2: it is the natural one, np.log",
                lambda s: loss(-at_target(s, log_p(s)).mean() / np.log(2))),
        Mistake("all classes", "the loss adds up -log p of every class: only the target's counts, p[np.arange(N), target]",
                lambda s: loss(-log_p(s).sum(1).mean())),
    ),
    hint="""exp(1000) overflows, but a softmax does not change when a row's largest number is subtracted from all of the row;
and log(exp(a) / b) = a - log(b), so that no p that has become 0 is ever given to log.""",
)
