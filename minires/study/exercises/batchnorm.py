"""Batch normalisation, third level: the whole of it."""
from minires.layers import BatchNorm2d
from minires.study.exercises.checker.exercise import Case, Exercise
from minires.study.exercises.checker.normalisation import CODE, LETTERS, OVER, TRAINING, TRAINING_MISTAKES, explain_terms

EXERCISE = Exercise(
    title="batch normalisation 3: training, nothing given",
    engine=BatchNorm2d,
    make=lambda BatchNorm2d, rng: BatchNorm2d(4),
    letters=LETTERS,
    formula="mean, var = mean and biased variance of each channel over its m = N*H*W values\n"
            "inv_std = 1 / sqrt(var + eps)        x_hat = (x - mean) * inv_std        y = weight * x_hat + bias",
    keeps="x_hat, (N, H, W, C), and inv_std, (C,)",
    code=CODE.replace("FORWARD", TRAINING),
    cases=(Case((1, 5, 3, 4)), Case((2, 3, 5, 4)), Case((3, 6, 2, 4))),
    mistakes=TRAINING_MISTAKES,
    explain=explain_terms(OVER["batch"], "channel"),
)
