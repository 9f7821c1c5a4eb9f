"""The model card: what a file of weights says about itself, enough to rebuild the network and feed it."""
from dataclasses import asdict, dataclass

from minires import arguments
from minires.data import Loader, Standardise
from minires.errors import UserError
from minires.files import load_tensors
from minires.models import build_model

EVALUATION_BATCH_SIZE = 128  # as in training, so that the same buffers serve


@dataclass(frozen=True)
class ModelCard:
    """model, num_classes, shortcut: as `build_model` takes them. dataset: the name or folder it was trained on.

    classes: K names. image_size: pixels a side. mean, std: (C,), of the training images' pixels in [0, 1].
    """

    model: str
    num_classes: int
    shortcut: str | None
    dataset: str
    classes: tuple
    image_size: int
    mean: list
    std: list

    def __post_init__(self):
        arguments.text("model", self.model)
        arguments.text("shortcut", self.shortcut, optional=True)
        arguments.text("dataset", self.dataset)
        checked = {"num_classes": arguments.count("num_classes", self.num_classes, 2**16),
                   "image_size": arguments.count("image_size", self.image_size, 2**12)}
        if not (isinstance(self.classes, tuple | list) and all(isinstance(name, str) for name in self.classes)
                and len(self.classes) == self.num_classes):
            raise UserError(f"classes must be {self.num_classes} names, got {arguments.shown(self.classes)}")
        Standardise(self.mean, self.std)  # refuses what are no statistics
        checked |= {name: [float(value) for value in getattr(self, name)] for name in ("mean", "std")}
        vars(self).update(checked)  # as Python's own, which can be written down

    def build(self, rng=None):
        """The network, with initial weights from `rng`."""
        return build_model(self.model, self.num_classes, self.shortcut, rng=rng)

    def loader(self, dataset):
        """Batches of `dataset` for evaluation: standardised as in training, in order, each image once."""
        return Loader(dataset, EVALUATION_BATCH_SIZE, mean=self.mean, std=self.std)

    def about(self):
        """A dict of JSON values for a file's header."""
        return {**asdict(self), "classes": list(self.classes)}


def load_model(path):
    """(model with the weights in `path`, its ModelCard). UserError when the file is no checkpoint of minires train."""
    tensors, about = load_tensors(path)
    try:
        card = ModelCard(**{name: about[name] for name in ModelCard.__dataclass_fields__})
    except KeyError as error:
        raise UserError(f"checkpoint {path} does not say its {error.args[0]}: expected one of a run") from error
    except UserError as error:
        raise UserError(f"checkpoint {path} has a damaged header ({error}): get it again") from error
    return card.build().load_state_dict(tensors), card
