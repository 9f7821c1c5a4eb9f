"""The model card: what a file of weights says about itself, enough to rebuild the network and feed it."""
from dataclasses import MISSING, asdict, dataclass, field, fields

from minires import arguments
from minires.data import Loader, Standardise
from minires.errors import UserError, note
from minires.files import load_tensors, plain_json, save_tensors
from minires.layer import Layer
from minires.models import build_model
from minires.models.own import absolute, digest, is_own

EVALUATION_BATCH_SIZE = 128  # as in training, so that the same buffers serve
BEST = "best.safetensors"  # of a run's folder: the weights to use


@dataclass(frozen=True)
class ModelCard:
    """model, num_classes, shortcut: as `build_model` takes them. dataset: the name or folder it was trained on.

    classes: K names. image_size: pixels a side. mean, std: (C,), of the training images' pixels in [0, 1].
    options: what else `build_model` was told (stem, blocks, channels, block ..). code: of a model of one's own,
    FILE.py:function, a hash of the file.
    """

    model: str
    num_classes: int
    shortcut: str | None
    dataset: str
    classes: tuple
    image_size: int
    mean: list
    std: list
    options: dict = field(default_factory=dict)
    code: str = ""

    def __post_init__(self):
        arguments.text("model", self.model)
        arguments.text("shortcut", self.shortcut, optional=True)
        arguments.text("dataset", self.dataset)
        arguments.text("code", self.code)
        checked = {"num_classes": arguments.count("num_classes", self.num_classes, 2**16),
                   "image_size": arguments.count("image_size", self.image_size, 2**12),
                   "options": plain_json("options", self.options)}
        if not (isinstance(self.classes, tuple | list) and all(isinstance(name, str) for name in self.classes)
                and len(self.classes) == self.num_classes):
            raise UserError(f"classes must be {self.num_classes} names, got {arguments.shown(self.classes)}")
        Standardise(self.mean, self.std)  # refuses what are no statistics
        checked |= {name: [float(value) for value in getattr(self, name)] for name in ("mean", "std")}
        vars(self).update(checked)  # as Python's own, which can be written down

    def build(self, rng=None):
        """The network, with initial weights from `rng`. The file of an own model is run; a change of it is noted."""
        if self.code and digest(self.model) not in ("", self.code):
            note(f"the file of {self.model} is not what it was when the weights were trained: they may no longer fit it")
        return build_model(self.model, self.num_classes, self.shortcut, rng=rng, **self.options)

    def loader(self, dataset):
        """Batches of `dataset` for evaluation: standardised as in training, in order, each image once."""
        return Loader(dataset, EVALUATION_BATCH_SIZE, mean=self.mean, std=self.std)

    def about(self):
        """A dict of JSON values for a file's header."""
        return {**asdict(self), "classes": list(self.classes)}


def card_of(about, path):
    """The ModelCard in a file's header. UserError when it says too little, or something that cannot be."""
    try:
        return ModelCard(**{each.name: about[each.name] for each in fields(ModelCard)
                            if each.name in about or (each.default is MISSING and each.default_factory is MISSING)})
    except KeyError as error:
        raise UserError(f"checkpoint {path} does not say its {error.args[0]}: expected one of a run") from error
    except UserError as error:
        raise UserError(f"checkpoint {path} has a damaged header ({error}): get it again") from error


def weights_file(path):
    """The file of weights that a path means: itself, or of a run's folder the best epoch's.

    UserError for what is not there, and for a folder without weights.
    """
    path = arguments.path("checkpoint", path)
    if path.is_dir():
        if not (path / BEST).is_file():
            raise UserError(f"folder {path} holds no {BEST}: expected a run that has trained for an epoch, or name a "
                            "file of weights")
        return path / BEST
    if not path.is_file():
        raise UserError(f"checkpoint {path} is not a file: expected a run's folder, a run's .safetensors, or PyTorch's .pth "
                        "or .th")
    return path


def load_model(path):
    """(model with the weights in `path`, its ModelCard). path: a file of minires train or `minires.save`, or a run's folder.

    UserError when the file is something else, or when a model of one's own is not where it was.
    """
    path = weights_file(path)
    tensors, about = load_tensors(path)
    card = card_of(about, path)
    return card.build().load_state_dict(tensors), card


def save(model, path, *, classes=None, image_size=32, mean=None, std=None, dataset="", name=None):
    """Write a model's weights, and what rebuilds it, into a .safetensors file, for `minires.load` and every command.

    classes: K names, "0", "1" .. if None. image_size: pixels a side. mean, std: (C,), what its images are standardised with,
    pixels in [0, 1]; not at all if None. dataset: what it was trained on, as `load_dataset` takes it.
    name: FILE.py:function that makes the network, for one that is not of `build_model`'s; without it the file holds weights
    only, and load(path, model) needs the model. UserError for arguments that do not fit, and where nothing can be written.
    """
    if not isinstance(model, Layer):
        raise UserError(f"model must be a Layer, got {arguments.shown(model)}")
    about = {}
    if name is not None or hasattr(model, "built_as"):
        made = _made_by(model, name)
        maker, K, shortcut = made.pop("name"), made.pop("num_classes"), made.pop("shortcut", None)
        channels, classes = made.get("in_channels", 3), map(str, range(K)) if classes is None else classes
        mean, std = [0.0] * channels if mean is None else mean, [1.0] * channels if std is None else std
        about = ModelCard(maker, K, shortcut, dataset, tuple(classes), image_size, mean, std, made, digest(maker)).about()
    save_tensors(arguments.path("path", path), model.state_dict(), about)


def _made_by(model, name):
    """The arguments of `build_model` that make a network again: of a file's function `name`, or those that it remembers."""
    if name is not None:
        if not is_own(name):
            raise UserError(f"name {arguments.shown(name)} is no FILE.py:function: expected the file and the function that "
                            "make the network")
        if not digest(name):
            raise UserError(f"name {name} is in a file that is not there: expected the one whose function makes it")
        return {"name": absolute(name), "num_classes": outputs_of(model)}
    functions = [key for key, value in model.built_as.keywords.items() if callable(value)]
    if functions:
        raise UserError(f"{functions[0]} of the network is a function, which no file of weights holds: put what makes the "
                        "network into a function of a Python file, and save with name='FILE.py:function'")
    return dict(model.built_as.keywords)


def load(path, model=None):
    """The network in a file of `minires.save` or of a run, or in a run's folder (its best epoch).

    model: a network that the weights are loaded into, for a file that does not say what rebuilds it; it is returned. The
    classes and statistics that were saved beside it: `minires.training.load_model`.
    """
    path = weights_file(path)
    tensors, about = load_tensors(path)
    if model is None:
        if "model" not in about:
            raise UserError(f"{path} does not say what network it is of: make one, and pass it as in load({str(path)!r}, "
                            "model)")
        model = card_of(about, path).build()
    return model.load_state_dict(tensors)


def outputs_of(model):
    """The number of outputs of a network: those of its last linear layer or convolution."""
    last = [parameter.data.shape[-1] for parameter in model.parameters() if parameter.data.ndim > 1]
    if not last:
        raise UserError("the network has no weight, so the number of its classes is unknown: pass classes")
    return last[-1]
