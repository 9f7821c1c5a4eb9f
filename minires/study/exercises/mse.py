"""The mean squared error."""
from minires.losses import MSELoss
from minires.study.exercises.checker.exercise import BLANK, Case, Exercise, Mistake

CODE = f"""
import numpy as np


class MSELoss:
    def forward(self, y, target):
        self.kept = y, target
        return float(np.mean((y - target) ** 2))

    def backward(self):
        y, target = self.kept
        {BLANK}
"""

EXERCISE = Exercise(
    title="the mean squared error",
    engine=MSELoss,
    make=lambda MSELoss, rng: MSELoss(),
    target=lambda rng, shape: rng.standard_normal(shape),
    letters={"x": "N C", "y": ""},
    formula="loss = mean((y - target)^2) over all N * C elements; target: (N, C)",
    keeps="y and target",
    code=CODE,
    cases=(Case((1, 5)), Case((3, 7)), Case((4, 1))),
    mistakes=(
        Mistake("2 forgotten", "dy is half of what it should be: the square's derivative brings a factor 2",
                lambda s: s.right["dx"] / 2),
        Mistake("not averaged", "dy is exactly N*C = {N*C} times too large: the loss is a mean over all elements, so its "
                "gradient is divided by their number", lambda s: s.right["dx"] * s.x.size),
        Mistake("averaged over N alone", "dy is C = {C} times too large: the mean is over all N * C elements, you divide "
                "by N", lambda s: s.right["dx"] * s.dims["C"]),
        Mistake("averaged over C alone", "dy is N = {N} times too large: the mean is over all N * C elements, you divide "
                "by C", lambda s: s.right["dx"] * s.dims["N"]),
        Mistake("target minus y", "dy has its sign flipped: it is the gradient by the target, target - y for y - target",
                lambda s: -s.right["dx"]),
        Mistake("neither 2 nor mean", "dy is y - target alone: the factor 2 and the division by N*C are missing",
                lambda s: s.x - s.target),
        Mistake("averaged, 2 forgotten, over N", "dy is (y - target) / N: the factor 2 is missing, and the mean is over "
                "all N * C elements", lambda s: (s.x - s.target) / s.dims["N"]),
    ),
)
