"""Data sets as bytes, augmentation, and a loader that prefetches batches of float32. Knows NumPy only."""

from __future__ import annotations

from minires.arguments import path
from minires.data.augment import Standardise, augment_batch, channel_statistics
from minires.data.cifar10 import find_layout, load_cifar10
from minires.data.dataset import Dataset
from minires.data.folder import load_folder
from minires.data.loader import Loader, split_train_validation
from minires.data.shapes import load_shapes, make_shapes
from minires.errors import UserError

__all__ = [
    "Dataset",
    "Loader",
    "Standardise",
    "augment_batch",
    "channel_statistics",
    "has_pictures",
    "load_cifar10",
    "load_dataset",
    "load_folder",
    "load_shapes",
    "make_shapes",
    "split_train_validation",
]


def load_dataset(name_or_dir, data_dir=None, seed: int = 0, progress: bool = True,
                 size: int | None = None) -> tuple[Dataset, Dataset]:
    """The training and test set called "cifar10" or "shapes", or those of a folder.

    name_or_dir: a name, or a folder with CIFAR-10 in either layout or with train/<class>/ and test/<class>/ pictures
    (a folder called like a name: write ./shapes). data_dir: where CIFAR-10 lies, instead of downloading it.
    seed: which shapes are drawn. progress: show the download's bar. size: pixels a side that a folder's pictures are made.
    Raises UserError for anything else, listing the choices.
    """
    if data_dir is not None and name_or_dir != "cifar10":
        raise UserError(f"data directory {data_dir} was given with dataset {name_or_dir}: only cifar10 reads one")
    if size is not None and name_or_dir in ("cifar10", "shapes"):
        raise UserError(f"size {size} is for folders of pictures: {name_or_dir} has images of 32 pixels, leave it out")
    if name_or_dir == "cifar10":
        return load_cifar10(data_dir, progress)
    if name_or_dir == "shapes":
        return load_shapes(seed)
    folder = path("dataset", name_or_dir)
    if folder.is_dir():
        if find_layout(folder) is not None:
            return load_dataset("cifar10", folder, progress=progress, size=size)
        if (folder / "train").is_dir() and (folder / "test").is_dir():
            return load_folder(folder, size)
        raise UserError(
            f"folder {folder} holds no data set: expected cifar-10-batches-bin/, cifar-10-batches-py/, "
            "or pictures in train/<class>/ and test/<class>/"
        )
    raise UserError(f"dataset {str(name_or_dir)!r} is unknown: choose cifar10, shapes, or a folder that exists")


def has_pictures(name_or_dir) -> bool:
    """Whether `load_dataset` reads pictures from files, which can be made of any size, under this name."""
    return name_or_dir not in ("cifar10", "shapes") and find_layout(path("dataset", name_or_dir)) is None
