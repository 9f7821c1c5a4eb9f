"""Recipes: the settings of a training run that are chosen together, each in a file of recipes/ that names its sources."""
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path

from minires import arguments
from minires.data import Standardise
from minires.data.augmentations import AlternatingFlip, CropAndFlip, Cutout
from minires.errors import UserError
from minires.layers import BatchNorm2d
from minires.models.speedrun import WHITENING_IMAGES
from minires.optim import SGD, Muon, set_parameters
from minires.schedules import CosineLR, MultiStepLR, OneCycleLR, TriangleLR, WarmUp
from minires.training.views import TTA

CHOICES = {"schedule": ("onecycle", "multistep", "cosine", "triangle"), "optimiser": ("sgd", "muon"),
           "flip": ("random", "alternating", "none"), "tta": TTA}
COUNTS = {"accumulate": 1, "iterations": 1, "crop": 0, "cutout": 0}
RUN = ("model", "batch_size", "epochs")  # what a recipe may say beside the fields of Recipe


@dataclass(frozen=True)
class Recipe:
    """How to train: optimiser, a schedule stretched over the whole run, augmentation, and what is set on a new network.

    schedule: "onecycle" (`lr` is its peak), "multistep" (a tenth after 1/2 and 3/4 of the steps), "cosine" (to zero,
    after a warm-up over the first 20th of the steps) or "triangle" (`TriangleLR`: up from start * lr to lr over the fraction
    warm_up of the steps, and down to end * lr). decay_all: whether weight decay is for biases and batch normalisation too.
    optimiser: "sgd" or "muon", whose sgd_lr, sgd_momentum and iterations the others name. bias_lr_factor: of the biases of
    batch normalisation, whose decay is divided by it. average: of the weights (`SGD`), accumulate: batches an update.
    augment: False turns all of it off: random crops of the image padded by `crop` pixels (black, with `reflect` mirrored),
    flip "random", "alternating" or "none", and squares of `cutout` pixels blacked out.
    whiten, dirac: of networks that have `whiten_by` and `begin_as_identity` (`minires.models.speedrun`). tta: views
    that the final accuracy is averaged over too (`minires.training.views`).
    Each is off at its default, but for momentum, nesterov, crop and random flip.
    """

    schedule: str
    lr: float
    weight_decay: float
    momentum: float = 0.9
    nesterov: bool = True
    decay_all: bool = False
    label_smoothing: float = 0.0
    augment: bool = True
    optimiser: str = "sgd"
    sgd_lr: float = 0.0
    sgd_momentum: float = 0.9
    iterations: int = 5
    bias_lr_factor: float = 1.0
    average: float = 0.0
    accumulate: int = 1
    warm_up: float = 0.2
    start: float = 0.0
    end: float = 0.0
    crop: int = 4
    reflect: bool = False
    flip: str = "random"
    cutout: int = 0
    whiten: bool = False
    dirac: bool = False
    tta: str = "none"

    def __post_init__(self):
        checked = {}
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name in CHOICES:
                checked[name] = arguments.choice(name, value, CHOICES[name])
            elif name in COUNTS:
                checked[name] = arguments.integer(name, value, COUNTS[name])
            elif field.type is bool:
                checked[name] = arguments.flag(name, value)
            elif name in ("lr", "bias_lr_factor"):
                checked[name] = arguments.number(name, value, above=0)
            else:
                checked[name] = arguments.number(name, value, 0)
        if self.optimiser == "muon":  # it would leave what is no convolution as it is
            arguments.number("sgd_lr, of what muon leaves to SGD,", self.sgd_lr, above=0)
        vars(self).update(checked)  # as Python's own, which can be written down

    def make_optimiser(self, parameters):
        """SGD or Muon over `parameters`."""
        options = {"decay_all": self.decay_all, "average": self.average or None, "accumulate": self.accumulate}
        if self.optimiser == "muon":
            return Muon(parameters, self.lr, self.momentum, self.weight_decay, self.nesterov, sgd_lr=self.sgd_lr,
                        sgd_momentum=self.sgd_momentum, iterations=self.iterations, **options)
        return SGD(parameters, self.lr, self.momentum, self.weight_decay, self.nesterov, **options)

    def make_schedule(self, optimiser, total_steps):
        """The schedule, over `total_steps` updates."""
        if self.schedule == "onecycle":
            return OneCycleLR(optimiser, self.lr, total_steps)
        if self.schedule == "multistep":
            return MultiStepLR(optimiser, (max(1, total_steps // 2), max(1, total_steps * 3 // 4)))
        if self.schedule == "triangle":
            return TriangleLR(optimiser, total_steps, self.warm_up, self.start, self.end)
        return WarmUp(CosineLR(optimiser, total_steps), max(1, total_steps // 20))

    @property
    def augmentation(self):
        """What a Loader takes as `augment`: True and False where they say the same, which a device can make itself."""
        if not self.augment or (self.crop, self.reflect, self.flip, self.cutout) == (4, False, "random", 0):
            return self.augment
        chosen = [CropAndFlip(self.crop, self.flip == "random", self.reflect)]
        chosen += [AlternatingFlip()] if self.flip == "alternating" else []
        return chosen + ([Cutout(self.cutout)] if self.cutout else [])

    def prepare(self, model, images, mean, std):
        """Set on a new model, on the CPU, what the recipe says of it. images: (N, H, W, C) uint8, to train on."""
        if self.whiten and hasattr(model, "whiten_by"):
            model.whiten_by(Standardise(mean, std)(images[:WHITENING_IMAGES]))
        if self.dirac and hasattr(model, "begin_as_identity"):
            model.begin_as_identity()
        if self.bias_lr_factor != 1:
            for name, layer in model.named_layers():
                if isinstance(layer, BatchNorm2d):
                    set_parameters(model, f"{name}.bias", lr_factor=self.bias_lr_factor,
                                   decay_factor=1 / self.bias_lr_factor)


def read_recipe(path):
    """(Recipe, {what it says of model, batch_size and epochs}) of a TOML file. UserError for a file that is none."""
    path = arguments.path("recipe", path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read ({error.strerror}): name a file, or one of "
                        f"{', '.join(RECIPES)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"recipe {path} is no TOML ({error}): see those in minires/training/recipes") from error
    run = {name: content.pop(name) for name in RUN if name in content}
    return _changed(None, content, path), run


def _changed(recipe, changes, name):
    """A Recipe with some fields changed, or of those alone. UserError for a field that is none."""
    known = [field.name for field in fields(Recipe)]
    odd = [key for key in changes if key not in known]
    missing = [key for key in known[:3] if key not in changes] if recipe is None else []
    if odd or missing:
        raise UserError(f"recipe {name} {'has no field ' + odd[0] if odd else 'does not say ' + missing[0]}: its fields are "
                        f"{', '.join(known)}")
    return Recipe(**changes) if recipe is None else replace(recipe, **changes)


RECIPES, RUNS = {}, {}
for _path in sorted((Path(__file__).parent / "recipes").glob("*.toml")):
    RECIPES[_path.stem], RUNS[_path.stem] = read_recipe(_path)

DEFAULT_RUN = {"model": "resnet20", "batch_size": 128}
DEFAULT_EPOCHS = {"shapes": 8, "cifar10": 30}
OTHER_EPOCHS = 30  # for a folder of the user's


def find_recipe(name):
    """(Recipe, what it says of the run) by its name, or by a file's that ends in .toml. UserError for an unknown one."""
    if isinstance(name, str) and name in RECIPES:
        return RECIPES[name], RUNS[name]
    if isinstance(name, str) and name.endswith(".toml"):
        return read_recipe(name)
    raise UserError(f"unknown recipe {arguments.shown(name)}: choose one of {', '.join(RECIPES)}, or a file NAME.toml")


def make_recipe(name, lr=None, weight_decay=None, **changes):
    """The recipe called `name` (or a file), with what is given in the place of its own: make_recipe("budget", tta="none").

    UserError for an unknown name or field, and for values out of range.
    """
    given = {"lr": lr, "weight_decay": weight_decay}
    return _changed(find_recipe(name)[0], {key: value for key, value in given.items() if value is not None} | changes, name)


def run_of(name, dataset, **given):
    """{model, batch_size, epochs}: what is given, else what the recipe says, else the defaults."""
    said = {**DEFAULT_RUN, "epochs": default_epochs(dataset), **find_recipe(name)[1]}
    return {key: said[key] if given.get(key) is None else given[key] for key in RUN}


def parse_changes(lines):
    """{field: value} of lines such as "dirac=false", values as in TOML; a bare word is text. UserError else."""
    changes = {}
    for line in lines or ():
        key, equals, text = line.partition("=")
        if not equals or not key.strip():
            raise UserError(f"{line!r} sets nothing: write a field of the recipe and its value, as --set whiten=false")
        try:
            changes[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            changes[key.strip()] = text.strip()
    return changes


def default_epochs(dataset):
    """How many epochs to train on a data set when nobody says."""
    return DEFAULT_EPOCHS.get(str(dataset), OTHER_EPOCHS)
