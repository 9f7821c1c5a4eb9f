"""Normalisation: over the batch, over the channels of one pixel, and over groups of channels of one image."""
import math

import numpy as np

from minires.arguments import choice, count, number
from minires.backends import ops_for
from minires.errors import UserError
from minires.layer import Layer, Parameter, in_inference_mode


class BatchNorm2d(Layer):
    """Normalise each channel over batch and space, then scale and shift it.

    x, y: (N, H, W, C); weight, bias, running_mean, running_var: (C,)

        x_hat = (x - mean) / sqrt(var + eps)          y = weight * x_hat + bias        (the paper's gamma and beta)

    Training takes mean and var (divided by m = N*H*W) from the batch and lets the running statistics follow,
    running = (1 - momentum) * running + momentum * batch, the running variance from the unbiased one (m / (m - 1)),
    as PyTorch does. Evaluation takes the running statistics and changes nothing.

    Backward, evaluation: y is affine in x, so dx = weight / sqrt(var + eps) * dy.
    Backward, training: mean and var depend on every x of the channel. With s = 1 / sqrt(var + eps), x_hat = s (x - mean):

        δmean  = sum(δx) / m
        δvar   = 2 sum((x - mean) * (δx - δmean)) / m = 2 sum((x - mean) * δx) / m      δmean drops out: sum(x - mean) = 0
        δs     = -s^3 δvar / 2 = -s^2 sum(x_hat * δx) / m
        δx_hat = s (δx - δmean) + (x - mean) δs
               = s (δx - sum(δx) / m - x_hat sum(x_hat * δx) / m)

    That is δx_hat = J δx with the m x m matrix (1 the vector of ones, x_hat as a vector)

        J = s (I - 1 1^T / m - x_hat x_hat^T / m)

    Each of its three terms is its own transpose, so J^T = J and dx = J (weight * dy). The two sums are dbias and dweight:

        dbias = sum(dy)      dweight = sum(dy * x_hat)
        dx = weight * s * (dy - dbias / m - x_hat * dweight / m)

    In the bracket stands a projection (up to eps): dy without its mean and without its part along x_hat. To shift or to
    stretch all x of a channel changes no y, so no gradient may point there.

    Source: Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167
    UserError when a training batch has one value per channel: its variance is zero and says nothing.

    `frozen = True` takes the running statistics in training too, and leaves them as they are (fine-tuning on small batches).
    """

    buffers = ("running_mean", "running_var")
    frozen = False

    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        self.num_features = count("num_features", num_features)
        self.eps, self.momentum = number("eps", eps, above=0), number("momentum", momentum, 0, 1)
        self.weight = Parameter(np.ones(num_features, np.float32), decays=False)
        self.bias = Parameter(np.zeros(num_features, np.float32), decays=False)
        self.running_mean = np.zeros(num_features, np.float32)
        self.running_var = np.ones(num_features, np.float32)

    def forward(self, x):
        self._require(x, ("N", "H", "W", self.num_features))
        if self.batch_statistics:
            m = self.values_per_channel(x)
            y, mean, var = ops_for(x).batchnorm_forward(x, self.weight.data, self.bias.data, self.eps)
            self.update_running(mean, var, m)
        else:
            mean, var = self.running_mean, self.running_var
            y = ops_for(x).batchnorm_apply(x, mean, var, self.weight.data, self.bias.data, self.eps)
        self._save(x, mean, var, self.batch_statistics)
        return y

    def backward(self, dy):
        x, mean, var, batch_statistics = self._saved()
        dx, dweight, dbias = ops_for(dy).batchnorm_backward(dy, x, mean, var, self.weight.data, self.eps,
                                                            batch_statistics)
        self.weight.accumulate(dweight)
        self.bias.accumulate(dbias)
        return dx

    @property
    def batch_statistics(self):
        """Whether mean and variance are the batch's own: in training, unless frozen."""
        return self.training and not self.frozen

    def values_per_channel(self, x):
        """m = N*H*W of x; UserError for a training batch with a single value per channel."""
        m = x.size // x.shape[-1]
        if self.batch_statistics and m < 2:
            raise UserError(f"BatchNorm2d in training needs more than one value per channel, got x of shape {x.shape}: "
                            "use a larger batch or feature map, or eval()")
        return m

    def update_running(self, mean, var, m):
        """Let the running statistics follow a batch of m values per channel, unless in inference_mode."""
        if in_inference_mode():
            return
        ops_for(mean).update_running(self.running_mean, self.running_var, mean, var, self.momentum, m)


