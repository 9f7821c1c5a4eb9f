"""Shapes: a generated data set that needs no download, the default of `minires train`.

Ten kinds of drawn shape in random colour, size, place, rotation and stretch, over textured backgrounds with
strokes and dots that distract, under noise. The shape may be darker or lighter than what lies behind it, and no
pixel's colour tells the class: of the test set, multinomial logistic regression on the pixels gets 12 % right, and a
ResNet-20 98 % after 500 steps.

A shape is a function of the plane that is negative inside, zero on the outline and grows like the distance to it
there, so `0.5 - distance` in pixels, clipped to 0..1, is the coverage of a pixel: an anti-aliased mask in one line
(https://iquilezles.org/articles/distfunctions2d). Pixels are computed with + - * / sqrt and comparisons alone, which
IEEE 754 rounds in one way, whatever the processor's vector unit.
"""

from __future__ import annotations

import numpy as np

from minires.arguments import is_integer, shown
from minires.data.dataset import Dataset
from minires.errors import UserError

TRAIN_SIZE, TEST_SIZE = 8_000, 2_000
MOST, MOST_SIDE = 1_000_000, 512  # pictures, and pixels a side
_CHUNK = 200  # images drawn at a time: the working arrays stay in cache


def _radius(u, v):
    return np.sqrt(u * u + v * v)


def _box(u, v, half_width, half_height):
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


def _triangle(u, v):
    return np.maximum(-v - 0.55, 0.8660254 * np.abs(u) + 0.5 * v - 0.55)  # three edges, 0.55 from the centre


def _star(u, v):
    # Two mirrors at 36 degrees fold the ten half-tips of a five-pointed star onto one, whose edge is a half-plane.
    cos36, sin36 = np.float32(0.809017), np.float32(0.5877853)
    u = np.abs(u)
    for mirror_u in (cos36, -cos36):
        beyond = np.maximum(mirror_u * u - sin36 * v, 0)
        u, v = u - 2 * beyond * mirror_u, v + 2 * beyond * sin36
    u = np.abs(u)
    inner_u, inner_v = 0.46 * sin36, 0.46 * cos36  # the notch, 0.46 from the centre; the tip is at (0, 1.15)
    edge_u, edge_v = 1.15 - inner_v, inner_u
    return (u * edge_u + (v - 1.15) * edge_v) / np.sqrt(edge_u * edge_u + edge_v * edge_v)


def _cross(u, v):
    return np.minimum(_box(u, v, 1.0, 0.32), _box(u, v, 0.32, 1.0))


def _crescent(u, v):
    return np.maximum(_radius(u + 0.15, v) - 1.0, 0.82 - _radius(u - 0.35, v))


def _heart(u, v):
    u, v = np.abs(u), v + 0.1  # a square on its corner, and a disc on each of its two upper edges
    return np.minimum((u + np.abs(v)) * 0.70710678 - 0.62, _radius(u - 0.4384, v - 0.4384) - 0.62)


def _arrow(u, v):
    head = np.maximum(0.05 - v, 0.70710678 * (np.abs(u) + v - 1.0))
    return np.minimum(head, _box(u, v + 0.45, 0.28, 0.6))


SHAPES = {
    "circle": lambda u, v: _radius(u, v) - 0.9,
    "square": lambda u, v: _box(u, v, 0.8, 0.8),
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": lambda u, v: np.abs(_radius(u, v) - 0.78) - 0.22,
    "crescent": _crescent,
    "heart": _heart,
    "arrow": _arrow,
    "half disc": lambda u, v: np.maximum(_radius(u, v + 0.4) - 1.0, -v - 0.4),
}


def _coverage(distance):
    """The part of each pixel that lies inside, from the distance to the outline in pixels."""
    return np.clip(0.5 - distance, 0, 1)


def _column(rng, low, high, n):
    """n uniform numbers that broadcast over the pixels of n images: (n, 1, 1)."""
    return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)


def _direction(rng, n):
    angle = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def _texture(rng, x, y, n, scale):
    """Two crossing sets of soft or hard stripes, of any width and direction, in 0..1: (n, H, W)."""
    waves = []
    for _ in range(2):
        cos, sin = _direction(rng, n)
        cycles = _column(rng, 0.02, 0.16, n) / scale  # a pixel
        phase = (cos * x + sin * y) * cycles + _column(rng, 0, 1, n)
        wave = np.abs(phase - np.floor(phase) - 0.5) * 2
        waves.append(np.clip((wave - 0.5) * _column(rng, 0.6, 3.0, n) + 0.5, 0, 1))
    blend = _column(rng, 0, 1, n)
    return waves[0] + (waves[1] - waves[0]) * blend


