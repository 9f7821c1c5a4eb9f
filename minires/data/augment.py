"""From bytes to what a network is fed: random crop and flip, then per-channel standardisation.

Order, as in He et al. 2015 (section 4.2) and torchvision's pipelines: a raw image is padded with zeros, which is
black, then cropped and flipped, and standardised last. Black becomes -mean / std, not 0.
"""

from __future__ import annotations

import numpy as np

from minires.arguments import flag, integer, shown
from minires.errors import UserError
from minires.init import default_rng

MOST_PADDING = 1_000
_CHUNK = 1_000  # images whose squares are held at a time


def kind_of(value) -> str:
    """An array's dtype and shape, or what else a value is."""
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else shown(value)


def require_images(images):
    """UserError for anything but (N, H, W, C) bytes."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4:
        raise UserError(f"images are {kind_of(images)}: expected uint8 (N, H, W, C)")


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and (population) standard deviation of each channel, of pixels scaled to [0, 1].

    images: (N, H, W, C) uint8;  mean, std: (C,) float32. The sums are exact, in integers. Take them from the training
    images, and standardise training and test images alike with them.
    Raises UserError for no images, or a channel that is the same everywhere (it cannot be standardised).
    """
    require_images(images)
    n, height, width, channels = images.shape
    if images.size == 0:
        raise UserError(f"images of shape {images.shape} have no pixels: expected at least one, to take a mean of")
    total, squares = np.zeros((2, width * channels), np.uint64)
    for start in range(0, n, _CHUNK):
        rows = images[start : start + _CHUNK].reshape(-1, width * channels)
        total += rows.sum(axis=0, dtype=np.uint64)
        squares += np.square(rows, dtype=np.uint16).sum(axis=0, dtype=np.uint64)
    count = n * height * width
    mean = total.reshape(width, channels).sum(axis=0) / count
    variance = squares.reshape(width, channels).sum(axis=0) / count - mean * mean
    if variance.min() <= 0:
        raise UserError(f"channel {variance.argmin()} of the images has one value everywhere: expected it to vary")
    return (mean / 255).astype(np.float32), (np.sqrt(variance) / 255).astype(np.float32)


class Standardise:
    """y = (x / 255 - mean) / std, for each channel.

    x: (N, H, W, C) uint8;  y: (N, H, W, C) `dtype`;  mean, std: (C,), of pixels in [0, 1].
    A byte has 256 values, so y is looked up in `table`, (C, 256): computed once in float64, rounded once.
    Raises UserError for statistics of different lengths, or a std that is not above 0.
    """

    def __init__(self, mean, std, dtype=np.float32):
        try:
            mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"mean {shown(mean)} and std {shown(std)}: expected one number per channel, (C,)") from error
        if not isinstance(dtype, str | type | np.dtype) or dtype not in (np.float32, np.float64, "float32", "float64"):
            raise UserError(f"dtype must be float32 or float64, got {shown(dtype)}")
        if mean.ndim != 1 or mean.shape != std.shape:
            raise UserError(f"mean {mean.shape} and std {std.shape} do not match: expected one number per channel, (C,)")
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
            raise UserError(f"mean {mean.tolist()} and std {std.tolist()}: expected finite numbers, std above 0")
        if mean.min(initial=0) < 0 or mean.max(initial=0) > 1 or std.max(initial=0) > 1:
            raise UserError(f"mean {mean.tolist()} and std {std.tolist()} are not of pixels in [0, 1]: divide them by 255")
        self.table = ((np.arange(256)[:, None] / 255 - mean) / std).astype(dtype).T.copy()  # (C, 256)

    @property
    def channels(self) -> int:
        return len(self.table)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or not x.ndim or x.shape[-1] != self.channels:
            raise UserError(f"images are {kind_of(x)}: expected uint8 (N, H, W, {self.channels})")
        y = np.empty(x.shape, self.table.dtype)
        for channel, table in enumerate(self.table):
            y[..., channel] = table.take(x[..., channel])  # a third faster than table[x]
        return y


def draw_crops(n: int, rng: np.random.Generator, padding: int = 4, flip: bool = True) -> tuple[np.ndarray, ...]:
    """What `augment_batch` does to n images: top, left: (n,) integers, 0 to 2 * padding; mirrored: (n,) bool."""
    top, left = rng.integers(0, 2 * padding + 1, (2, n))
    return top, left, rng.random(n) < 0.5 if flip else np.zeros(n, bool)


def augment_batch(images: np.ndarray, rng: np.random.Generator, padding: int = 4, flip: bool = True,
                  reflect: bool = False) -> np.ndarray:
    """Shift each image by up to `padding` pixels each way (black comes in), and mirror every second one on average.

    images, y: (N, H, W, C) uint8. Crop the zero-padded (H + 2 * padding, W + 2 * padding) image back to (H, W) at a
    corner drawn uniformly; flip left to right with probability 1/2. reflect: what comes in is the image itself, mirrored at
    its edge (NumPy's mode "reflect"). Raises UserError for a negative padding, and to reflect more pixels than there are.
    """
    require_images(images)
    padding, flip, rng = integer("padding", padding, 0, MOST_PADDING), flag("flip", flip), default_rng(rng)
    n, height, width, channels = images.shape
    top, left, mirrored = draw_crops(n, rng, padding, flip)

    if flag("reflect", reflect):
        if padding >= min(height, width):
            raise UserError(f"padding {padding} cannot be reflected from images of {height} x {width} pixels: choose a "
                            "smaller one")
        padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode="reflect")
    else:
        padded = np.zeros((n, height + 2 * padding, width + 2 * padding, channels), images.dtype)
        padded[:, padding : padding + height, padding : padding + width] = images
    # corners[n, t, l] is the crop with its corner at (t, l): a view of rows of W * C bytes, so that the gather below
    # copies whole rows instead of single pixels.
    image, row, pixel, byte = padded.strides
    corners = np.lib.stride_tricks.as_strided(
        padded,
        shape=(n, 2 * padding + 1, 2 * padding + 1, height, width * channels),
        strides=(image, row, pixel, row, byte),
        writeable=False,
    )
    y = corners[np.arange(n), top, left].reshape(images.shape)
    y[mirrored] = y[mirrored, :, ::-1]
    return y
