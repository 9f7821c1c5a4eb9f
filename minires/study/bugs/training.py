"""What training looks like with a bug: small networks that learn a few hundred pictures by heart, in a second or two each.

The task is to fit the training images, which is what a gradient is for; whether what was learned carries over to other
images is another question. A clean network is trained from several seeds, so that a bug is told apart from luck.
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from minires.data.augment import Standardise
from minires.data.shapes import make_shapes
from minires.layer import Sequential
from minires.layers import (
    GELU,
    AvgPool2d,
    BasicBlock,
    BatchNorm2d,
    Bias,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    GroupNorm,
    LayerNorm,
    LeakyReLU,
    Linear,
    MaxPool2d,
    ReLU,
    Residual,
    Scale,
    SiLU,
)
from minires.losses import CrossEntropyLoss, MSELoss
from minires.optim import SGD
from minires.plan import compile
from minires.schedules import CosineLR
from minires.study.bugs.inject import inject

IMAGES, SIZE, CLASSES, BATCH = 256, 16, 10, 32
CLEAN_SEEDS = (0, 1, 2)  # a bug is trained from the first
WINDOW = 16  # steps, two epochs, that the final loss and accuracy are means of


def residual(rng):
    """A stem and three basic blocks, two of which halve the image by shortcut A."""
    return Sequential(Conv2d(3, 8, 3, padding=1, bias=False, rng=rng), BatchNorm2d(8), ReLU(),
                      BasicBlock(8, 16, 2, "A", rng=rng), BasicBlock(16, 16, rng=rng), BasicBlock(16, 32, 2, "A", rng=rng),
                      GlobalAvgPool2d(), Linear(32, CLASSES, rng=rng))


def pooled(rng):
    """Convolutions with biases, one dilated, layer normalisation, both windowed pools and dropout."""
    return Sequential(Conv2d(3, 16, 3, padding=1, rng=rng), LayerNorm(16), ReLU(), MaxPool2d(3, 2, 1),
                      Conv2d(16, 32, 3, padding=2, dilation=2, rng=rng), LayerNorm(32), ReLU(), AvgPool2d(3, 2, 1),
                      Dropout(0.1, rng=rng), Flatten(), Linear(512, CLASSES, rng=rng))


def activations(rng):
    """Three convolutions, each with its batch normalisation and another of ReLU's relatives."""
    return Sequential(*(layer for C, O, activation in ((3, 8, LeakyReLU()), (8, 16, GELU()), (16, 32, SiLU()))
                        for layer in (Conv2d(C, O, 3, 2, 1, bias=False, rng=rng), BatchNorm2d(O), activation)),
                      GlobalAvgPool2d(), Linear(32, CLASSES, rng=rng))


def unnormalised(rng):
    """Residual sums whose branches begin at nearly nothing (SkipInit), with one group normalisation in the stem."""
    def block(C, O):
        return Residual(Sequential(Bias(), Conv2d(C, O, 3, 2, 1, bias=False, rng=rng), ReLU(),
                                   Conv2d(O, O, 3, 1, 1, bias=False, rng=rng), Scale(1, 0.2)),
                        Conv2d(C, O, 1, 2, bias=False, rng=rng))
    return Sequential(Conv2d(3, 8, 3, padding=1, bias=False, rng=rng), GroupNorm(2, 8), ReLU(), block(8, 16), ReLU(),
                      block(16, 32), ReLU(), GlobalAvgPool2d(), Linear(32, CLASSES, rng=rng))


@dataclass(frozen=True)
class Network:
    """What is trained: make(rng) and make_loss(), lr at the start (a cosine leads it to 0), and steps of BATCH images.

    planned: by a compiled step, not layer by layer.
    """

    make: Callable
    make_loss: Callable = CrossEntropyLoss
    lr: float = 0.1
    steps: int = 120
    planned: bool = False