class LayerNorm(Layer):
    """Normalise the C channels of each pixel (or row), then scale and shift them.

    x, y: (..., C); weight, bias: (C,)

        x_hat = (x - mean) / sqrt(var + eps), mean and var over the C channels      y = weight * x_hat + bias

    Backward. As in batch normalisation dx = J g, g = weight * dy the gradient of x_hat, with the sums over C; the weight
    stays inside them, since it varies along the axis that is normalised:

        dweight = sum(dy * x_hat)    dbias = sum(dy)    (over all but C)
        dx = (g - mean(g) - x_hat * mean(g * x_hat)) / sqrt(var + eps)

    Source: Ba et al. 2016, https://arxiv.org/abs/1607.06450
    """

    def __init__(self, num_features, eps=1e-5):
        self.num_features, self.eps = count("num_features", num_features), number("eps", eps, above=0)
        self.weight = Parameter(np.ones(num_features, np.float32), decays=False)
        self.bias = Parameter(np.zeros(num_features, np.float32), decays=False)

    def forward(self, x):
        self._require(x, (..., self.num_features))
        y, mean, var = ops_for(x).layernorm_forward(x, self.weight.data, self.bias.data, self.eps)
        self._save(x, mean, var)
        return y

    def backward(self, dy):
        x, mean, var = self._saved()
        dx, dweight, dbias = ops_for(dy).layernorm_backward(dy, x, mean, var, self.weight.data, self.eps)
        self.weight.accumulate(dweight)
        self.bias.accumulate(dbias)
        return dx


class GroupNorm(Layer):
    """Normalise each group of channels of one image over the group and space, then scale and shift each channel.

    x, y: (N, H, W, C); weight, bias: (C,); group g holds the channels g * C / groups to (g + 1) * C / groups - 1

        x_hat = (x - mean) / sqrt(var + eps), mean and var over the m = H * W * C / groups values of a group of one image
        y = weight * x_hat + bias

    Nothing depends on the batch, so training and evaluation compute the same. groups = 1 is layer normalisation over a whole
    image, groups = C instance normalisation.

    Backward. As in layer normalisation, with g = weight * dy and the means over a group of one image:

        dweight = sum(dy * x_hat)    dbias = sum(dy)    (over all but C)
        dx = (g - mean(g) - x_hat * mean(g * x_hat)) / sqrt(var + eps)

    Source: Wu & He 2018, https://arxiv.org/abs/1803.08494
    UserError unless groups divides num_channels. Arguments are in PyTorch's order.
    """

    def __init__(self, num_groups, num_channels, eps=1e-5):
        self.num_groups, self.num_channels = count("num_groups", num_groups), count("num_channels", num_channels)
        self.eps = number("eps", eps, above=0)
        if num_channels % num_groups:
            raise UserError(f"GroupNorm's num_groups must divide its {num_channels} channels, got {num_groups}")
        self.weight = Parameter(np.ones(num_channels, np.float32), decays=False)
        self.bias = Parameter(np.zeros(num_channels, np.float32), decays=False)

    def forward(self, x):
        self._require(x, ("N", "H", "W", self.num_channels))
        y, mean, var = ops_for(x).groupnorm_forward(x, self.weight.data, self.bias.data, self.num_groups, self.eps)
        self._save(x, mean, var)
        return y

    def backward(self, dy):
        x, mean, var = self._saved()
        dx, dweight, dbias = ops_for(dy).groupnorm_backward(dy, x, mean, var, self.weight.data, self.eps)
        self.weight.accumulate(dweight)
        self.bias.accumulate(dbias)
        return dx


NORMS = ("batch", "layer", "group")
CHANNELS_OF_A_GROUP = 16  # Wu & He 2018, table 3: as good as their 32 groups, and fit for narrow networks


def make_norm(kind, channels):
    """The normalisation of some channels: "batch", "layer" or "group" (16 channels a group, or what divides)."""
    if choice("norm", kind, NORMS) == "batch":
        return BatchNorm2d(channels)
    if kind == "layer":
        return LayerNorm(channels)
    return GroupNorm(math.gcd(channels, max(1, channels // CHANNELS_OF_A_GROUP)), channels)
