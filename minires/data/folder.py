"""A data set from a folder of pictures: train/<class>/*.png|jpg and test/<class>/*.png|jpg."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from minires.data.dataset import Dataset
from minires.data.picture import OTHER_SUFFIXES, SUFFIXES, read_pixels
from minires.errors import UserError


def _class_names(folder: Path) -> tuple[str, ...]:
    try:
        return _names_in(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): expected class folders in it") from error


def _names_in(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: expected train/<class>/ and test/<class>/ in {folder.parent}")
    names = tuple(sorted(d.name for d in folder.iterdir() if d.is_dir() and not d.name.startswith(".")))
    if not names:
        raise UserError(f"{folder} has no class folders: expected {folder.name}/<class>/*.png or *.jpg")
    return names


def _read_split(folder: Path, classes: tuple[str, ...]) -> Dataset:
    paths, labels, left_out = [], [], []
    for label, name in enumerate(classes):
        try:
            visible = [p for p in (folder / name).iterdir() if not p.name.startswith(".")]
        except OSError as error:
            raise UserError(f"{folder / name} cannot be read ({error.strerror}): expected pictures in it") from error
        left_out += [p for p in visible if p.suffix.lower() in OTHER_SUFFIXES]
        found = sorted(p for p in visible if p.suffix.lower() in SUFFIXES)
        if not found:
            raise UserError(f"{folder / name} holds no pictures: expected *.png, *.jpg or *.jpeg")
        paths += found
        labels += [label] * len(found)
    if left_out:
        print(f"minires: {folder} holds {len(left_out)} pictures of other kinds, {left_out[0]} the first, which are left "
              "out: convert them to .png or .jpg", file=sys.stderr)
    first = read_pixels(paths[0])
    images = np.empty((len(paths), *first.shape), np.uint8)
    for image, path in zip(images, paths, strict=True):
        pixels = read_pixels(path)
        if pixels.shape != first.shape:
            raise UserError(
                f"{path} is {pixels.shape[1]}x{pixels.shape[0]} pixels but {paths[0]} is {first.shape[1]}x"
                f"{first.shape[0]}: expected all pictures of one size, resize them first"
            )
        image[:] = pixels
    return Dataset(images, np.array(labels, np.int64), classes)


def load_folder(folder) -> tuple[Dataset, Dataset]:
    """The training and test set of a folder with train/<class>/ and test/<class>/, read with Pillow.

    images: (N, H, W, 3) uint8; the classes are the folders' names, sorted. Files that are not .png, .jpg or .jpeg are
    no part of the data. Raises UserError where train and test differ in classes or picture size, a class is empty, or
    a picture is damaged or not of 8 bits a channel.
    """
    train_folder, test_folder = Path(folder) / "train", Path(folder) / "test"
    classes, test_classes = _class_names(train_folder), _class_names(test_folder)
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise UserError(f"{folder}: only one of train and test has {', '.join(odd)}; expected the same classes in both")
    train, test = _read_split(train_folder, classes), _read_split(test_folder, classes)
    if train.images.shape[1:] != test.images.shape[1:]:
        (height, width), (test_height, test_width) = train.images.shape[1:3], test.images.shape[1:3]
        raise UserError(
            f"{test_folder} has pictures of {test_width}x{test_height} pixels but {train_folder} of {width}x{height}: "
            "expected one size in both, resize them first"
        )
    return train, test
