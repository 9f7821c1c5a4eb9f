"""What is measured: loss and accuracy over a loader, and the file that holds one line an epoch."""
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minires.arguments import shown
from minires.backends import memory_advice, to_device, to_numpy
from minires.errors import UserError
from minires.files import read_json, write_atomically
from minires.layer import evaluating, inference_mode
from minires.plan import compile

READ_EVERY = 50  # batches of a device between two times that the host waits for it


@dataclass
class Score:
    """Loss and accuracy over some images, added up batch by batch; the mean over images, whatever the batches' sizes.

    loss_sum: the sum over images of the loss. correct, seen: (K,) images of each class, right and in all. Batches of a
    device are put aside and counted READ_EVERY at a time, or when `read` is called.
    """

    loss_sum: float = 0.0
    correct: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    seen: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    waiting: list = field(default_factory=list)

    def add(self, loss, y, target):
        """Count a batch: loss, its mean; y: (N, K) logits; target: (N,), or (N, K) shares, of which
        the largest counts. Returns the losses that became known by it."""
        if not len(self.seen):
            self.correct, self.seen = np.zeros((2, y.shape[1]), np.int64)
        self.waiting.append((loss, y.argmax(1), target if target.ndim == 1 else target.argmax(1)))
        return self.read() if isinstance(y, np.ndarray) or len(self.waiting) == READ_EVERY else []

    def read(self):
        """Count what was put aside, waiting for the device if it is there; returns the losses, in order."""
        losses = []
        for loss, guess, target in self.waiting:
            target = to_numpy(target)
            losses.append(float(loss))
            self.loss_sum += losses[-1] * len(target)
            self.correct += np.bincount(target[to_numpy(guess) == target], minlength=len(self.seen))
            self.seen += np.bincount(target, minlength=len(self.seen))
        self.waiting.clear()
        return losses

    @property
    def images(self):
        """The number of images counted."""
        return int(self.seen.sum())

    @property
    def loss(self):
        """The mean loss of an image."""
        return self.loss_sum / self.images

    @property
    def accuracy(self):
        """The fraction of images whose largest logit is their class's."""
        return int(self.correct.sum()) / self.images

    @property
    def class_accuracy(self):
        """(K,) the accuracy over each class's own images; NaN for a class without any."""
        return np.where(self.seen > 0, self.correct / np.maximum(self.seen, 1), np.nan)


def evaluate(model, loss, loader, device="cpu", predict=None):
    """The Score of `model` over `loader`: (x, target) batches, x: (N, H, W, C), target: (N,).

    Evaluation mode (running statistics, no dropout) and inference_mode, so that nothing of the model is changed; each
    layer's mode is put back afterwards. UserError when the loader yields nothing.
    predict: what `minires.compile(model)` returned, where it is used more than once.
    """
    predict = compile(model) if predict is None else predict
    score = Score()
    with evaluating(model), inference_mode():
        for x, target in loader:
            with memory_advice(len(x)):
                x, target = to_device(x, device), to_device(target, device)
                y = predict(x)
                score.add(loss.forward(y, target), y, target)
        score.read()
    if not score.images:
        raise UserError("the loader to evaluate on yielded no batch: expected at least one image")
    return score


def read_metrics(path):
    """The rows of a metrics.jsonl, one dict an epoch. UserError when the file is missing or is not one."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): expected a run's metrics.jsonl") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a metrics.jsonl ({error}): expected one JSON object a line") from error
    rows = [read_json(line, f"{path} is not a metrics.jsonl: line {number}") for number, line in enumerate(lines, 1)]
    if not all(isinstance(row, dict) and {"epoch", "train_loss", "test_accuracy"} <= row.keys() for row in rows):
        raise UserError(f"{path} is not a metrics.jsonl: expected epoch, train_loss, test_accuracy .. on each line")
    for row in rows:
        odd = [key for key, value in row.items() if isinstance(value, bool) or not isinstance(value, int | float | None)
               or (value is None and key in ("epoch", "train_loss", "test_accuracy"))]
        if odd:
            raise UserError(f"{path} is not a metrics.jsonl: {odd[0]} is {shown(row[odd[0]])} where a number was expected")
    return rows


def read_rows(path, epochs, wanted):
    """The rows of so many epochs, each with the numbers `wanted`; UserError when they are not there."""
    # The state is written last: a run that died just before it has one row, redone now, too many.
    rows = read_metrics(path)[:epochs] if epochs else []
    if [row["epoch"] for row in rows] != list(range(1, epochs + 1)):
        raise UserError(f"{path} has {len(rows)} epochs but the state beside it was saved after {epochs}, "
                        "so one of the two is from another run: put the file back that belongs to it")
    missing = [name for name in wanted for row in rows if name not in row]
    if missing:
        raise UserError(f"{path} lacks {missing[0]} on some line, so it was changed or is another run's: put back the file "
                        "that belongs to the state beside it")
    return rows


def write_metrics(path, rows):
    """Write `rows`, one JSON object a line; a number that is not finite, which JSON has no word for, as null."""
    rows = [{key: value if math.isfinite(value) else None for key, value in row.items()} for row in rows]
    write_atomically(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())


def best_epoch(rows):
    """The epoch whose weights are in best.safetensors: the highest validation accuracy, else the last."""
    if "validation_accuracy" not in rows[-1]:
        return rows[-1]["epoch"]
    return max(rows, key=lambda row: row["validation_accuracy"])["epoch"]
