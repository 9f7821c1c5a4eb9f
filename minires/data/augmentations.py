"""What may be done to training images, as a list: Loader(..., augment=[CropAndFlip(), Cutout(8), ColourJitter(0.2)]).

Each is a function of (images, rng), images: (N, H, W, C) uint8, that returns new images of the same shape and type; the list
is gone through in order, before the images are standardised. Any such function of your own will do. Each image has draws of
its own.
"""

from __future__ import annotations

import numpy as np

from minires.arguments import count, flag, integer, number, shown
from minires.data.augment import MOST_PADDING, augment_batch
from minires.errors import UserError
from minires.reprs import Shown


class CropAndFlip(Shown):
    """Shift by up to `padding` pixels each way and mirror every second image: `augment_batch`, what augment=True does.

    reflect: fill up with the mirrored image instead of black.
    """

    def __init__(self, padding: int = 4, flip: bool = True, reflect: bool = False):
        self.padding = integer("CropAndFlip's padding", padding, 0, MOST_PADDING)
        self.flip, self.reflect = flag("CropAndFlip's flip", flip), flag("CropAndFlip's reflect", reflect)

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return augment_batch(images, rng, self.padding, self.flip, self.reflect)


class AlternatingFlip(Shown):
    """Mirror a random half of the images in one epoch, the other half in the next, and so on.

    Two epochs in a row never show an image the same way round, where coins thrown anew would in half of the cases. Which
    half begins is a hash of an image's place in the data set and of `seed`; the rest is the epoch's number (`Loader.epoch`),
    so nothing is drawn. Source: Jordan 2024, section 3.6, https://arxiv.org/abs/2404.00498
    """

    def __init__(self, seed: int = 0):
        self.seed = integer("AlternatingFlip's seed", seed, 0, 2**63)

    def flip(self, images: np.ndarray, places: np.ndarray, epoch: int) -> np.ndarray:
        """images: (N, H, W, C), of these places in the data set -> the same, some mirrored."""
        mirrored = (self._first(places) + epoch) % 2 == 1
        return np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)

    def _first(self, places):
        """A bit for each place: the highest of the splitmix64 hash (Steele et al. 2014, figure 17)."""
        z = (places.astype(np.uint64) + np.uint64(self.seed + 1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z >> np.uint64(63)).astype(np.int64)


class Cutout(Shown):
    """Black out a square of `size` pixels a side around a pixel drawn anywhere, so that parts of it may lie outside.

    Source: DeVries & Taylor 2017, section 3, https://arxiv.org/abs/1708.04552
    """

    def __init__(self, size: int):
        self.size = count("Cutout's size", size)

    def __call__(self, images, rng):
        n, height, width, _ = images.shape
        top = rng.integers(0, height, n) - self.size // 2
        left = rng.integers(0, width, n) - self.size // 2
        return np.where(_rectangles(images, top, left, self.size, self.size), np.uint8(0), images)


class RandomErasing(Shown):
    """With probability p fill a rectangle, of a share of the image's area and a ratio of sides, with random pixels.

    area, ratio: the ends of what they are drawn from, area uniformly, ratio uniformly in its logarithm. A rectangle that
    would be larger than the image is cut to it. Source: Zhong et al. 2017, algorithm 1, https://arxiv.org/abs/1708.04896
    """

    def __init__(self, p: float = 0.5, area: tuple = (0.02, 0.33), ratio: tuple = (0.3, 3.3)):
        self.p = number("RandomErasing's p", p, 0, 1)
        self.area, self.ratio = _ends("RandomErasing's area", area, 1), _ends("RandomErasing's ratio", ratio, None)

    def __call__(self, images, rng):
        n, height, width, _ = images.shape
        pixels = rng.uniform(*self.area, n) * height * width
        ratio = np.exp(rng.uniform(*np.log(self.ratio), n))
        tall = np.clip(np.rint(np.sqrt(pixels * ratio)), 1, height).astype(int)
        wide = np.clip(np.rint(np.sqrt(pixels / ratio)), 1, width).astype(int)
        top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
        erased = _rectangles(images, top, left, tall, wide) & (rng.random(n) < self.p)[:, None, None, None]
        return np.where(erased, rng.integers(0, 256, images.shape, np.uint8), images)


class Noise(Shown):
    """Add normal noise to every pixel. std: of pixels in [0, 1]; results are rounded, and cut to what a byte holds."""

    def __init__(self, std: float):
        self.std = number("Noise's std", std, 0, 1)

    def __call__(self, images, rng):
        return _bytes(images + 255 * np.float32(self.std) * rng.standard_normal(images.shape, np.float32))


class ColourJitter(Shown):
    """Change brightness, contrast and saturation of each image by a factor drawn uniformly from 1 - value to 1 + value.

        brightness: f * x        contrast: g + f * (x - g), g the image's mean grey        saturation: the same, g each
        pixel's grey, 0.299 R + 0.587 G + 0.114 B        (torchvision's formulas, in this order)

    Images of one channel have no saturation.
    """

    def __init__(self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0):
        self.brightness, self.contrast, self.saturation = (number(f"ColourJitter's {name}", value, 0, 1) for name, value in (
            ("brightness", brightness), ("contrast", contrast), ("saturation", saturation)))

    def __call__(self, images, rng):
        brightness, contrast, saturation = (
            rng.uniform(1 - value, 1 + value, (len(images), 1, 1, 1)).astype(np.float32)
            for value in (self.brightness, self.contrast, self.saturation))
        x = np.clip(images * brightness, 0, 255)
        grey = _grey(x).mean((1, 2), keepdims=True)
        x = np.clip(grey + contrast * (x - grey), 0, 255)
        if images.shape[3] == 3:
            grey = _grey(x)
            x = grey + saturation * (x - grey)
        return _bytes(x)


class MixUp(Shown):
    """Train on weighted means of pairs of images, against the same means of their labels.

        x = w * x + (1 - w) * x[partner]        target = w * one_hot + (1 - w) * one_hot[partner]: (N, K) shares

    w is drawn from Beta(alpha, alpha) for each batch, partners are a permutation of it. It acts on standardised images,
    after the other augmentations of the list. Source: Zhang et al. 2018, section 2, https://arxiv.org/abs/1710.09412
    """

    def __init__(self, alpha: float = 0.2):
        self.alpha = number("MixUp's alpha", alpha, above=0)

    def mix(self, x: np.ndarray, target: np.ndarray, classes: int, rng: np.random.Generator):
        """x: (N, H, W, C), target: (N,) integers -> x, and shares (N, classes) of x's dtype."""
        w, partner = x.dtype.type(rng.beta(self.alpha, self.alpha)), rng.permutation(len(x))
        one_hot = np.eye(classes, dtype=x.dtype)[target]
        return w * x + (1 - w) * x[partner], w * one_hot + (1 - w) * one_hot[partner]


def _grey(x):
    if x.shape[3] != 3:
        return x.mean(3, keepdims=True)
    return (x @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]


def _bytes(x):
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def _rectangles(images, top, left, tall, wide):
    """Which pixels lie in each image's rectangle: (N, H, W, 1) bool."""
    def inside(start, size, length):
        places = np.arange(length)
        start, size = np.asarray(start)[:, None], np.broadcast_to(size, len(images))[:, None]
        return (places >= start) & (places < start + size)

    return (inside(top, tall, images.shape[1])[:, :, None] & inside(left, wide, images.shape[2])[:, None])[..., None]


def _ends(name, value, most):
    """The ends of a range above 0."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise UserError(f"{name} must be two numbers, the smaller first, got {shown(value)}")
    low, high = (number(f"each of {name}", end, most=most, above=0) for end in value)
    if low > high:
        raise UserError(f"{name} must be two numbers, the smaller first, got {shown(value)}")
    return low, high
