"""What the commands do that take weights: open a checkpoint, whoever wrote it, and look at images with it."""
from dataclasses import dataclass, replace

import numpy as np

from minires.backends import to_numpy
from minires.data import Standardise, has_pictures, load_dataset
from minires.data.cifar10 import CLASSES, read_records
from minires.data.picture import read_picture, square
from minires.errors import UserError, note
from minires.files import is_safetensors, load_tensors
from minires.interop.torch import load_torch_weights, read_weights
from minires.models import build_model
from minires.models.own import absolute, digest, is_own
from minires.plan import compile
from minires.training.card import ModelCard, card_of, outputs_of, weights_file
from minires.training.metrics import evaluate
from minires.training.views import over_views

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std that published weights were trained with
TOP = 5  # classes that count as found in the top-5 accuracy, and that `minires predict` names


def open_checkpoint(path, model=None, shortcut=None, mean=None, std=None, stem=None):
    """(network, ModelCard) of a file of weights, or of a run's folder (those of its best epoch).

    A checkpoint of minires names its network and its statistics, so the other arguments must not be given; but model, where
    its network is of a file of one's own that lies elsewhere now. For any other: model, shortcut, stem as `build_model`
    takes them; mean, std: "0.485,0.456,0.406", of pixels in [0, 1], by default ImageNet's, which is said on stderr; the
    number of its classes is read off the last layer, and ten are CIFAR-10's.
    UserError when the file, or what was said about it, does not fit.
    """
    path = weights_file(path)
    tensors, about = load_tensors(path) if is_safetensors(path) else ({}, {})
    given = [name for name, value in (("model", model), ("shortcut", shortcut), ("stem", stem), ("mean", mean), ("std", std))
             if value]
    if "model" in about:
        card = card_of(about, path)
        if is_own(card.model) and given == ["model"] and is_own(model):
            card, given = replace(card, model=absolute(model)), []
        if given:
            raise UserError(f"--{given[0]} is for checkpoints of other programs: {path} names its network and "
                            "statistics itself, leave it out")
        return _finite(card.build().load_state_dict(tensors), path), card
    if not model:
        raise UserError(f"checkpoint {path} does not name its network: give --model, as in --model resnet20, with "
                        "--shortcut and --stem where the network has others than usual")
    if bool(mean) != bool(std):
        raise UserError(f"--{'mean' if mean else 'std'} was given alone: give --mean and --std, or neither for ImageNet's")
    if not mean:
        note(f"{path} does not say what its images are standardised with: ImageNet's mean {_said(IMAGENET[0])} and std "
             f"{_said(IMAGENET[1])} are taken, as published weights mostly are; --mean and --std say otherwise")
    statistics = (_numbers("mean", mean), _numbers("std", std)) if mean else IMAGENET
    ours = "epoch" in about  # a Trainer's that was not told what to say about the model
    weights = tensors if ours else read_weights(path)
    K = _outputs(weights, path, last=ours)
    network = build_model(model, K, shortcut, stem)
    if outputs_of(network) != K:
        raise UserError(f"{path} tells {K} classes apart and {model} {outputs_of(network)}: expected a network of as many")
    classes = CLASSES if len(CLASSES) == K else tuple(map(str, range(K)))
    options = {} if stem is None else {"stem": stem}
    card = ModelCard(absolute(model), K, shortcut, "cifar10" if classes is CLASSES else "", classes,
                     224 if stem == "imagenet" else 32, *map(list, statistics), options, digest(model))
    return _finite(network.load_state_dict(weights) if ours else load_torch_weights(network, weights), path), card


def _finite(network, path):
    broken = [name for name, array in network.state_dict().items() if not np.isfinite(array).all()]
    if broken:
        raise UserError(f"checkpoint {path} holds numbers that are not finite, in {broken[0]}: its training diverged, there "
                        "is nothing to see")
    return network


def _outputs(weights, path, last):
    """The number of classes that weights tell apart: a side of the last linear layer's, the last axis or the first."""
    shapes = [np.shape(value) for value in weights.values() if len(np.shape(value)) > 1]
    linear = [shape for shape in shapes if len(shape) == 2] or shapes
    if not linear:
        raise UserError(f"checkpoint {path} holds no weight of a layer: expected those of a network")
    return int(linear[-1][-1 if last else 0])


def open_test_set(card, dataset=None, data_dir=None, records=None):
    """The images to evaluate on: a file of CIFAR-10 records, or the test set of `dataset` (the card's by default).

    Pictures of a folder are made as large as those that the network was trained on.
    """
    test = open_data(card, dataset, data_dir, records)[1]
    if len(test.classes) != card.num_classes:
        raise UserError(f"the checkpoint tells {card.num_classes} classes apart and the data has {len(test.classes)}: "
                        "evaluate on the data set it was trained for")
    return test


