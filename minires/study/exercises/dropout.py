"""Dropout."""
import copy

import numpy as np

from minires.layers import Dropout
from minires.study.exercises.checker.exercise import BLANK, Case, Exercise, Mistake

CODE = f"""
import numpy as np

from minires.layer import Layer


class Dropout(Layer):
    def __init__(self, p=0.5, *, rng):
        self.p, self.rng = p, rng

    def forward(self, x):
        if not self.training:
            self._save(None)
            return x
        keep = self.rng.random(x.shape, np.float32) >= self.p
        self._save(keep)
        return x * keep / x.dtype.type(1 - self.p)

    def backward(self, dy):
        (keep,) = self._saved()  # None in evaluation
        {BLANK}
"""


def _keep(s):
    """The mask of forward, and the scale, or ones and 1 in evaluation."""
    return (s.y != 0, 1 - s.options["p"]) if s.options["training"] else (np.ones(s.x.shape, bool), 1)


def _with_mask(s, mask):
    return s.dy * mask / (1 - s.options["p"])


def _another_draw(s, dtype, always=False):
    """What a second draw from the layer's generator would keep."""
    if not (s.options["training"] or always):
        return s.dy
    return _with_mask(s, copy.deepcopy(s.layer.rng).random(s.x.shape, dtype) >= s.options["p"])


EXERCISE = Exercise(
    title="dropout",
    engine=Dropout,
    make=lambda Dropout, rng, p, training: Dropout(p, rng=rng).train(training),
    letters={"x": "N H W C", "y": "N H W C"},
    formula="training: y = x * keep / (1 - p), keep drawn anew each time        evaluation: y = x",
    keeps="keep, a mask of x's shape, or None in evaluation",
    code=CODE,
    cases=(Case((1, 5, 3, 4), p=0.4, training=True), Case((2, 4, 3, 5), p=0.3, training=True),
           Case((2, 4, 3, 5), p=0.4, training=False)),
    mistakes=(
        Mistake("not rescaled", "dx lacks the division by 1 - p: y is x * keep / (1 - p), and dx goes through the same "
                "scale", lambda s: s.dy * _keep(s)[0]),
        Mistake("rescaled twice", "dx is divided by 1 - p twice", lambda s: s.dy * _keep(s)[0] / _keep(s)[1] ** 2),
        Mistake("multiplied by 1 - p", "dx is multiplied by 1 - p where it should be divided by it",
                lambda s: s.dy * _keep(s)[0] * _keep(s)[1]),
        Mistake("mask missing", "dx passes dy on everywhere: what forward dropped gets 0",
                lambda s: s.dy / _keep(s)[1]),
        Mistake("mask and scale missing", "dx is dy unchanged, as in evaluation: in training it goes through keep / (1 - p)",
                lambda s: s.dy),
        Mistake("mask inverted", "dx passes where forward dropped: the mask is the wrong way round",
                lambda s: _with_mask(s, ~_keep(s)[0]) if s.options["training"] else s.dy),
        *(Mistake("another draw", "dx drops by a new draw: backward must use the mask that forward kept",
                  lambda s, d=dtype, a=always: _another_draw(s, d, a))
          for dtype in (np.float32, np.float64) for always in (False, True)),
        Mistake("divided by p", "dx is divided by p: what is kept, a share of 1 - p, is scaled by 1 / (1 - p)",
                lambda s: s.dy * _keep(s)[0] / s.options["p"] if s.options["training"] else s.dy),
        Mistake("scaled in evaluation", "dx is divided by 1 - p in evaluation too, where y = x",
                lambda s: s.right["dx"] if s.options["training"] else s.dy / (1 - s.options["p"])),
    ),
)
