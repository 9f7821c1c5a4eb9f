"""The blocks that a residual network is built of, by name, and those that are compositions of public layers.

Each is made by block(in_channels, channels, stride, shortcut, rng=...), takes (N, H, W, in_channels) and gives
(N, OH, OW, expansion * channels), OH = ceil(H / stride); so does a block of your own, which `ResNet` takes in the place of a
name (its attribute `expansion` is 1 if it has none).
"""
from collections.abc import Callable
from dataclasses import dataclass

from minires.arguments import shown
from minires.errors import UserError
from minires.init import default_rng
from minires.layer import Sequential
from minires.layers import BasicBlock, Bias, Bottleneck, Conv2d, Dropout, PlainBlock, ReLU, Residual, Scale
from minires.layers.norm import make_norm
from minires.layers.residual import make_shortcut


def preactivation(in_channels, channels, stride=1, shortcut="B", *, norm="batch", dropout=0.0, rng=None):
    """Normalisation and ReLU before each of two 3x3 convolutions, and nothing after the sum.

        y = x + conv2(relu(bn2(conv1(relu(bn1(x))))))

    Where the shape changes the shortcut, a 1x1 convolution alone, reads relu(bn1(x)) as the branch does.
    dropout: the probability, in front of the last convolution (Zagoruyko & Komodakis 2016, section 2.4).
    Source: He et al. 2016, figure 1b, https://arxiv.org/abs/1603.05027
    """
    return _preactivated([(in_channels, channels, 3, stride), (channels, channels, 3, 1)], stride, shortcut, norm, dropout,
                         rng)


def preactivation_bottleneck(in_channels, channels, stride=1, shortcut="B", *, norm="batch", dropout=0.0, rng=None):
    """`preactivation` of three convolutions: 1x1 down, 3x3 with the stride, 1x1 up to four times the channels."""
    return _preactivated([(in_channels, channels, 1, 1), (channels, channels, 3, stride), (channels, 4 * channels, 1, 1)],
                         stride, shortcut, norm, dropout, rng)


def _preactivated(convolutions, stride, shortcut, norm, dropout, rng):
    rng = default_rng(rng)
    layers = []
    for C, O, kernel, step in convolutions:
        layers += [make_norm(norm, C), ReLU(), Conv2d(C, O, kernel, step, kernel // 2, bias=False, rng=rng)]
    layers[-1:-1] = _dropout(dropout, rng)
    C, O = convolutions[0][0], convolutions[-1][1]
    if stride == 1 and C == O:
        return Residual(Sequential(*layers))
    return Sequential(*layers[:2], Residual(Sequential(*layers[2:]), make_shortcut(C, O, stride, shortcut, rng, None)))


def unnormalised(in_channels, channels, stride=1, shortcut="B", *, dropout=0.0, rng=None, scale=()):
    """Convolution with bias, ReLU, convolution with bias, the sum, ReLU: what deep networks do not train with as it is.

        y = relu(S(x) + conv2(relu(conv1(x))))
    """
    rng = default_rng(rng)
    branch = Sequential(Conv2d(in_channels, channels, 3, stride, 1, rng=rng), ReLU(),
                        *_dropout(dropout, rng), Conv2d(channels, channels, 3, 1, 1, rng=rng), *scale)
    return Sequential(Residual(branch, make_shortcut(in_channels, channels, stride, shortcut, rng, None)), ReLU())


def skipinit(in_channels, channels, stride=1, shortcut="B", *, dropout=0.0, rng=None):
    """`unnormalised` with a learned number behind the branch, 0 at the start: every block begins as its shortcut.

        y = relu(S(x) + weight * F(x))

    Source: De & Smith 2020, section 4, https://arxiv.org/abs/2002.10444
    """
    return unnormalised(in_channels, channels, stride, shortcut, dropout=dropout, rng=rng, scale=(Scale(1, 0.0),))


def fixup(in_channels, channels, stride=1, shortcut="B", *, blocks=1, dropout=0.0, rng=None):
    """No normalisation, but a bias before each convolution and ReLU, a factor, and initial weights that fit the depth.

        y = relu(S(x) + factor * conv2(relu(conv1(x + b1) + b2) + b3) + b4)

    conv1 is He normal, divided by the root of the number of `blocks` in the network; conv2 is 0 at the start.
    Source: Zhang et al. 2019, section 3, https://arxiv.org/abs/1901.09321
    """
    rng = default_rng(rng)
    first = Conv2d(in_channels, channels, 3, stride, 1, bias=False, rng=rng)
    second = Conv2d(channels, channels, 3, 1, 1, bias=False, rng=rng)
    first.weight.data /= blocks ** 0.5
    second.weight.data.fill(0)
    branch = Sequential(Bias(), first, Bias(), ReLU(), *_dropout(dropout, rng), Bias(), second, Scale(), Bias())
    return Sequential(Residual(branch, make_shortcut(in_channels, channels, stride, shortcut, rng, None)), ReLU())


def _dropout(p, rng):
    """[Dropout(p)], or nothing; its draws are not those of the weights that follow."""
    return [Dropout(p, rng=rng.spawn(1)[0])] if p != 0 else []


@dataclass(frozen=True)
class Kind:
    """make: see this module; expansion: channels out for one of its `channels`; preactivated: the stem has no normalisation
    and one follows the last block; normalised: whether it has normalisations at all."""

    make: Callable
    expansion: int = 1
    preactivated: bool = False
    normalised: bool = True


BLOCKS = {
    "basic": Kind(BasicBlock), "bottleneck": Kind(Bottleneck, 4), "plain": Kind(PlainBlock),
    "preactivation": Kind(preactivation, preactivated=True),
    "preactivation bottleneck": Kind(preactivation_bottleneck, 4, preactivated=True),
    "unnormalised": Kind(unnormalised, normalised=False), "skipinit": Kind(skipinit, normalised=False),
    "fixup": Kind(fixup, normalised=False),
}


def block_kind(block):
    """The Kind of a name of BLOCKS or of a block of one's own. UserError for an unknown name."""
    if callable(block):
        return Kind(block, getattr(block, "expansion", 1))
    if not isinstance(block, str) or block not in BLOCKS:
        raise UserError(f"unknown block {shown(block)}: choose one of {', '.join(BLOCKS)}, or pass a function that "
                        "makes one")
    return BLOCKS[block]
