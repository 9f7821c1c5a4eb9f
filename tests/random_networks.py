"""Networks that nobody chose: layers of every kind, of odd sizes, one after another, each fitting the one before.

    @random_networks.examples(25)
    @given(network=random_networks.networks())
    def test(network): ...

A Network is a description, which is what a failing test prints; `build` makes its layers. What is drawn are booleans
alone: into integers Hypothesis mixes constants of whatever modules are loaded, and a test's networks should be the same in
every run.
MINIRES_EXAMPLES=1000 asks for more of them than the suite has time for, and for a failing one to be made as small as it can
be, which may take minutes: without it the first that fails is what is told.
"""
import os
from typing import NamedTuple

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from minires import layers, models
from minires.arguments import pair
from minires.backends.reference import output_size
from minires.layer import Sequential
from minires.models.blocks import BLOCKS
from minires.study import randomise_parameters

WIDTHS = (4, 8, 3, 16, 5, 1, 17)  # channels: what vectors divide, in one dtype or both, and what they do not
FEWEST = 8  # values a channel of a batch normalisation in training, with fewer of which it amplifies rounding


class Network(NamedTuple):
    """`layers`: (class, arguments), of a Sequential the layers in it; `shape`: of x; and its modes."""

    layers: tuple
    shape: tuple
    training: bool = True

    def build(self, dtype=np.float64, seed=0):
        """The network with random weights."""
        model = Sequential(*map(_layer, self.layers)).astype(dtype)
        return randomise_parameters(model.train(self.training), np.random.default_rng(seed))


def examples(count):
    """Settings for a test of `count` random networks."""
    asked = os.environ.get("MINIRES_EXAMPLES")
    return settings(max_examples=int(asked or count), derandomize=True, database=None, deadline=None,
                    phases=[Phase.generate] + [Phase.shrink] * bool(asked), report_multiple_bugs=False,
                    suppress_health_check=list(HealthCheck))


def _layer(description):
    kind, arguments = description
    if kind == "Sequential":
        return Sequential(*map(_layer, arguments))
    if kind == "Residual":
        branch, shortcut = arguments
        return layers.Residual(*(path and _layer(("Sequential", path)) for path in (branch, shortcut)))
    if kind == "build_model":
        *arguments, in_channels = arguments
        return models.build_model(*arguments, in_channels=in_channels)
    if kind in BLOCKS:
        return BLOCKS[kind].make(*arguments)
    return getattr(layers, kind)(*arguments)


@st.composite
def networks(draw):
    """Networks of one to seven layers for a batch of one to five images, or small ones of the CIFAR family."""
    pick = Pick(draw)
    training, rows, columns = pick(True, False), pick(6, 8, 9, 12, 5, 7), pick(8, 6, 7, 4, 11)
    N, C = pick(2, 1, 3, 5), pick(*WIDTHS)
    if pick(False, False, True, False):
        depth, classes, (kind, shortcut) = pick(8, 14), pick(10, 3), pick(("resnet", "A"), ("resnet", "B"), ("plain", None))
        family = f"{kind}{depth}", classes, shortcut, None, C
        return Network((("build_model", family),), (N + 1, rows, columns, C), training)
    made = []
    shape = _append_layers(pick, made, (N, rows, columns, C), pick(3, 2, 1, 4, 5, 6, 7), training)
    tail = pick("none", "pool", "flatten")
    if tail != "none":
        features = shape[3] if tail == "pool" else int(np.prod(shape[1:]))
        made += [("GlobalAvgPool2d" if tail == "pool" else "Flatten", ()),
                 ("Linear", (features, pick(10, 1, 7), pick(True, False)))]
    return Network(tuple(made), (N, rows, columns, C), training)


class Pick:
    """pick(a, b, ...): one of some values, the first of them where a failing example is made simple."""

    def __init__(self, draw):
        self._draw = draw

    def __call__(self, *values):
        bits = [self._draw(st.booleans()) for _ in range((len(values) - 1).bit_length())]
        return values[sum(bit << place for place, bit in enumerate(bits)) % len(values)]


def _append_layers(pick, made, shape, count, training):
    """Describe `count` layers for x of `shape`; the shape of their y. A layer that does not fit is left out."""
    for _ in range(count):
        kind = pick(*_KINDS, "Conv2d", "Conv2d", "Conv2d", "BasicBlock", "ReLU")
        description, result = _KINDS[kind](pick, shape, training)
        normalises = training and kind in ("BatchNorm2d", "BasicBlock", "PlainBlock", "Bottleneck", "preactivation",
                                           "preactivation bottleneck")
        if min(result) < 1 or (normalises and result[0] * result[1] * result[2] < FEWEST):
            continue
        made.append((kind, description))
        shape = result
    return shape


