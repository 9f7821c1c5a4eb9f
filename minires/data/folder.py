"""A data set from a folder of pictures: train/<class>/* and test/<class>/*."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from minires.arguments import count
from minires.data.dataset import Dataset
from minires.data.picture import MOST_SIDE, SUFFIXES, read_pixels
from minires.errors import UserError, note


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


def _files_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): expected pictures in it") from error


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def _read(path: Path, size: int | None) -> np.ndarray | UserError:
    try:
        return read_pixels(path, size)
    except UserError as error:
        return error


def _read_split(folder: Path, classes: tuple[str, ...], size: int | None) -> Dataset:
    images, labels, others, unreadable, first = [], [], [], [], None
    with ThreadPoolExecutor() as pool:
        # Pillow decodes without Python's lock. Pictures that are not made small are read one by one, to the first odd one.
        read = map if size is None else pool.map
        for label, name in enumerate(classes):
            files = _files_in(folder / name)
            found = [path for path in files if path.suffix.lower() in SUFFIXES]
            others += [path for path in files if path.suffix.lower() not in SUFFIXES]
            for path, pixels in zip(found, read(_read, found, [size] * len(found)), strict=True):
                if isinstance(pixels, UserError):
                    unreadable.append(path)
                    continue
                first = first or path
                if pixels.shape != (pixels.shape[0],) * 2 + (3,) or (images and pixels.shape != images[0].shape):
                    other = f" and {first} {_size(images[0])}" if images else ""
                    raise UserError(f"{path} is {_size(pixels)} pixels{other}: "
                                    "say with --size, as in --size 64, what the shorter side of pictures is resized to and "
                                    "their middle cropped to, or make them squares of one size")
                images.append(pixels)
                labels.append(label)
            if label not in labels[-1:]:
                raise UserError(f"{folder / name} holds no picture that can be read: expected files such as .png or .jpg "
                                f"(all kinds: {', '.join(sorted(SUFFIXES))})")
    if others or unreadable:
        kinds = [f"{len(paths)} {kind} ({paths[0].relative_to(folder)}{' the first' if len(paths) > 1 else ''})"
                 for paths, kind in ((unreadable, "that cannot be read"), (others, "that are no pictures")) if paths]
        note(f"{folder}: {len(images):,} pictures; left out are {' and '.join(kinds)}")
    return Dataset(np.stack(images), np.array(labels, np.int64), classes)


def load_folder(folder, size: int | None = None) -> tuple[Dataset, Dataset]:
    """The training and test set of a folder with train/<class>/ and test/<class>/, read with Pillow.

    images: (N, H, W, 3) uint8; the classes are the folders' names, sorted. size: pixels a side that pictures are made (the
    shorter side resized, the middle cropped); None for squares that are all of one size, which stay as they are.
    What is no picture, or cannot be read, is left out, counted, and told in a line on stderr. Raises UserError where train
    and test differ in classes or picture size, or a class holds no picture.
    """
    size = None if size is None else count("size", size, MOST_SIDE)
    train_folder, test_folder = Path(folder) / "train", Path(folder) / "test"
    classes, test_classes = _class_names(train_folder), _class_names(test_folder)
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise UserError(f"{folder}: only one of train and test has {', '.join(odd)}; expected the same classes in both")
    train, test = _read_split(train_folder, classes, size), _read_split(test_folder, classes, size)
    if train.images.shape[1:] != test.images.shape[1:]:
        (height, width), (test_height, test_width) = train.images.shape[1:3], test.images.shape[1:3]
        raise UserError(
            f"{test_folder} has pictures of {test_width}x{test_height} pixels but {train_folder} of {width}x{height}: "
            "say with --size what they are resized to, as in --size 64"
        )
    return train, test
