"""A small network that learns CIFAR-10 quickly: whitened patches, three groups of two convolutions, a linear layer.

After Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", https://arxiv.org/abs/2404.00498 (airbench94).
"""
from minires.arguments import count, shown
from minires.errors import UserError
from minires.init import begin_as_identity, default_rng, uniform_fan_in, whitening
from minires.layer import Sequential
from minires.layers import GELU, BatchNorm2d, Conv2d, GlobalAvgPool2d, Linear, MaxPool2d, Scale

CHANNELS = (64, 256, 256)
LOGIT_SCALE = 1 / 9
WHITENING_IMAGES = 5000  # that a recipe whitens by


class ConvGroup(Sequential):
    """y = gelu(bn2(conv2(gelu(bn1(pool(conv1(x))))))

    x: (N, H, W, C); y: (N, H // 2, W // 2, O). Both convolutions are 3x3 with padding and without bias. The pooling stands
    before the normalisation, which then has a quarter of the numbers to normalise. Of the normalisations only the biases
    learn, and their running statistics follow fast.
    """

    def __init__(self, in_channels, out_channels, *, rng=None):
        rng = default_rng(rng)
        self.conv1 = _convolution(in_channels, out_channels, rng)
        self.pool = MaxPool2d(2)
        self.bn1, self.gelu1 = _norm(out_channels), GELU()
        self.conv2 = _convolution(out_channels, out_channels, rng)
        self.bn2, self.gelu2 = _norm(out_channels), GELU()


class Speedrun(Sequential):
    """logits = fc(pool(group3(group2(group1(gelu(whiten(x))))))) / 9

    x: (N, H, W, C), from 25 x 25 pixels on; y: (N, K). channels: of the three groups.
    `whiten_by` makes the first convolution, of 2x2 pixels, a fixed whitening of patches, whose bias alone learns; without it
    that convolution begins at random and learns. `begin_as_identity` is for the others.
    """

    def __init__(self, num_classes=10, channels=CHANNELS, *, in_channels=3, rng=None):
        rng, inside = default_rng(0 if rng is None else rng), 2 * 2 * 2 * count("in_channels", in_channels)
        self.whiten, self.gelu = Conv2d(in_channels, inside, 2, rng=rng), GELU()
        if not isinstance(channels, tuple | list) or len(channels) != 3:
            raise UserError(f"channels must be a number for each of the three groups, got {shown(channels)}")
        for stage, O in enumerate([count("each of channels", O) for O in channels], 1):
            setattr(self, f"group{stage}", ConvGroup(inside, O, rng=rng))
            inside = O
        self.maxpool, self.pool = MaxPool2d(3), GlobalAvgPool2d()  # at 32 x 32 pixels the latter has one pixel to average
        self.fc, self.scale = Linear(inside, num_classes, bias=False, rng=rng), Scale(1, LOGIT_SCALE)
        self.scale.weight.frozen = True

    def whiten_by(self, images):
        """Set the first convolution to the whitening of patches of `images`, (N, H, W, C), standardised, and freeze it."""
        if images.ndim != 4 or images.shape[3] != self.whiten.in_channels:
            raise UserError(f"images to whiten by have shape {images.shape}: expected (N, H, W, {self.whiten.in_channels})")
        self.whiten.weight.data[...] = whitening(images)
        self.whiten.bias.data.fill(0)
        self.whiten.weight.frozen = True
        return self

    def begin_as_identity(self):
        """Let the convolutions of the groups begin as the identity on as many channels as they are given."""
        for _, layer in self.named_layers():
            if isinstance(layer, ConvGroup):
                begin_as_identity(layer.conv1.weight.data)
                begin_as_identity(layer.conv2.weight.data)
        return self


def _convolution(C, O, rng):
    conv = Conv2d(C, O, 3, 1, 1, bias=False, rng=rng)
    conv.weight.data = uniform_fan_in((3, 3, C, O), 9 * C, rng)  # PyTorch's default, which the recipe's rates are for
    return conv


def _norm(channels):
    norm = BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    norm.weight.frozen = True  # at 1; `norm.frozen` would freeze the statistics
    return norm
