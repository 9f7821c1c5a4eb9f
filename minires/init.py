"""Initial weights, and the random numbers that they come from: a generator or a seed, passed in as `rng`."""
from contextlib import contextmanager

import numpy as np

from minires.arguments import integer, is_integer, shown
from minires.errors import UserError

_seeds = np.random.SeedSequence(0)  # of what is made without `rng`


def seed(number):
    """Start anew what layers made without `rng` draw: the same program after the same seed makes the same weights."""
    global _seeds
    _seeds = np.random.SeedSequence(integer("seed", number, 0))


@contextmanager
def seeded(number):
    """Inside, layers made without `rng` draw as after seed(number); afterwards what they drew before goes on."""
    global _seeds
    found = _seeds
    seed(number)
    try:
        yield
    finally:
        _seeds = found


def default_rng(rng=None):
    """The Generator that a layer's argument `rng` stands for: itself; of a seed, an int, a new one; without either one that
    nothing else draws from, so that two layers of one shape differ, and one that a program makes again at its next run."""
    if rng is None:
        return np.random.default_rng(_seeds.spawn(1)[0])
    if not isinstance(rng, np.random.Generator) and not (is_integer(rng) and rng >= 0):
        raise UserError(f"rng must be a numpy.random.Generator or a seed, an int of at least 0, got {shown(rng)}")
    return np.random.default_rng(rng)


def he_normal(shape, fan, rng, dtype=np.float32):
    """Zero-mean normal weights of variance 2 / fan: half of a ReLU's inputs pass, so the variance is kept.

    fan: the number of terms added up for one output (fan in) or one input gradient (fan out).
    Source: He et al. 2015, "Delving Deep into Rectifiers", section 2.2, https://arxiv.org/abs/1502.01852
    """
    return (rng.standard_normal(shape) * np.sqrt(2 / fan)).astype(dtype)


def uniform_fan_in(shape, fan_in, rng, dtype=np.float32):
    """Uniform in +-1 / sqrt(fan_in): PyTorch's default for a linear layer and for every bias."""
    bound = 1 / np.sqrt(fan_in)
    return rng.uniform(-bound, bound, shape).astype(dtype)
