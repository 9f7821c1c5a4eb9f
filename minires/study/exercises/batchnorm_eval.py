"""Batch normalisation, first level: evaluation."""
from minires.layers import BatchNorm2d
from minires.study.exercises.checker.exercise import Case, Exercise, Mistake
from minires.study.exercises.checker.normalisation import (
    CODE,
    EVALUATION,
    LETTERS,
    PARAMETERS,
    corrected,
    statistics,
)


def _batch_formula(s):
    x_hat, inv_std = statistics(s)
    return corrected(s.dy * s.params["weight"], x_hat, inv_std, (0, 1, 2))


EXERCISE = Exercise(
    title="batch normalisation 1: evaluation, the statistics are constants",
    engine=BatchNorm2d,
    make=lambda BatchNorm2d, rng, training: BatchNorm2d(4).train(training),
    letters=LETTERS,
    formula="inv_std = 1 / sqrt(running_var + eps)        x_hat = (x - running_mean) * inv_std\ny = weight * x_hat + bias",
    keeps="x_hat, (N, H, W, C), and inv_std, (C,)",
    code=CODE.replace("FORWARD", EVALUATION),
    cases=(Case((1, 5, 3, 4), training=False), Case((2, 3, 5, 4), training=False), Case((3, 6, 2, 4), training=False)),
    mistakes=(
        Mistake("training formula", "dx has the two correction terms of training: here mean and variance are constants",
                _batch_formula),
        Mistake("weight missing", "dx lacks the factor weight: y = weight * x_hat + bias, so x_hat's gradient is dy * "
                "weight", lambda s: s.dy * statistics(s)[1]),
        Mistake("inv_std missing", "dx lacks the factor inv_std: x_hat moves by inv_std when x moves by 1",
                lambda s: s.dy * s.params["weight"]),
        Mistake("inv_std squared", "dx divides by the variance: one factor inv_std, the standard deviation's, is enough",
                lambda s: s.right["dx"] * statistics(s)[1]),
        Mistake("inv_std inverted", "dx is multiplied by sqrt(var + eps) where it should be divided by it",
                lambda s: s.dy * s.params["weight"] / statistics(s)[1]),
        *PARAMETERS,
    ),
)
