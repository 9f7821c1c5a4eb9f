"""Residual blocks, and the plain block they are compared with."""
from minires.arguments import choice, count, pair
from minires.backends import ops_for
from minires.errors import UserError
from minires.init import default_rng
from minires.layer import Layer, Sequential
from minires.layers.activation import ReLU
from minires.layers.conv import Conv2d
from minires.layers.dropout import Dropout
from minires.layers.linear import Identity
from minires.layers.norm import make_norm


class Residual(Layer):
    """The sum of two paths: any layer as branch, and a shortcut, by default the identity.

    x: what both take; y: of the shape that both give        y = F(x) + S(x)

    Backward. A sum passes its gradient to both terms unchanged, and x feeds both, so their gradients add:

        dx = F.backward(dy) + S.backward(dy)

    Nothing follows the sum: Sequential(Residual(branch), ReLU()) is the block of He et al. 2015, Residual(branch) with a
    branch that begins by its normalisation that of 2016. UserError where the two shapes differ.
    Source: He et al. 2016, "Identity Mappings in Deep Residual Networks", section 2, https://arxiv.org/abs/1603.05027
    """

    def __init__(self, branch, shortcut=None):
        self.branch, self.shortcut = branch, Identity() if shortcut is None else shortcut
        for name, path in (("branch", self.branch), ("shortcut", self.shortcut)):
            if not isinstance(path, Layer):
                raise UserError(f"Residual takes layers, got a {type(path).__name__} as {name}")

    def forward(self, x):
        branch, shortcut = self.branch.forward(x), self.shortcut.forward(x)
        if branch.shape != shortcut.shape:
            raise UserError(f"Residual got x of shape {tuple(x.shape)} and cannot add what its branch makes of it, "
                            f"{tuple(branch.shape)}, to what its shortcut does, {tuple(shortcut.shape)}: make them alike")
        return ops_for(x).add(branch, shortcut)

    def backward(self, dy):
        return ops_for(dy).add(self.branch.backward(dy), self.shortcut.backward(dy))


class PaddedShortcut(Layer):
    """Option A of He et al. 2015, section 4.2: identity, every stride-th pixel, zeros for the new channels.

    x: (N, H, W, C); y: (N, OH, OW, O), OH = ceil(H / stride); (O - C) // 2 zero channels come first.

    Backward. A selection and a padding: its adjoint drops the padded channels and puts zeros where pixels were skipped.
    """

    def __init__(self, out_channels, stride):
        self.out_channels, self.stride = count("out_channels", out_channels), pair("stride", stride, 1)

    def forward(self, x):
        self._require(x, ("N", "H", "W", "C"))
        if x.shape[3] > self.out_channels:
            raise UserError(f"PaddedShortcut only adds channels, got x of shape {x.shape} for {self.out_channels} out")
        self._save(x.shape)
        return ops_for(x).pad_shortcut_forward(x, self.out_channels, self.stride)

    def backward(self, dy):
        (x_shape,) = self._saved()
        return ops_for(dy).pad_shortcut_backward(dy, x_shape, self.stride)


SHORTCUTS = ("A", "B")


def make_shortcut(in_channels, out_channels, stride, shortcut, rng, norm="batch"):
    """S(x): the identity where the shape stays, else option "A" (padded identity) or "B" (1x1 projection, its norm)."""
    choice("shortcut", shortcut, SHORTCUTS)
    if stride == 1 and in_channels == out_channels:
        return Identity()
    if shortcut == "A":
        if out_channels < in_channels:
            raise UserError(f"shortcut A only adds channels, got {in_channels} in and {out_channels} out: use shortcut B")
        return PaddedShortcut(out_channels, stride)
    projection = Conv2d(in_channels, out_channels, 1, stride, bias=False, rng=rng)
    return projection if norm is None else Sequential(projection, make_norm(norm, out_channels))