NETWORKS = {
    "residual": Network(residual),
    "residual, planned": Network(residual, planned=True),
    "residual, smoothed labels": Network(residual, lambda: CrossEntropyLoss(0.1)),
    "residual, squared error": Network(residual, MSELoss, 0.15, 200),
    "activations": Network(activations),
    "unnormalised": Network(unnormalised),
    "pooled": Network(pooled, lr=0.03, steps=360),
}


@dataclass(frozen=True)
class Outcome:
    """A training: the loss before each step, up to one that is not finite, and the accuracy of the last WINDOW steps."""

    losses: tuple
    accuracy: float

    @property
    def loss(self):
        """The mean loss of the last WINDOW steps; infinite where it was not finite."""
        return float(np.mean(self.losses[-WINDOW:])) if np.isfinite(self.losses[-1]) else float("inf")


@cache
def _pictures():
    """x: (IMAGES, SIZE, SIZE, 3) float32, standardised; target: (IMAGES,)."""
    data = make_shapes(IMAGES, 0, SIZE)
    pixels = data.images / 255
    return Standardise(pixels.mean((0, 1, 2)), pixels.std((0, 1, 2)))(data.images), data.labels


def train_with(bug, seed=CLEAN_SEEDS[0]):
    """The Outcome of training the bug's network with it planted, in float32 by the current back end."""
    with inject(bug):
        return _train(NETWORKS[bug.network], seed)


def train_clean(name, progress=lambda: None):
    """The Outcomes of training a network of NETWORKS as it is, one for each of CLEAN_SEEDS."""
    outcomes = []
    for seed in CLEAN_SEEDS:
        outcomes.append(_train(NETWORKS[name], seed))
        progress()
    return tuple(outcomes)


def _train(network, seed):
    rng = np.random.default_rng(seed)
    (images, labels), model, loss = _pictures(), network.make(rng), network.make_loss()
    targets = np.eye(CLASSES, dtype=np.float32)[labels] if isinstance(loss, MSELoss) else labels
    optimiser = SGD(model.parameters(), network.lr, 0.9)
    schedule = CosineLR(optimiser, network.steps)
    order = np.concatenate([rng.permutation(IMAGES) for _ in range(-(-network.steps * BATCH // IMAGES))])
    step = compile(model, loss) if network.planned else partial(_eager_step, model, loss)
    losses, right = [], []
    with np.errstate(all="ignore"):
        for batch in order[:network.steps * BATCH].reshape(-1, BATCH):
            value, y = step(images[batch], targets[batch])
            losses.append(float(value))
            right.append(np.mean(y.argmax(1) == labels[batch]))
            if not np.isfinite(losses[-1]):
                break
            optimiser.step()
            schedule.step()
    return Outcome(tuple(losses), float(np.mean(right[-WINDOW:])))


def _eager_step(model, loss, x, target):
    y = model.forward(x)
    value = loss.forward(y, target)
    model.zero_grad()
    model.backward(loss.backward())
    return value, y


# What is said of a training, from harmless to hopeless.
SAME, FINE, WORSE, NOTHING, DIVERGED = ("no trace", "looks fine", "learns worse", "learns nothing", "diverged")
VERDICTS = (SAME, FINE, WORSE, NOTHING, DIVERGED)


def verdict(outcome, clean):
    """One of VERDICTS, from the Outcome with the bug and those of the clean network.

    SAME: the same loss at every step as the clean network of that seed. FINE: the final loss is above the worst clean
    one by no more than the clean ones lie apart. NOTHING: less than a tenth of the clean network's way was made.
    DIVERGED: it ends not finite, or above twice the loss it began with.
    """
    first, finals = clean[0].losses[0], [each.loss for each in clean]
    if outcome.loss > 2 * first:
        return DIVERGED
    if outcome.losses == clean[0].losses:
        return SAME
    if outcome.loss <= 2 * max(finals) - min(finals):
        return FINE
    return NOTHING if first - outcome.loss < 0.1 * (first - max(finals)) else WORSE