def open_data(card, dataset=None, data_dir=None, records=None):
    """(training set, test set) as for `open_test_set`; a file of records is both."""
    if records is not None:
        if dataset is not None or data_dir is not None:
            raise UserError(f"--records {records} is the data: leave out --dataset and --data-dir")
        return (read_records(records),) * 2
    dataset = card.dataset if dataset is None else dataset
    if not dataset:
        raise UserError("the checkpoint does not say what it was trained on: give --dataset cifar10, shapes or a folder")
    return load_dataset(dataset, data_dir, size=card.image_size if has_pictures(dataset) else None)


def read_image(path, size):
    """(pixels, note) of a picture file: (size, size, 3) uint8, made as a folder's pictures are for training and evaluation;
    note says what was done to its size, "" if nothing."""
    picture = read_picture(path)
    width, height = picture.size
    done = "" if width == height == size else f"resized from {width} x {height}" + (
        f" and cropped to the middle {size} x {size} pixels" if width != height else f" to {size} x {size} pixels")
    return square(picture, size), done


def predict_classes(network, card, pixels):
    """[(class name, probability), ...] of one image, the most likely first. pixels: (H, W, 3) uint8."""
    logits = compile(network)(Standardise(card.mean, card.std)(pixels[None]))[0].astype(np.float64)
    exponentials = np.exp(logits - logits.max())
    order = np.argsort(-logits, kind="stable")
    return [(card.classes[index], float(exponentials[index] / exponentials.sum())) for index in order]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a network makes of labelled images.

    confusion: (K, K) counts, row the true class, column the predicted one. loss: the mean of an image. found: images whose
    class is among the TOP most likely. Fractions of classes without an image, or that are never predicted, are NaN.
    """

    confusion: np.ndarray
    loss: float
    found: int

    @property
    def images(self):
        """The number of images."""
        return int(self.confusion.sum())

    @property
    def correct(self):
        """The number of those that were classified right."""
        return int(np.trace(self.confusion))

    @property
    def accuracy(self):
        """The fraction that was classified right."""
        return self.correct / self.images

    @property
    def top5(self):
        """The fraction whose class is among the five most likely."""
        return self.found / self.images

    @property
    def precision(self):
        """(K,) of the images that were said to be of a class, the fraction that are."""
        return _fraction(np.diag(self.confusion), self.confusion.sum(0))

    @property
    def recall(self):
        """(K,) of the images of a class, the fraction that were said to be: the accuracy of the class."""
        return _fraction(np.diag(self.confusion), self.confusion.sum(1))

    @property
    def f1(self):
        """(K,) the harmonic mean of precision and recall, 2 right / (images of the class + predictions of it)."""
        return _fraction(2 * np.diag(self.confusion), self.confusion.sum(0) + self.confusion.sum(1))

    @property
    def interval(self):
        """(low, high): the accuracy's 95 % interval, see `wilson`."""
        return wilson(self.correct, self.images)


def wilson(correct, images, z=1.959963984540054):
    """(low, high): Wilson's score interval of a fraction, by default of 95 %; images that are independent draws.

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),    p = correct / n

    It stays within 0 .. 1 and keeps its meaning near both, where p -+ z sqrt(p (1 - p) / n) does not.
    Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference", equation 1.
    """
    n, p = images, correct / images
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    scale = 1 + z * z / n
    # At the ends the formula gives 0 and 1, but for rounding.
    return (middle - half) / scale if correct else 0.0, (middle + half) / scale if correct < images else 1.0


def evaluated(network, loss, loader, device="cpu", views="none"):
    """The Evaluation of a network over a loader of (x, target), x: (N, H, W, C), target: (N,), in evaluation mode.

    views: whose logits are averaged, none, mirror or crops (`minires.training.views`).
    """
    best, seen, predict = [], [], over_views(compile(network), views)

    def watched(x):
        y = predict(x)
        best.append(np.argsort(-to_numpy(y), axis=1, kind="stable")[:, :TOP])
        return y

    def batches():
        for x, target in loader:
            seen.append(to_numpy(target))
            yield x, target

    score = evaluate(network, loss, batches(), device, watched)
    best, target = np.concatenate(best), np.concatenate(seen)
    K = len(score.seen)
    confusion = np.bincount(target * K + best[:, 0], minlength=K * K).reshape(K, K)
    return Evaluation(confusion, score.loss, int((best == target[:, None]).any(1).sum()))


def _fraction(part, whole):
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _said(numbers):
    return ", ".join(f"{number:g}" for number in numbers)


def _numbers(name, text):
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not np.isfinite(numbers).all():
        raise UserError(f"{name} {text!r} is not three numbers: expected one a channel, as 0.485,0.456,0.406")
    return numbers