class _Branch(Layer):
    """F(x) of a block: convolutions, each with its normalisation, and ReLU between them (not after the last).

    The layers are the attributes conv1, bn1, relu1, conv2, bn2, ..: PyTorch's keys. norm: see `make_norm`; dropout: the
    probability, in front of the last convolution (Zagoruyko & Komodakis 2016, section 2.4).
    """

    def _add_branch(self, convolutions, norm, dropout, rng):
        self.depth = len(convolutions)
        for index, conv in enumerate(convolutions, 1):
            if dropout != 0 and index == self.depth:
                self.dropout = Dropout(dropout, rng=rng.spawn(1)[0])  # its draws are not those of weights
            setattr(self, f"conv{index}", conv)
            setattr(self, f"bn{index}", make_norm(norm, conv.out_channels))
            if index < self.depth:
                setattr(self, f"relu{index}", ReLU())

    def branch(self):
        """The layers of F, in order."""
        return [layer for name, layer in self.named_children() if name not in ("shortcut", "relu")]

    def branch_forward(self, x):
        """F(x)."""
        for layer in self.branch():
            x = layer.forward(x)
        return x

    def branch_backward(self, dy):
        """F's dx from its dy."""
        for layer in reversed(self.branch()):
            dy = layer.backward(dy)
        return dy


class _ResidualBlock(_Branch):
    """y = relu(F(x) + S(x)), and its derivative."""

    def forward(self, x):
        return self.relu.forward(ops_for(x).add(self.branch_forward(x), self.shortcut.forward(x)))

    def backward(self, dy):
        g = self.relu.backward(dy)
        return ops_for(g).add(self.branch_backward(g), self.shortcut.backward(g))


class BasicBlock(_ResidualBlock):
    """Two 3x3 convolutions and a shortcut.

    x: (N, H, W, C); y: (N, OH, OW, O), OH = ceil(H / stride)

        F(x) = bn2(conv2(relu(bn1(conv1(x)))))        y = relu(F(x) + S(x))

    Backward. The sum of `Residual`, behind a ReLU:

        g = relu'(F + S) * dy        dx = F.backward(g) + S.backward(g)

    With S the identity the second term is g itself: it reaches x without passing a single weight.
    Source: He et al. 2015, sections 3.2 and 4.2, https://arxiv.org/abs/1512.03385
    """

    expansion = 1

    def __init__(self, in_channels, channels, stride=1, shortcut="B", *, norm="batch", dropout=0.0, rng=None):
        rng = default_rng(rng)
        self._add_branch([Conv2d(in_channels, channels, 3, stride, 1, bias=False, rng=rng),
                          Conv2d(channels, channels, 3, 1, 1, bias=False, rng=rng)], norm, dropout, rng)
        self.shortcut = make_shortcut(in_channels, channels, stride, shortcut, rng, norm)
        self.relu = ReLU()


class Bottleneck(_ResidualBlock):
    """1x1 down, 3x3, 1x1 up to four times the channels, and a shortcut; y = relu(F(x) + S(x)) as in BasicBlock.

    x: (N, H, W, C); y: (N, OH, OW, 4 * channels). The stride is on the 3x3 convolution, as in torchvision.
    Source: He et al. 2015, section 4.1, figure 5.
    """

    expansion = 4

    def __init__(self, in_channels, channels, stride=1, shortcut="B", *, norm="batch", dropout=0.0, rng=None):
        rng = default_rng(rng)
        self._add_branch([Conv2d(in_channels, channels, 1, bias=False, rng=rng),
                          Conv2d(channels, channels, 3, stride, 1, bias=False, rng=rng),
                          Conv2d(channels, 4 * channels, 1, bias=False, rng=rng)], norm, dropout, rng)
        self.shortcut = make_shortcut(in_channels, 4 * channels, stride, shortcut, rng, norm)
        self.relu = ReLU()


class PlainBlock(_Branch):
    """BasicBlock without its shortcut: y = relu(F(x)), dx = F.backward(relu'(F) * dy). For comparison.

    x: (N, H, W, C); y: (N, OH, OW, O). Source: the plain networks of He et al. 2015, sections 3.3 and 4.2.
    """

    expansion = 1

    def __init__(self, in_channels, channels, stride=1, shortcut=None, *, norm="batch", dropout=0.0, rng=None):
        rng = default_rng(rng)
        self._add_branch([Conv2d(in_channels, channels, 3, stride, 1, bias=False, rng=rng),
                          Conv2d(channels, channels, 3, 1, 1, bias=False, rng=rng)], norm, dropout, rng)
        self.relu = ReLU()

    def forward(self, x):
        return self.relu.forward(self.branch_forward(x))

    def backward(self, dy):
        return self.branch_backward(self.relu.backward(dy))
