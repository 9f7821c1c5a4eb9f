"""Batches for training and evaluation, made one or two ahead by a background thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import numpy as np

from minires.arguments import flag, integer, shown
from minires.data.augment import Standardise, draw_crops
from minires.data.augmentations import AlternatingFlip, CropAndFlip, MixUp
from minires.data.dataset import Dataset
from minires.errors import UserError
from minires.init import default_rng
from minires.reprs import Shown

_AHEAD = 2  # batches that may be finished or in the making before the consumer asks for them


def split_train_validation(train: Dataset, validation_size: int, rng: np.random.Generator) -> tuple[Dataset, Dataset]:
    """Split off `validation_size` random images that share the classes' proportions: (training, validation).

    The two are disjoint and together hold every image once, both in the original order.
    Raises UserError when validation_size is not in 1 .. len(train) - 1.
    """
    size, n, rng = integer("validation size", validation_size), len(train), default_rng(rng)
    if not 1 <= size <= n - 1:
        raise UserError(f"validation size {size} does not fit {n} training images: expected 1 to {n - 1}")
    shuffled = rng.permutation(n)
    by_class = shuffled[np.argsort(train.labels[shuffled], kind="stable")]
    # Evenly spaced places in a list sorted by class take from each class its share, to within one image.
    chosen = np.zeros(n, bool)
    chosen[by_class[(2 * np.arange(size) + 1) * n // (2 * size)]] = True
    return train.subset(~chosen), train.subset(chosen)


class Loader(Shown):
    """Iterate over a data set once, in standardised batches; iterating again is a new epoch.

    Yields (x, target), x: (N, H, W, C) `dtype`, target: (N,) int64, or with MixUp (N, K) shares, N = batch_size (the last
    one is smaller, unless drop_last). mean, std: (C,), of the training images' pixels in [0, 1]. augment: True for random
    crops and flips, or a list of `minires.data.augmentations`, or of functions of one's own. shuffle: a fresh permutation
    each epoch.

    An epoch's randomness comes from one number drawn from `rng` when iteration begins: it does not depend on the
    thread's timing or on where the consumer stops, and restoring `rng.bit_generator.state` repeats what followed.
    epoch: the number of the epoch that begins next, from 0, which AlternatingFlip goes by.
    Raises UserError for an empty data set, a batch_size below 1, drop_last with less than one whole batch, or shuffle
    or augment without rng.
    """

    def __init__(self, dataset: Dataset, batch_size: int, *, mean, std, augment: bool | list = False, shuffle: bool = False,
                 rng: np.random.Generator | None = None, drop_last: bool = False, dtype=np.float32):
        if not isinstance(dataset, Dataset):
            raise UserError(f"a loader takes a Dataset, got {shown(dataset)}")
        self.batch_size = integer("batch size", batch_size)
        shuffle, drop_last = flag("shuffle", shuffle), flag("drop_last", drop_last)
        augment = _augment(augment)
        if self.batch_size < 1:
            raise UserError(f"batch size {batch_size} is too small: expected 1 or more")
        if len(dataset) == 0:
            raise UserError("the data set is empty: expected at least one image")
        if drop_last and len(dataset) < self.batch_size:
            raise UserError(
                f"{len(dataset)} images fill no batch of {self.batch_size} and drop_last is set, so an epoch would do "
                f"nothing: choose a batch size of at most {len(dataset)}"
            )
        if (shuffle or augment) and rng is None:
            raise UserError("shuffle or augment without rng: pass rng=numpy.random.default_rng(seed)")
        rng = None if rng is None else default_rng(rng)
        self.dataset, self.augment, self.shuffle, self.drop_last, self.rng = dataset, augment, shuffle, drop_last, rng
        self.epoch = 0
        self.augmentations = [CropAndFlip()] if augment is True else list(augment or ())
        self.standardise = Standardise(mean, std, dtype)
        if self.standardise.channels != dataset.images.shape[-1]:
            raise UserError(
                f"mean and std are of {self.standardise.channels} channels but the images have "
                f"{dataset.images.shape[-1]}: expected one number per channel"
            )

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def begin_epoch(self) -> tuple[np.ndarray, np.random.Generator | None]:
        """A new epoch: the images' places in the data set, in the order of the batches, and the stream that
        augmentations draw from, batch by batch (None without shuffle and augment)."""
        self.epoch += 1
        random = self.shuffle or self.augment
        rng = np.random.default_rng(self.rng.integers(2**63)) if random else None
        return rng.permutation(len(self.dataset)) if self.shuffle else np.arange(len(self.dataset)), rng

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return self.batches_from()

    def batches_from(self, start: int = 0, epoch: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """A new epoch from its batch number `start` on: the same batches as in a whole one.

        epoch: its number, where it is not that after the last one here: a Trainer's own.
        """
        # Drawn here and not in the generator, whose body only runs when the first batch is asked for.
        epoch = self.epoch = self.epoch if epoch is None else epoch
        order, rng = self.begin_epoch()
        for batch in range(start if self.augment else 0):
            self._draw(order[batch * self.batch_size : (batch + 1) * self.batch_size], rng)
        return self._epoch(order, rng, epoch, start)

    def _epoch(self, order, rng, epoch, start):
        starts = range(start * self.batch_size, len(self) * self.batch_size, self.batch_size)
        jobs = (partial(self._batch, order[start : start + self.batch_size], rng, epoch) for start in starts)
        # One worker makes the batches in order, so the draws from rng are in order too. Leaving the block, by the end,
        # an exception or a consumer that stops early, waits for the worker to end.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="minires-loader") as pool:
            ahead = deque(pool.submit(job) for job in islice(jobs, _AHEAD))
            while ahead:
                batch = ahead.popleft().result()
                ahead.extend(pool.submit(job) for job in islice(jobs, 1))
                yield batch

    def _draw(self, indices, rng):
        """Draw what a batch draws: of crops and flips alone without making it."""
        drawing = [each for each in self.augmentations if not isinstance(each, AlternatingFlip)]
        if any(type(each) is not CropAndFlip for each in drawing):
            self._batch(indices, rng)
            return
        for each in drawing:
            draw_crops(len(indices), rng, each.padding, each.flip)

    def _batch(self, indices, rng, epoch=0):
        images = self.dataset.images[indices]
        mixing = [each for each in self.augmentations if isinstance(each, MixUp)]
        for augmentation in self.augmentations:
            if isinstance(augmentation, AlternatingFlip):
                images = augmentation.flip(images, indices, epoch)
            elif augmentation not in mixing:
                images = augmentation(images, rng)
        x, target = self.standardise(images), self.dataset.labels[indices]
        for each in mixing:
            x, target = each.mix(x, target, len(self.dataset.classes), rng)
        return x, target


def _augment(value):
    """True, False, or a list of what can be called on images, or is MixUp or AlternatingFlip."""
    if not isinstance(value, list | tuple):
        return flag("augment", value)
    for each in value:
        if not callable(each) and not isinstance(each, MixUp | AlternatingFlip):
            raise UserError(f"augment is a list of functions of (images, rng), got {shown(each)} in it")
    return list(value)
