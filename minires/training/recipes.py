"""Recipes: the settings of a training run that are chosen together, by name."""
from dataclasses import dataclass, replace

from minires import arguments
from minires.errors import UserError
from minires.optim import SGD
from minires.schedules import CosineLR, MultiStepLR, OneCycleLR, WarmUp


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with momentum, a schedule stretched over the whole run, and augmentation.

    schedule: "onecycle" (`lr` is its peak), "multistep" (a tenth after 1/2 and 3/4 of the steps) or "cosine" (to zero,
    after a warm-up over the first 20th of the steps). decay_all: whether weight decay is for biases and batch
    normalisation too. augment: random crop of the image padded by 4 pixels, and horizontal flip.
    """

    schedule: str
    lr: float
    weight_decay: float
    momentum: float = 0.9
    nesterov: bool = True
    decay_all: bool = False
    label_smoothing: float = 0.0
    augment: bool = True

    def __post_init__(self):
        arguments.choice("schedule", self.schedule, ("onecycle", "multistep", "cosine"))
        checked = {"lr": arguments.number("lr", self.lr, above=0)}
        for name in ("weight_decay", "momentum", "label_smoothing"):
            checked[name] = arguments.number(name, getattr(self, name), 0)
        for name in ("nesterov", "decay_all", "augment"):
            checked[name] = arguments.flag(name, getattr(self, name))
        vars(self).update(checked)  # as Python's own, which can be written down

    def make_optimiser(self, parameters):
        """SGD over `parameters`."""
        return SGD(parameters, self.lr, self.momentum, self.weight_decay, self.nesterov, decay_all=self.decay_all)

    def make_schedule(self, optimiser, total_steps):
        """The schedule, over `total_steps` optimiser steps."""
        if self.schedule == "onecycle":
            return OneCycleLR(optimiser, self.lr, total_steps)
        if self.schedule == "multistep":
            return MultiStepLR(optimiser, (max(1, total_steps // 2), max(1, total_steps * 3 // 4)))
        return WarmUp(CosineLR(optimiser, total_steps), max(1, total_steps // 20))


RECIPES = {
    "onecycle": Recipe("onecycle", lr=0.2, weight_decay=5e-4),
    # He et al. 2015, section 4.2: 64,000 steps there (182 epochs of 45,000 images), any number here.
    "he2015": Recipe("multistep", lr=0.1, weight_decay=1e-4, nesterov=False, decay_all=True),
    "cosine": Recipe("cosine", lr=0.1, weight_decay=5e-4, label_smoothing=0.1),
}

DEFAULT_EPOCHS = {"shapes": 8, "cifar10": 30}
OTHER_EPOCHS = 30  # for a folder of the user's


def make_recipe(name, lr=None, weight_decay=None):
    """The recipe called `name`, with another learning rate or weight decay where one is given.

    UserError for an unknown name, a learning rate that is not above 0 or a negative weight decay.
    """
    if not isinstance(name, str) or name not in RECIPES:
        raise UserError(f"unknown recipe {arguments.shown(name)}: choose one of {', '.join(RECIPES)}")
    given = {"lr": lr, "weight_decay": weight_decay}
    return replace(RECIPES[name], **{key: value for key, value in given.items() if value is not None})


def default_epochs(dataset):
    """How many epochs to train on a data set when nobody says."""
    return DEFAULT_EPOCHS.get(str(dataset), OTHER_EPOCHS)
