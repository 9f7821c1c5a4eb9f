"""Initial weights. All randomness comes from the generator passed in."""
import numpy as np


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
