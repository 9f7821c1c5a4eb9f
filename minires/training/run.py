"""A run of the command line: its settings, the folder that holds them, and the Trainer they build."""
import tomllib
from dataclasses import asdict, dataclass, field, fields
from itertools import count
from pathlib import Path

import numpy as np
import tomli_w

import minires
from minires import arguments
from minires.backends import require_device
from minires.data import Loader, Standardise, channel_statistics, load_dataset, split_train_validation
from minires.errors import UserError
from minires.files import plain_json, write_atomically
from minires.losses import CrossEntropyLoss
from minires.models import build_model
from minires.models.own import digest, short
from minires.training.card import BEST, ModelCard
from minires.training.feed import feed
from minires.training.recipes import Recipe
from minires.training.trainer import Trainer
from minires.training.tuning import freeze, head_of, take_over

CONFIG = "config.toml"


@dataclass(frozen=True)
class Settings:
    """What a run was asked for; with the program's version it determines every weight that comes out.

    model, shortcut: as `build_model` takes them. dataset, data_dir: as `load_dataset` takes them. recipe_name: where
    `recipe` came from. validation: images split off the training set to choose best.safetensors by, 0 for none.
    options: what else `build_model` is told. size: pixels a side of a folder's pictures. start: the weights it began from;
    mean, std: of them, which images are standardised with instead of with the training set's own; freeze: patterns of
    parameters' names. UserError for a count that is out of range.
    """

    model: str
    dataset: str
    recipe_name: str
    recipe: Recipe
    epochs: int
    batch_size: int
    seed: int = 0
    validation: int = 0
    shortcut: str | None = None
    data_dir: str | None = None
    on_nonfinite: str = "stop"
    options: dict = field(default_factory=dict)
    size: int | None = None
    start: str | None = None
    mean: list | None = None
    std: list | None = None
    freeze: tuple = ()

    def __post_init__(self):
        # As Python's own, which can be written down.
        vars(self).update({name: arguments.integer(name.replace("_", " "), getattr(self, name), least, 2**53) for name, least
                           in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("validation", 0))})
        for name in ("model", "dataset", "recipe_name", "shortcut", "data_dir", "start"):
            arguments.text(name, getattr(self, name), optional=name in ("shortcut", "data_dir", "start"))
        if self.size is not None:
            vars(self)["size"] = arguments.integer("size", self.size, 1, 2**12)
        vars(self)["options"] = plain_json("options", self.options)
        if not isinstance(self.freeze, tuple | list):
            raise UserError(f"freeze must be a list of patterns, got {arguments.shown(self.freeze)}")
        vars(self)["freeze"] = tuple(arguments.text("each pattern of freeze", pattern) for pattern in self.freeze)
        if (self.mean is None) != (self.std is None):
            raise UserError("mean and std belong together: give both, or neither")
        if self.mean is not None:
            Standardise(self.mean, self.std)  # refuses what are no statistics
        arguments.choice("on_nonfinite", self.on_nonfinite, ("stop", "skip"))
        if not isinstance(self.recipe, Recipe):
            raise UserError(f"recipe must be a Recipe, got {arguments.shown(self.recipe)}")