def _windowed(shape, channels, kernel, stride, padding, dilation=(1, 1)):
    size = (output_size(*axis) for axis in zip(shape[1:3], kernel, stride, padding, dilation, strict=True))
    return (shape[0], *size, channels)


def _conv(pick, shape, training):
    O, plain = pick(*WIDTHS), pick(False, True)
    if plain:  # as most are
        geometry = ((3, 3), (1, 1), (1, 1), (1, 1))
    else:
        kernel = pair("", pick(3, 1, 2, (3, 1), (1, 5), 5, (2, 3), 7), 1)
        stride, dilation = (pair("", pick(*choice), 1) for choice in ((1, 2, (1, 2), 3), (1, 1, 2, (2, 1))))
        geometry = kernel, stride, (pick(1, 0, 2, 3), pick(1, 0, 2, 3)), dilation
    return (shape[3], O, *geometry, pick(True, False)), _windowed(shape, O, *geometry)


def _pool(pick, shape, training, dilations=((1, 1),)):
    kernel, stride = pair("", pick(2, 3, (1, 2), (3, 2)), 1), pair("", pick(2, 1, (2, 1), 3), 1)
    padding, dilation = tuple(pick(0, size // 2) for size in kernel), pick(*dilations)
    if dilation != (1, 1):
        padding = (0, 0)  # else a window may lie in the padding alone, whose maximum is -inf
    arguments = (kernel, stride, padding) if len(dilations) == 1 else (kernel, stride, padding, dilation)
    return arguments, _windowed(shape, shape[3], kernel, stride, padding, dilation)


def _block(pick, shape, training, shortcuts=("B", "A")):
    O, stride, shortcut = pick(shape[3], *WIDTHS), pick(1, 2), pick(*shortcuts)
    shortcut = "B" if shortcut == "A" and shape[3] > O else shortcut
    return (shape[3], O, stride, shortcut), _windowed(shape, O, (3, 3), (stride,) * 2, (1, 1))


def _bottleneck(pick, shape, training):
    inner, stride = pick(shape[3] // 4 or 1, 1, 2, 4, 5), pick(1, 2)
    return (shape[3], inner, stride), _windowed(shape, 4 * inner, (3, 3), (stride,) * 2, (1, 1))


def _padded_shortcut(pick, shape, training):
    O, stride = shape[3] + pick(0, 1, 4, 5), pick(1, 2, (2, 1))
    return (O, stride), _windowed(shape, O, (1, 1), pair("", stride, 1), (0, 0))


def _sequential(pick, shape, training):
    made = []
    result = _append_layers(pick, made, shape, pick(2, 1, 3), training)
    return tuple(made), result


def _residual(pick, shape, training):
    """A branch of random layers; where it changes the shape, the shortcut is made as the branch is."""
    branch, result = _sequential(pick, shape, training)
    return (branch, None if result == shape else branch), result


def _groupnorm(pick, shape, training):
    C = shape[3]
    groups = pick(1, C, C // 2 if C % 2 == 0 else 1)
    enough = shape[1] * shape[2] * C // groups >= FEWEST
    return (groups, C), shape if enough else (0,) * 4


_KINDS = {
    "Conv2d": _conv,
    "BasicBlock": _block,
    "ReLU": lambda pick, shape, training: ((), shape),
    "LeakyReLU": lambda pick, shape, training: ((pick(0.2, 0.01, 0.0),), shape),
    "GELU": lambda pick, shape, training: ((), shape),
    "SiLU": lambda pick, shape, training: ((), shape),
    "BatchNorm2d": lambda pick, shape, training: ((shape[3],), shape),
    "LayerNorm": lambda pick, shape, training: ((shape[3],), shape if shape[3] > 3 else (0,) * 4),
    "MaxPool2d": lambda *given: _pool(*given, dilations=((1, 1), (2, 1), (1, 2))),
    "AvgPool2d": _pool,
    "PlainBlock": lambda *given: _block(*given, shortcuts=(None,)),
    "Bottleneck": _bottleneck,
    "PaddedShortcut": _padded_shortcut,
    "Sequential": _sequential,
    **dict.fromkeys(("preactivation", "unnormalised", "skipinit", "fixup"), _block),
    "preactivation bottleneck": _bottleneck,
    "Residual": _residual,
    "GroupNorm": _groupnorm,
    "Scale": lambda pick, shape, training: ((pick(shape[3], 1),), shape),
    "Bias": lambda pick, shape, training: ((pick(shape[3], 1),), shape),
}
