"""What is X-rayed: a model's name or a run's folder, its plain twin, and the moments of its training that can be seen."""
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minires.data import Standardise, channel_statistics, load_dataset
from minires.errors import UserError
from minires.layer import Layer
from minires.layers import PlainBlock
from minires.losses import CrossEntropyLoss
from minires.models import MODELS, build_model
from minires.models.own import is_own, short
from minires.plan import compile
from minires.study.xray.gradients import backward_norms, blocks_of, is_residual
from minires.training.card import load_model
from minires.training.metrics import read_metrics
from minires.training.recipes import RECIPES
from minires.training.run import CONFIG, read_config
from minires.training.trainer import BEST, LAST, METRICS, best_epoch

BATCH_SIZE = 128
RECORDS = 8  # times that a training of ours is looked at, its beginning not counted


@dataclass
class Moment:
    """A network at one moment. label: in words; at: steps or epochs trained; settled: whether its running statistics are
    those of its weights, so that evaluation mode means something."""

    label: str
    at: int
    network: Layer
    settled: bool = False


@dataclass
class Subject:
    """A network to look into. unit: what `at` counts, "step" or "epoch"; moments: the first is its initialisation; losses:
    [(at, training loss)]; norms: [(at, BackwardNorms)] along training, on the batch that is X-rayed."""

    name: str
    unit: str
    moments: list
    losses: list = field(default_factory=list)
    norms: list = field(default_factory=list)


@dataclass(frozen=True)
class Images:
    """The images to look with. batch: (x, target) that gradients are taken on, x: (N, H, W, C) float64; test: (x, target)
    for lesions, float32; training: the Dataset; standardise: bytes to pixels."""

    batch: tuple
    test: tuple
    training: object
    standardise: Standardise


def draw_images(dataset, data_dir, count, test_count, seed, statistics=None, size=None):
    """Images of a data set, at random by `seed`: `count` training images and up to `test_count` test images.

    statistics: (mean, std) that a trained network's images are standardised with; by default the training set's own.
    size: pixels a side of a folder's pictures.
    """
    if count < 2:
        raise UserError(f"{count} images are too few: batch normalisation needs 2 or more")
    train, test = load_dataset(dataset, data_dir, size=size)
    if count > len(train):
        raise UserError(f"{count} images were asked for and {dataset} has {len(train)}: choose at most that many")
    standardise = Standardise(*(channel_statistics(train.images) if statistics is None else statistics))
    rng = np.random.default_rng(seed)
    some = train.subset(rng.permutation(len(train))[:count])
    others = test.subset(rng.permutation(len(test))[:test_count])
    return Images((standardise(some.images).astype(np.float64), some.labels), (standardise(others.images), others.labels),
                  train, standardise)


def is_run(text):
    """True for the folder of a run, False for a model's name; UserError for anything else."""
    if text in MODELS or is_own(text):
        return False
    if (Path(text) / CONFIG).is_file():
        return True
    raise UserError(f"{text!r} is neither the folder of a run (it holds no {CONFIG}) nor a model: give a run such as "
                    f"runs/resnet20-shapes-seed0, or one of {', '.join(MODELS)}")


def model_subject(name, num_classes, seed=0, shortcut=None):
    """The Subject of a fresh network, initialised as `minires train --seed` does."""
    weights_rng = np.random.default_rng(seed).spawn(3)[0]
    network = build_model(name, num_classes, shortcut, rng=weights_rng)
    return Subject(short(name), "step", [Moment("initialisation", 0, network)])


def weights_subject(network, card, seed=0):
    """The Subject of trained weights of which nothing else is known: a fresh initialisation, and they as they are."""
    fresh = card.build(np.random.default_rng(seed).spawn(3)[0])
    return Subject(short(card.model), "epoch", [Moment("initialisation", 0, fresh), Moment("as trained", 1, network, True)])


def run_subject(folder):
    """The Subject of a run: its initial weights, made again from its seed, those of its best epoch and of its last."""
    settings, rows = read_config(folder), read_metrics(Path(folder) / METRICS)
    if not rows:
        raise UserError(f"{Path(folder) / METRICS} holds no epoch yet: X-ray the run when it has trained for one")
    network, card = load_model(Path(folder) / LAST)
    initial = card.build(np.random.default_rng(settings.seed).spawn(3)[0])
    label = "initialisation" if settings.start is None else "initialisation (the run began from trained weights)"
    best, last = best_epoch(rows), rows[-1]["epoch"]
    moments = [Moment(label, 0, initial)]
    if best != last:
        moments.append(Moment(f"epoch {best}, the best", best, load_model(Path(folder) / BEST)[0], True))
    moments.append(Moment(f"epoch {last}", last, network, True))
    return Subject(short(card.model), "epoch", moments, [(row["epoch"], row["train_loss"]) for row in rows])


def plain_twin(network):
    """The network without its shortcuts: the same branches with the same weights, in plain blocks.

    For shortcut A it is the network that `build_model("plain...")` makes from the same seed.
    """
    twin = deepcopy(network.forget())
    for name, block in blocks_of(twin).items():
        stage, index = name.split(".")
        setattr(getattr(twin, stage), index, _without_shortcut(block))
    return twin


def _without_shortcut(block):
    plain = PlainBlock.__new__(PlainBlock)
    vars(plain).update({name: value for name, value in vars(block).items() if name != "shortcut"})
    return plain


def twin_of(subject, num_classes, seed=0):
    """The Subject to hold it against, at initialisation: the plain twin of a residual network with the same weights, and
    of a plain network the residual one."""
    first = subject.moments[0].network
    if all(is_residual(block) for block in blocks_of(first).values()):
        name = "plain" + subject.name.removeprefix("resnet")
        return Subject(name, subject.unit, [Moment("initialisation", 0, plain_twin(first))])
    return model_subject(subject.name.replace("plain", "resnet"), num_classes, seed)


def train_subject(subject, images, steps, seed, progress=lambda: None):
    """Train a model's Subject for `steps` steps of 128 images, and add what is seen on the way to it.

    The recipe is that of the paper: SGD with momentum, learning rate 0.1 and a tenth of it after 1/2 and 3/4 of the steps,
    no augmentation. Twins get the same batches for the same seed. progress() is called after each step. UserError when the
    loss is no longer finite.
    """
    network = deepcopy(subject.moments[0].network.forget()).train()
    rng, gradients = np.random.default_rng(seed), compile(network, CrossEntropyLoss())
    recipe = RECIPES["he2015"]
    optimiser = recipe.make_optimiser(network.parameters())
    schedule = recipe.make_schedule(optimiser, steps)
    when = {round(steps * index / RECORDS) for index in range(RECORDS + 1)}
    subject.losses = []
    for step in range(1, steps + 1):
        chosen = rng.integers(0, len(images.training), BATCH_SIZE)
        x, target = images.standardise(images.training.images[chosen]), images.training.labels[chosen]
        with np.errstate(over="ignore", invalid="ignore"):
            value, _ = gradients(x, target)
            if not np.isfinite(value):
                raise UserError(f"the loss of {subject.name} became {value} at step {step}: train for fewer steps, or X-ray "
                                "a run of your own recipe")
            optimiser.step()
        schedule.step()
        subject.losses.append((step, value))
        if step in when:
            subject.norms.append((step, backward_norms(float64_copy(network), *images.batch)))
        progress()
    subject.moments.append(Moment(f"step {steps}", steps, network.forget()))


def float64_copy(network):
    """A copy of the network in float64, for measurements that leave the network itself alone."""
    return deepcopy(network.forget()).astype(np.float64).train()
