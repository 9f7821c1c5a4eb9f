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


def begin_as_identity(weight):
    """Change a convolution's weight, in place, so that output c is input c, while there are any; the others stay.

    weight: (KH, KW, C, O), odd KH and KW; output c < min(C, O) gets a one in the middle of channel c and zeros elsewhere, so
    that a stack of such convolutions begins as the identity (called dirac initialisation: Zagoruyko & Komodakis 2017,
    https://arxiv.org/abs/1706.00388). Source: Jordan 2024, section 3.2, https://arxiv.org/abs/2404.00498
    """
    KH, KW, C, O = weight.shape
    same = np.arange(min(C, O))
    weight[..., same] = 0
    weight[KH // 2, KW // 2, same, same] = 1


def whitening(images, kernel_size=2, eps=5e-4):
    """Filters whose responses to patches of `images` are uncorrelated and of equal size, each with its negative.

    images: (N, H, W, C), standardised; weight: (KH, KW, C, 2 * KH * KW * C), KH = KW = kernel_size.

    Let p be a patch as a vector and S = mean(p p^T) = sum over i of l_i e_i e_i^T. The filters are e_i / sqrt(l_i + eps) and
    their negatives, so that responses z_i = <e_i, p> / sqrt(l_i + eps) have mean(z_i z_j) = l_i / (l_i + eps) for i = j,
    about 1, and 0 elsewhere. eps keeps directions that hardly occur from being blown up into noise.
    Source: Jordan 2024, section 3.1, https://arxiv.org/abs/2404.00498; Page 2019, "How to train your ResNet 8"
    """
    C, size = images.shape[3], kernel_size * kernel_size * images.shape[3]
    moments, count = np.zeros((size, size)), 0
    for start in range(0, len(images), 256):  # the patches of all images at once would be four times their memory
        windows = np.lib.stride_tricks.sliding_window_view(images[start:start + 256], (kernel_size, kernel_size), (1, 2))
        patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size).astype(np.float64)
        moments += patches.T @ patches
        count += len(patches)
    values, vectors = np.linalg.eigh(moments / count)
    filters = (vectors / np.sqrt(values + eps)).reshape(kernel_size, kernel_size, C, size)
    return np.concatenate([filters, -filters], axis=3).astype(np.float32)