def _paint(image, mask, colour):
    image += mask[..., None] * (colour - image)


def _colours(rng, n):
    """Two colours of the background and one of the shape, the farthest of four drawn: each (n, 1, 1, 3)."""
    first, second = rng.uniform(0.05, 0.95, (2, n, 1, 1, 3)).astype(np.float32)
    second = first + (second - first) * 0.6  # or the stripes alone would outshine the shape
    candidates = rng.uniform(0.0, 1.0, (4, n, 1, 1, 3)).astype(np.float32)
    nearest = np.minimum(((candidates - first) ** 2).sum(-1), ((candidates - second) ** 2).sum(-1))
    return first, second, candidates[nearest.argmax(0)[:, 0, 0], np.arange(n)]


def _draw(rng, labels, size):
    """Pictures of the shapes in `labels`: (n, size, size, 3) uint8."""
    n, scale = len(labels), size / 32
    y, x = np.mgrid[:size, :size].astype(np.float32)
    first, second, colour = _colours(rng, n)
    image = first + _texture(rng, x, y, n, scale)[..., None] * (second - first)

    for half_length in (_column(rng, 2, 7, n) * scale, _column(rng, 0, 3, n) * scale, np.float32(0)):  # strokes, a dot
        cos, sin = _direction(rng, n)
        u, v = x - _column(rng, 0, size - 1, n), y - _column(rng, 0, size - 1, n)
        along, across = cos * u + sin * v, cos * v - sin * u
        beyond = np.maximum(np.abs(along) - half_length, 0)
        mask = _coverage(_radius(beyond, across) - _column(rng, 0.4, 1.4, n) * scale)
        _paint(image, mask, rng.uniform(0, 1, (n, 1, 1, 3)).astype(np.float32))

    radius = _column(rng, 6.0, 11.5, n) * scale
    reach = size / 2 - radius - 0.5
    u = x - (size - 1) / 2 - reach * _column(rng, -1, 1, n)
    v = y - (size - 1) / 2 - reach * _column(rng, -1, 1, n)
    cos, sin = _direction(rng, n)
    stretch = _column(rng, 0.88, 1.0, n)
    u, v = (cos * u + sin * v) / radius, (cos * v - sin * u) / (radius * stretch)
    mask = np.empty((n, size, size), np.float32)
    for index, shape in enumerate(SHAPES.values()):
        chosen = labels == index
        mask[chosen] = _coverage(shape(u[chosen], v[chosen]) * radius[chosen])
    shading = (u * _column(rng, -0.12, 0.12, n) + v * _column(rng, -0.12, 0.12, n))[..., None]
    _paint(image, mask, colour + shading)

    image += rng.standard_normal(image.shape, dtype=np.float32) * _column(rng, 0.01, 0.10, n)[..., None]
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def make_shapes(count: int, seed: int | np.random.SeedSequence, size: int = 32) -> Dataset:
    """`count` pictures of the ten shapes, as many of each as can be, in random order.

    images: (count, size, size, 3) uint8; the same bits for the same count, seed and size.
    Raises UserError for a negative count or seed, or a size under 16 pixels, where the shapes no longer differ.
    """
    if not is_integer(count) or not is_integer(size) or not (isinstance(seed, np.random.SeedSequence) or is_integer(seed)):
        raise UserError(f"count, seed and size must be ints, got {shown(count)}, {shown(seed)} and {shown(size)}")
    if not count <= MOST or not size <= MOST_SIDE:
        raise UserError(f"{count} shapes of {size} pixels are too many: expected at most {MOST:,} of {MOST_SIDE}")
    if count < 0:
        raise UserError(f"{count} shapes cannot be made: expected a count of 0 or more")
    if size < 16:
        raise UserError(f"shapes of {size} pixels cannot be told apart: expected a size of 16 or more")
    if not isinstance(seed, np.random.SeedSequence) and seed < 0:
        raise UserError(f"seed {seed} is negative: expected 0 or more")
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % len(SHAPES)).astype(np.int64)
    images = np.empty((count, size, size, 3), np.uint8)
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        images[part] = _draw(rng, labels[part], size)
    return Dataset(images, labels, tuple(SHAPES))


def load_shapes(seed: int = 0) -> tuple[Dataset, Dataset]:
    """The training set (8,000) and test set (2,000) of `seed`, drawn from two independent random streams.

    images: (N, 32, 32, 3) uint8. Raises UserError for a negative seed.
    """
    if seed < 0:
        raise UserError(f"seed {seed} is negative: expected 0 or more")
    train, test = np.random.SeedSequence(seed).spawn(2)
    return make_shapes(TRAIN_SIZE, train), make_shapes(TEST_SIZE, test)
