"""CIFAR-10 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html): downloaded, or read from a folder.

A file of the binary version is 10,000 records of 3,073 bytes: a label, then the red, green and blue planes, each row
by row. The python version holds the same numbers in pickles, which `minires.data.pickled` reads without running them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from minires import arguments
from minires.data.dataset import Dataset
from minires.data.pickled import unpickle_arrays
from minires.errors import UserError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Of the 50,000 training images, pixels in [0, 1]; channel_statistics(train.images) gives the same.
CIFAR10_MEAN = (0.49139968, 0.48215841, 0.44653091)
CIFAR10_STD = (0.24703223, 0.24348513, 0.26158784)

RECORDS_PER_FILE = 10_000
MOST_RECORDS = 100_000  # in one file: 300 MB
_PIXEL_BYTES = 3 * 32 * 32
RECORD_BYTES = 1 + _PIXEL_BYTES

_BINARY, _PYTHON = "cifar-10-batches-bin", "cifar-10-batches-py"
_SUFFIX = {_BINARY: ".bin", _PYTHON: ""}
_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
_TEST = "test_batch"


def _to_dataset(planes: np.ndarray, labels: np.ndarray, path: Path) -> Dataset:
    """planes: (N, 3072) uint8, channel by channel;  labels: (N,)."""
    wrong = np.flatnonzero((labels < 0) | (labels >= len(CLASSES)))
    if len(wrong):
        raise UserError(
            f"{path}: record {wrong[0]} has label {labels[wrong[0]]}, expected 0 to {len(CLASSES) - 1}; "
            "the file is damaged or not CIFAR-10, get it again"
        )
    images = np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return Dataset(images, labels.astype(np.int64), CLASSES)


def _read_bytes(path: Path, expected: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: expected {expected}; get the data again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): expected {expected}") from error


def read_records(path) -> Dataset:
    """Any whole number of records, one or more, from a file of the binary version: images (N, 32, 32, 3) uint8.

    Raises UserError for a missing file, a size that is no multiple of 3,073 bytes, or a label above 9.
    """
    path = arguments.path("records", path)
    with contextlib.suppress(OSError):  # which is read_bytes' to report
        if path.stat().st_size > MOST_RECORDS * RECORD_BYTES:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes: expected at most {MOST_RECORDS:,} records")
    data = _read_bytes(path, f"a file of {RECORD_BYTES}-byte records")
    if len(data) == 0 or len(data) % RECORD_BYTES:
        raise UserError(
            f"{path} has {len(data):,} bytes, expected a multiple of {RECORD_BYTES:,}, a record's size; get it again"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD_BYTES)
    return _to_dataset(records[:, 1:], records[:, 0], path)


def _read_binary_file(path: Path) -> Dataset:
    expected = RECORDS_PER_FILE * RECORD_BYTES
    size = path.stat().st_size if path.is_file() else expected  # a missing file is read_records' to report
    if size != expected:
        raise UserError(
            f"{path} has {size:,} bytes, expected {expected:,} ({RECORDS_PER_FILE:,} records of {RECORD_BYTES:,}); "
            "get it again"
        )
    return read_records(path)


def _read_python_file(path: Path) -> Dataset:
    size = f"about {RECORDS_PER_FILE * RECORD_BYTES:,} bytes"
    expected = f"a pickle of {size}, with {RECORDS_PER_FILE:,} rows of {_PIXEL_BYTES:,} bytes and as many labels"
    with contextlib.suppress(OSError):
        if path.stat().st_size > 4 * RECORDS_PER_FILE * RECORD_BYTES:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes: expected {expected}; get it again")
    data = _read_bytes(path, expected)
    content = unpickle_arrays(data, path, expected)
    if not isinstance(content, dict) or not {b"data", b"labels"} <= content.keys():
        raise UserError(f"{path} ({len(data):,} bytes) has no data and labels: expected {expected}; get it again")
    planes, labels = content[b"data"], content[b"labels"]
    shape = (RECORDS_PER_FILE, _PIXEL_BYTES)
    if not isinstance(planes, np.ndarray) or planes.shape != shape:
        found = planes.shape if isinstance(planes, np.ndarray) else f"a {type(planes).__name__}"
        raise UserError(f"{path} ({len(data):,} bytes) has data {found}, expected {shape}; get it again")
    if not isinstance(labels, list) or len(labels) != RECORDS_PER_FILE or {type(label) for label in labels} != {int}:
        found = f"{len(labels):,} items" if isinstance(labels, list) else f"a {type(labels).__name__}"
        raise UserError(f"{path} has labels of {found}, expected a list of {RECORDS_PER_FILE:,} integers; get it again")
    return _to_dataset(planes, np.array(labels), path)


def find_layout(folder: Path) -> tuple[Path, str] | None:
    """The folder that holds the batches and their files' suffix: `folder` itself or one of its two known children.

    None when there is no batch in any. The binary version is taken where both are there.
    """
    for layout, suffix in _SUFFIX.items():
        for candidate in (folder / layout, folder):
            if any((candidate / (name + suffix)).is_file() for name in (*_TRAIN, _TEST)):
                return candidate, suffix
    return None


class _DownloadBar:
    """What pooch asks of a progress bar, drawn by rich on standard error: rate and time left."""

    def __init__(self):
        from rich import progress
        from rich.console import Console

        columns = (progress.BarColumn(), progress.DownloadColumn(), progress.TransferSpeedColumn())
        console = Console(stderr=True)
        self._console = console
        self._progress = progress.Progress("CIFAR-10", *columns, progress.TimeRemainingColumn(), console=console)
        self._task = self._progress.add_task("download", total=None)
        self._total = None

    @property
    def total(self):
        return self._total

    @total.setter
    def total(self, size):
        self._total = size
        self._progress.update(self._task, total=size)
        if self._console.file.isatty():
            self._progress.start()
        else:
            self._console.print(f"downloading {URL}, {size / 1e6:.0f} MB", soft_wrap=True, highlight=False)

    def update(self, size):
        self._progress.update(self._task, advance=size)

    def reset(self):
        self._progress.update(self._task, completed=0)  # pooch empties a finished bar and fills it again

    def close(self):
        if self._progress.live.is_started:
            self._progress.stop()


def _is_whole(folder: Path) -> bool:
    paths = [folder / f"{name}.bin" for name in (*_TRAIN, _TEST)]
    return all(p.is_file() and p.stat().st_size == RECORDS_PER_FILE * RECORD_BYTES for p in paths)


def _download(progress: bool) -> Path:
    """The unpacked folder in the user's cache; downloaded, verified and unpacked unless it is there whole."""
    import pooch

    cache = arguments.path("MINIRES_CACHE", os.environ.get("MINIRES_CACHE", "").strip() or pooch.os_cache("minires"))
    folder = cache / _BINARY
    if _is_whole(folder):
        return folder
    pooch.get_logger().setLevel("WARNING")  # its INFO lines would break the bar
    bar = _DownloadBar() if progress else False
    try:
        downloader = pooch.HTTPDownloader(progressbar=bar)
        archive = pooch.retrieve(URL, f"md5:{MD5}", Path(URL).name, cache, downloader=downloader)
        # Unpacked beside its place and moved there whole, so that an interrupted run leaves no half of a data set.
        with tempfile.TemporaryDirectory(dir=cache) as unpacked, tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
            shutil.rmtree(folder, ignore_errors=True)
            (Path(unpacked) / _BINARY).replace(folder)
    except (OSError, ValueError) as error:  # no network, no space; pooch's ValueError is a wrong checksum
        if _is_whole(folder):
            return folder  # another process was first
        reason = type(error).__name__ if isinstance(error, OSError) else f"its md5 is not {MD5}"
        raise UserError(
            f"CIFAR-10 could not be downloaded from {URL} to {cache} ({reason}): unpack that archive yourself and "
            "name its folder with --data-dir"
        ) from error
    finally:
        if bar:
            bar.close()
    return folder


def load_cifar10(data_dir=None, progress: bool = True) -> tuple[Dataset, Dataset]:
    """The 50,000 training and 10,000 test images: (train, test), images (N, 32, 32, 3) uint8.

    data_dir: a folder that holds `cifar-10-batches-bin/` or `cifar-10-batches-py/`, or is one of them. None downloads
    the binary version once (170 MB, checksum verified) into the user's cache, or into the folder named by the
    environment variable MINIRES_CACHE; progress shows a bar meanwhile.
    Raises UserError when the download fails, or naming the file that is missing, truncated, resized or mislabelled.
    """
    folder = _download(progress) if data_dir is None else arguments.path("data directory", data_dir)
    found = find_layout(folder)
    if found is None:
        reason = "holds no CIFAR-10" if folder.is_dir() else "is not a folder"
        raise UserError(f"data directory {folder} {reason}: expected it to hold {_BINARY}/ or {_PYTHON}/")
    batches, suffix = found
    read = _read_binary_file if suffix else _read_python_file
    parts = [read(batches / (name + suffix)) for name in _TRAIN]
    images, labels = np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts])
    return Dataset(images, labels, CLASSES), read(batches / (_TEST + suffix))