def build_run(settings, out=None, device="cpu", progress=True, save_every=300.0, source=None, new_head=False):
    """(Trainer, ModelCard) for `settings`: data loaded, model initialised, nothing written yet.

    source: (network, ModelCard) that the weights are taken from. The last layer begins anew where it tells other classes
    apart, and with new_head. What was done is among the Trainer's notes.

    The seed gives three independent random streams: initial weights, batches and augmentation, validation split. The
    data set does not depend on it, so that runs with different seeds are tested on the same images. UserError for an
    unknown model or data set, a missing device, and whatever is wrong with the data.
    """
    require_device(device)
    weights_rng, batch_rng, split_rng = np.random.default_rng(settings.seed).spawn(3)
    # Refuses a wrong name before the data takes its time.
    build_model(settings.model, shortcut=settings.shortcut, **settings.options)
    train, test = load_dataset(settings.dataset, settings.data_dir, progress=progress, size=settings.size)
    validation = None
    if settings.validation:
        train, validation = split_train_validation(train, settings.validation, split_rng)
    mean, std = channel_statistics(train.images) if settings.mean is None else np.array([settings.mean, settings.std])

    card = ModelCard(settings.model, len(train.classes), settings.shortcut, settings.dataset, train.classes,
                     train.images.shape[1], mean.tolist(), std.tolist(), settings.options, digest(settings.model))
    model, recipe, batch_size = card.build(weights_rng), settings.recipe, settings.batch_size
    recipe.prepare(model, train.images, mean, std)
    notes = _begin_from(settings, model, card, source, new_head) if source is not None else []
    freeze(model, settings.freeze)
    model = model.to(device)
    # One image over would be a batch without a variance.
    drop_last = len(train) > batch_size and len(train) % batch_size == 1
    batches = Loader(train, batch_size, mean=mean, std=std, augment=recipe.augmentation, shuffle=True, rng=batch_rng,
                     drop_last=drop_last)
    batches = feed(batches, device)
    optimiser = recipe.make_optimiser(model.parameters())
    schedule = recipe.make_schedule(optimiser, max(1, settings.epochs * len(batches) // recipe.accumulate))
    trainer = Trainer(model, optimiser, batches, feed(card.loader(test), device),
                      validation=None if validation is None else feed(card.loader(validation), device), schedule=schedule,
                      loss=CrossEntropyLoss(recipe.label_smoothing), out=out, about=card.about(), device=device,
                      progress=progress, save_every=save_every, on_nonfinite=settings.on_nonfinite)
    trainer.notes += notes
    return trainer, card


def _begin_from(settings, model, card, source, new_head):
    """Give a model the weights of another, `source`; returns what is to be told of it."""
    network, other = source
    new = take_over(model, network, new_head or tuple(other.classes) != tuple(card.classes))
    head = f"a new last layer, {head_of(model)[0]}, for {card.num_classes} classes" if new else "its last layer as it is"
    return [f"begins from {settings.start}, with {head}; images are standardised as for those weights, with mean "
            f"{', '.join(f'{value:.4g}' for value in card.mean)} and std {', '.join(f'{value:.4g}' for value in card.std)}"]


def write_config(folder, settings, card):
    """Write config.toml: the settings, and what the data said about itself."""
    content = {key: value for key, value in asdict(settings).items() if value is not None and value not in ({}, ())}
    content["data"] = {"classes": list(card.classes), "image_size": card.image_size, "mean": card.mean, "std": card.std}
    write_atomically(Path(folder) / CONFIG, tomli_w.dumps({"minires": minires.__version__, **content}).encode())


def read_config(folder):
    """The Settings of the run in `folder`. UserError when there is no config.toml, or one that is not a run's."""
    path = Path(folder) / CONFIG
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content.get("recipe"), dict):
            raise KeyError("recipe")
        content["recipe"] = Recipe(**content["recipe"])
        return Settings(**{field.name: content[field.name] for field in fields(Settings) if field.name in content})
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): expected the folder of a run") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # damaged text, something missing, wrong values
        raise UserError(f"{path} is not the configuration of a run ({error}): it was changed or damaged") from error


def begin_run(trainer, settings, card, out=None):
    """Make the folder of a new run, with config.toml and the state before step 1, and return its path: `out`, or the first
    that is free of runs/MODEL-DATASET-seedN, ...-2, ...-3. UserError when `out` is not empty, or cannot be made."""
    first = f"runs/{short(settings.model)}-{Path(settings.dataset).name}-seed{settings.seed}"
    for number in count(1):
        folder = Path(first if number == 1 else f"{first}-{number}") if out is None else Path(out)
        if out is None and folder.exists():
            continue
        try:
            trainer.begin(folder, lambda folder: write_config(folder, settings, card))
        except UserError:
            if out is None and folder.exists():  # another run was quicker
                continue
            raise
        return folder


def newest_weights(runs="runs"):
    """best.safetensors of the run under `runs` that was saved last. UserError when there is none."""
    found = sorted(Path(runs).glob(f"*/{BEST}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"there is no run in {runs}/: train one with minires train, or name a file with --checkpoint")
    return found[-1]
