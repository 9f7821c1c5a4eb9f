"""Networks that the plan is held against, beyond the built-in ones: blocks of one's own, and what cannot be planned."""
import numpy as np

from minires.backends import ops_for
from minires.layer import Layer, Sequential
from minires.layers import (
    AvgPool2d,
    BasicBlock,
    BatchNorm2d,
    Bottleneck,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    LayerNorm,
    Linear,
    MaxPool2d,
    PlainBlock,
    ReLU,
    Residual,
)


class Scaled(Layer):
    """y = 0.5 * x + 1, in NumPy's arithmetic."""

    def forward(self, x):
        self._save()
        return 0.5 * x + 1

    def backward(self, dy):
        self._saved()
        return dy * 0.5


class Centred(Layer):
    """y = x - mean(x) of the whole batch: a method of the array, which no tracing knows."""

    def forward(self, x):
        self._save()
        return x - x.mean()

    def backward(self, dy):
        self._saved()
        return dy - dy.mean()


class CentredBackward(Layer):
    """Centred, whose forward alone is written so that it can be traced."""

    def forward(self, x):
        self._save()
        return x * x.dtype.type(1)

    def backward(self, dy):
        self._saved()
        return dy * (dy.sum() * 0 + 1)


class Counting(Layer):
    """The identity; counts how often it was asked."""

    def __init__(self):
        self.count = 0

    def forward(self, x):
        self.count += 1
        self._save()
        return ops_for(x).relu_forward(x)

    def backward(self, dy):
        self._saved()
        return dy


def conv(C, O, rng, stride=1, kernel=3, bias=False):
    return Conv2d(C, O, kernel, stride, kernel // 2, bias=bias, rng=rng)


def preactivation(C, rng):
    return Residual(Sequential(BatchNorm2d(C), ReLU(), conv(C, C, rng), BatchNorm2d(C), ReLU(), conv(C, C, rng)))


def unnormalised(C, rng):
    return Sequential(Residual(Sequential(conv(C, C, rng, bias=True), ReLU(), conv(C, C, rng, bias=True))), ReLU())


def own_basic(C, rng):
    return Sequential(Residual(Sequential(conv(C, C, rng), BatchNorm2d(C), ReLU(), conv(C, C, rng), BatchNorm2d(C))), ReLU())


def classifier(C, rng, *layers):
    """The layers between a stem of C channels and a linear one, for images of three channels and ten classes."""
    return Sequential(conv(3, C, rng), BatchNorm2d(C), ReLU(), *layers, GlobalAvgPool2d(), Linear(C, 10, rng=rng))


NETWORKS = {
    "basic": lambda r: classifier(8, r, BasicBlock(8, 8, rng=r), BasicBlock(8, 8, rng=r)),
    "shortcut A": lambda r: Sequential(conv(3, 8, r), BasicBlock(8, 16, 2, "A", rng=r), BasicBlock(16, 16, rng=r),
                                       GlobalAvgPool2d(), Linear(16, 10, rng=r)),
    "shortcut B": lambda r: Sequential(conv(3, 8, r), BasicBlock(8, 16, 2, "B", rng=r), BasicBlock(16, 24, 2, "B", rng=r),
                                       GlobalAvgPool2d(), Linear(24, 10, rng=r)),
    "odd channels": lambda r: classifier(7, r, BasicBlock(7, 7, rng=r), BasicBlock(7, 7, rng=r)),
    "bottleneck": lambda r: Sequential(conv(3, 8, r), Bottleneck(8, 4, 2, rng=r), Bottleneck(16, 4, rng=r),
                                       GlobalAvgPool2d(), Linear(16, 10, rng=r)),
    "plain": lambda r: classifier(8, r, PlainBlock(8, 8, rng=r), PlainBlock(8, 8, rng=r)),
    "pre-activation": lambda r: classifier(8, r, preactivation(8, r), preactivation(8, r), BatchNorm2d(8), ReLU()),
    "without normalisation": lambda r: classifier(8, r, unnormalised(8, r), unnormalised(8, r)),
    "a block of one's own": lambda r: classifier(8, r, own_basic(8, r), own_basic(8, r)),
    "dropout in a block": lambda r: classifier(8, r, Residual(Sequential(
        conv(8, 8, r), BatchNorm2d(8), ReLU(), Dropout(0.3, rng=np.random.default_rng(5)), conv(8, 8, r), BatchNorm2d(8))),
        ReLU()),
    "pools": lambda r: Sequential(conv(3, 8, r, bias=True), ReLU(), MaxPool2d(3, 2, 1), conv(8, 8, r), AvgPool2d(2),
                                  LayerNorm(8), Flatten(), Linear(8 * 16, 10, rng=r)),
    "NumPy's arithmetic": lambda r: classifier(8, r, Scaled(), own_basic(8, r), Scaled()),
    "an opaque layer": lambda r: classifier(8, r, own_basic(8, r), Centred(), own_basic(8, r)),
    "an opaque backward": lambda r: classifier(8, r, own_basic(8, r), CentredBackward(), own_basic(8, r)),
    "a layer that counts": lambda r: classifier(8, r, own_basic(8, r), Counting(), own_basic(8, r)),
    "one convolution twice": lambda r: classifier(8, r, conv(8, 8, r), conv(8, 8, r)),
    "dilation": lambda r: classifier(8, r, Conv2d(8, 8, 3, padding=2, dilation=2, bias=False, rng=r), BatchNorm2d(8),
                                     ReLU()),
    "no parameters": lambda r: Sequential(AvgPool2d(8), Flatten()),
}
