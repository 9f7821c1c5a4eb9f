"""What `minires eval` and `minires predict` do: open a checkpoint, whoever wrote it, and look at images with it."""
import numpy as np

from minires import arguments
from minires.data import load_dataset
from minires.data.cifar10 import CLASSES, read_records
from minires.data.picture import read_picture
from minires.errors import UserError
from minires.files import is_safetensors, load_tensors
from minires.plan import compile
from minires.training.card import ModelCard, load_model


def open_checkpoint(path, model=None, shortcut=None, mean=None, std=None):
    """(network, ModelCard) of a file of weights.

    A checkpoint of minires train names its network and its statistics, so the other arguments must not be given. For
    any other they must: model and shortcut as `build_model` takes them; mean, std: "0.485,0.456,0.406", of pixels in
    [0, 1]; its classes are CIFAR-10's. UserError when the file, or what was said about it, does not fit.
    """
    given = [name for name, value in (("model", model), ("shortcut", shortcut), ("mean", mean), ("std", std)) if value]
    path = arguments.path("checkpoint", path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} is not a file: expected a run's .safetensors, or PyTorch's .pth or .th")
    tensors, about = load_tensors(path) if is_safetensors(path) else ({}, {})
    if "model" in about:
        if given:
            raise UserError(f"--{given[0]} is for checkpoints of other programs: {path} names its network and "
                            "statistics itself, leave it out")
        return load_model(path)
    missing = [f"--{name}" for name, value in (("model", model), ("mean", mean), ("std", std)) if not value]
    if missing:
        raise UserError(f"checkpoint {path} does not name its network and statistics: give {', '.join(missing)}, as in "
                        "--model resnet20 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225")
    statistics = _numbers("mean", mean), _numbers("std", std)
    card = ModelCard(model, len(CLASSES), shortcut, "cifar10", CLASSES, 32, *statistics)
    network = card.build()
    if "epoch" in about:  # a Trainer's that was not told what to say about the model
        return network.load_state_dict(tensors), card
    from minires.interop.torch import load_torch_weights

    load_torch_weights(network, path)
    return network, card


def open_test_set(card, dataset=None, data_dir=None, records=None):
    """The images to evaluate on: a file of CIFAR-10 records, or the test set of `dataset` (the card's by default)."""
    if records is not None:
        if dataset is not None or data_dir is not None:
            raise UserError(f"--records {records} is the data to evaluate on: leave out --dataset and --data-dir")
        test = read_records(records)
    else:
        test = load_dataset(card.dataset if dataset is None else dataset, data_dir)[1]
    if len(test.classes) != card.num_classes:
        raise UserError(f"the checkpoint tells {card.num_classes} classes apart and the data has {len(test.classes)}: "
                        "evaluate on the data set it was trained for")
    return test


def read_image(path, size):
    """(pixels, note) of a picture file: (size, size, 3) uint8; note says what was done to its size, "" if nothing."""
    from PIL import Image

    picture = read_picture(path)
    note = ""
    if picture.size != (size, size):
        note = f"resized from {picture.width} x {picture.height} to {size} x {size} pixels"
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture), note


def predict_classes(network, card, pixels):
    """[(class name, probability), ...] of one image, the most likely first. pixels: (H, W, 3) uint8."""
    from minires.data import Standardise

    logits = compile(network)(Standardise(card.mean, card.std)(pixels[None]))[0].astype(np.float64)
    exponentials = np.exp(logits - logits.max())
    order = np.argsort(-logits, kind="stable")
    return [(card.classes[index], float(exponentials[index] / exponentials.sum())) for index in order]


def _numbers(name, text):
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not np.isfinite(numbers).all():
        raise UserError(f"{name} {text!r} is not three numbers: expected one a channel, as 0.485,0.456,0.406")
    return numbers
