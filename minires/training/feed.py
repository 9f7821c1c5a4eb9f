"""Batches made on the device: the data set lies there as bytes, and a kernel gathers, crops, flips and standardises."""
import importlib

import numpy as np

from minires.backends import memory_advice, to_device
from minires.data.augment import draw_crops
from minires.errors import UserError

PADDING = 4  # of `augment_batch`


def feed(loader, device):
    """The `data.Loader` itself for "cpu", and where it has a list of augmentations; else for "cuda" the same batches, to the
    bit, made on the device."""
    return loader if device == "cpu" or loader.augment not in (True, False) else DeviceLoader(loader)


class DeviceLoader:
    """Yields (x, target) of a `data.Loader` as device arrays, x: (N, H, W, C), target: (N,) int64.

    An epoch's order and draws, the loader's own, are copied to the device when the epoch begins; after that nothing is
    copied and nothing waits. UserError when the data set does not fit into the device's memory.
    """

    def __init__(self, loader):
        self.loader, data = loader, loader.dataset
        try:
            self.images, self.labels = to_device(data.images, "cuda"), to_device(data.labels, "cuda")
        except MemoryError as error:
            raise UserError(f"the data set, {data.images.nbytes / 2**20:,.0f} MiB of images, does not fit into the device's "
                            "memory: use a smaller one, or --device cpu") from error
        self.table = to_device(loader.standardise.table, "cuda")

    dataset = property(lambda self: self.loader.dataset)
    rng = property(lambda self: self.loader.rng)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return self.batches_from()

    def batches_from(self, start=0, epoch=None):
        """As `data.Loader.batches_from`: an epoch from its batch number `start` on. Nothing here depends on its number."""
        order, rng = self.loader.begin_epoch()
        size = self.loader.batch_size
        order = order[:len(self) * size]
        crops = []
        if self.loader.augment:
            drawn = [draw_crops(len(order[start:start + size]), rng, PADDING) for start in range(0, len(order), size)]
            top, left, mirrored = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
            crops = [top.astype(np.int32), left.astype(np.int32), mirrored]
        with memory_advice(size):
            return self._batches(*(to_device(part, "cuda") for part in (order.astype(np.int64), *crops)), start=start)

    def _batches(self, order, *crops, start):
        gather_batch = importlib.import_module("minires.backends.cuda.augment").gather_batch
        for first in range(start * self.loader.batch_size, len(order), self.loader.batch_size):
            batch = slice(first, first + self.loader.batch_size)
            with memory_advice(self.loader.batch_size):
                crop = (part[batch] for part in crops)
                made = gather_batch(self.images, order[batch], self.table, PADDING, *crop), self.labels[order[batch]]
            yield made
