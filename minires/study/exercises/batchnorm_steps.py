"""Batch normalisation, second level: training, with its three steps given as maths."""
from minires.layers import BatchNorm2d
from minires.study.exercises.checker.exercise import Case, Exercise
from minires.study.exercises.checker.normalisation import CODE, LETTERS, OVER, TRAINING, TRAINING_MISTAKES, explain_terms

EXERCISE = Exercise(
    title="batch normalisation 2: training, with the three steps given",
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
    hint="""
x reaches the loss in three ways, and dx is the sum of what comes back through each. With g = dy * weight, the gradient at
x_hat, and all sums over N, H and W, each is to be put into NumPy:
    1. through x_hat itself, the statistics held fixed:    g * inv_std
    2. through the variance:    dvar = sum(g * x_hat) * (-1/2) * inv_std^2    and var moves by 2 (x - mean) / m with each x,
       so that dx gets    dvar * 2 * (x - mean) / m,    with    x - mean = x_hat / inv_std
    3. through the mean:    dmean = -inv_std * sum(g)    and mean moves by 1 / m with each x, so that dx gets    dmean / m
       (var does not depend on mean: the sum of x - mean is 0)
""",
)
