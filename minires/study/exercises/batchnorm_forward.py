"""The forward pass of batch normalisation, with its running statistics."""
import numpy as np

from minires.layers import BatchNorm2d
from minires.study.exercises.checker.exercise import Case, Mistake
from minires.study.exercises.checker.forward import ForwardExercise
from minires.study.exercises.checker.normalisation import HEAD
from minires.study.exercises.checker.words import blank

CODE = f"""{HEAD}
    def forward(self, x):
        {blank("forward")}
"""


def outcome(s, *, batch=None, ddof=0, running_ddof=1, take=None, outside=False, affine=True, moves=None, axes=(0, 1, 2)):
    """What forward gives with one thing changed: batch, whether the batch's statistics normalise; ddof, running_ddof, what
    is subtracted from m in the variance and in the running one; take, the share of the new; outside, eps added to the
    root; affine, weight and bias; moves, whether the running statistics follow; axes that the statistics are over."""
    layer, training, affected = s.layer, s.options["training"], s.state
    mean, var = s.x.mean(axes), s.x.var(axes, ddof=ddof)
    running_mean, running_var = affected["running_mean"], affected["running_var"]
    if training if moves is None else moves:
        take = layer.momentum if take is None else take
        running_mean = (1 - take) * running_mean + take * s.x.mean(axes)
        running_var = (1 - take) * running_var + take * s.x.var(axes, ddof=running_ddof)
    if not (training if batch is None else batch):
        mean, var = affected["running_mean"], affected["running_var"]
    deviation = np.sqrt(var) + layer.eps if outside else np.sqrt(var + layer.eps)
    y = (s.x - mean) / deviation
    y = y * s.params["weight"] + s.params["bias"] if affine else y
    return {"y": y, "running_mean": running_mean, "running_var": running_var}


EXERCISE = ForwardExercise(
    title="forward: batch normalisation, training and evaluation",
    engine=BatchNorm2d,
    make=lambda BatchNorm2d, rng, training: BatchNorm2d(4, eps=0.1).train(training),
    letters={"x": "N H W C", "y": "N H W C", "weight": "C", "bias": "C", "running_mean": "C", "running_var": "C"},
    buffers=("running_mean", "running_var"),
    formula="y = weight * (x - mean) / sqrt(var + eps) + bias\n"
            "self.training: mean and var are those of each channel over its m = N*H*W values, var divided by m, and\n"
            "    running = (1 - momentum) * running + momentum * batch, for the mean and for var * m / (m - 1)\n"
            "else: mean and var are running_mean and running_var, which stay as they are",
    code=CODE,
    cases=(Case((1, 3, 5, 4), training=True), Case((2, 3, 2, 4), training=True), Case((3, 2, 4, 4), training=False)),
    mistakes=(
        Mistake("unbiased variance", "y divides by the unbiased variance, over m - 1: the batch is normalised by the biased "
                "one, over m", lambda s: outcome(s, ddof=1)),
        Mistake("running variance biased", "running_var takes the biased variance: it estimates the variance of all images, "
                "so times m / (m - 1)", lambda s: outcome(s, running_ddof=0)),
        Mistake("momentum exchanged", "the running statistics take 1 - momentum of the new and keep momentum of the old: "
                "it is the other way round", lambda s: outcome(s, take=1 - s.layer.momentum)),
        *(Mistake(f"{name} stands still", f"self.{name} is not updated in training",
                  lambda s, name=name: {name: outcome(s, moves=False)[name]}) for name in ("running_mean", "running_var")),
        Mistake("moved in evaluation", "the running statistics follow the batch in evaluation too: look at self.training",
                lambda s: outcome(s, moves=True)),
        Mistake("batch's statistics in evaluation", "evaluation normalises by the batch's statistics: by running_mean and "
                "running_var", lambda s: outcome(s, batch=True)),
        Mistake("training in evaluation", "evaluation does what training does: look at self.training",
                lambda s: outcome(s, batch=True, moves=True)),
        Mistake("running statistics in training", "training normalises by the running statistics: by the batch's own",
                lambda s: outcome(s, batch=False)),
        Mistake("eps outside the root", "eps is added to the square root: it belongs inside, sqrt(var + eps)",
                lambda s: outcome(s, outside=True)),
        Mistake("weight and bias missing", "y is normalised, but not scaled by weight and shifted by bias",
                lambda s: outcome(s, affine=False)),
    ),
    hint="The axes of a channel's statistics are all but the last: x.mean((0, 1, 2)). var((0, 1, 2)) divides by m.",
)
