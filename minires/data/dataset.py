"""What every loader of this package returns: images, labels and the names of the classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minires.arguments import shown
from minires.errors import UserError
from minires.reprs import Shown


@dataclass(frozen=True, eq=False, repr=False)
class Dataset(Shown):
    """Labelled images, all of one size, kept as bytes until a batch is asked for.

    images: (N, H, W, C) uint8, 0 to 255, C-contiguous;  labels: (N,) int64, 0 to K - 1;  classes: K names.
    Raises UserError when the three do not fit together.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self):
        images, labels = self.images, self.labels
        for name, array in (("images", images), ("labels", labels)):
            if not isinstance(array, np.ndarray):
                raise UserError(f"{name} must be a NumPy array, got {shown(array)}")
        if not isinstance(self.classes, tuple | list):
            raise UserError(f"classes must be a tuple of names, got {shown(self.classes)}")
        if images.dtype != np.uint8 or images.ndim != 4 or not images.flags.c_contiguous:
            raise UserError(f"images are {images.dtype} {images.shape}: expected C-contiguous uint8 (N, H, W, C)")
        if labels.dtype != np.int64 or labels.shape != (len(images),):
            raise UserError(f"labels are {labels.dtype} {labels.shape}: expected int64 ({len(images)},), one per image")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise UserError(f"labels run from {labels.min()} to {labels.max()}: expected 0 to {len(self.classes) - 1}")

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices) -> Dataset:
        """The images at `indices` (integers, a boolean mask or a slice), copied, in that order."""
        return Dataset(self.images[indices].copy(), self.labels[indices].copy(), self.classes)
