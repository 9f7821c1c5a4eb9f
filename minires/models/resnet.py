"""Residual networks: stem, stages of blocks, mean, linear (He et al. 2015, https://arxiv.org/abs/1512.03385)."""
from functools import partial

from minires.errors import UserError
from minires.init import default_rng
from minires.layer import Layer, Sequential
from minires.layers import Bias, Conv2d, GlobalAvgPool2d, Linear, MaxPool2d, ReLU
from minires.layers.arguments import count
from minires.layers.norm import NORMS, make_norm
from minires.models.blocks import block_kind

CIFAR_DEPTHS = (8, 14, 20, 32, 44, 56, 110)  # 6n + 2: three stages of n blocks of two convolutions, stem and linear
IMAGENET_LAYOUTS = {18: ("basic", (2, 2, 2, 2)), 34: ("basic", (3, 4, 6, 3)), 50: ("bottleneck", (3, 4, 6, 3)),
                    101: ("bottleneck", (3, 4, 23, 3)), 152: ("bottleneck", (3, 8, 36, 3))}
STEMS = {"cifar": (3, 1, 1), "imagenet": (7, 2, 3)}  # kernel, stride, padding


class ResNet(Layer):
    """A stem, stages of blocks, the mean over each feature map, a linear layer: y = fc(pool(stages(stem(x)))).

    x: (N, H, W, C), of any size; y: (N, K). From the second stage on the first block of each halves the feature map.
    blocks, channels: of each stage; blocks give `expansion` times as many channels, 4 in bottlenecks.
    block: a name of `minires.models.blocks.BLOCKS`, or a function that makes a block of your own.
    shortcut: where the shape changes, "A" (zero-padded channels) or "B" (1x1 projection).
    stem: "cifar" (3x3) or "imagenet" (7x7 stride 2, and 3x3 max pooling).
    width: a factor on the stages' channels, not the stem's (wide networks: Zagoruyko & Komodakis 2016, table 1).
    norm: "batch", "layer" or "group". dropout: the probability inside each block, in front of its last convolution.
    zero_init_residual: the last normalisation of each block starts at 0, so that the block is its shortcut (Goyal et al.
    2017, section 5.1, https://arxiv.org/abs/1706.02677).

    Attribute names give PyTorch's keys (`layer1.0.conv1.weight`). UserError for what does not go together.
    """

    def __init__(self, blocks, channels, num_classes=10, block="basic", shortcut="B", stem="cifar", *, width=1, norm="batch",
                 dropout=0.0, zero_init_residual=False, in_channels=3, rng=None):
        rng, kind = default_rng(0 if rng is None else rng), block_kind(block)
        count("num_classes", num_classes), count("width", width)
        _check(blocks, channels, block, kind, stem, norm)
        if zero_init_residual and block not in ("basic", "bottleneck"):
            raise UserError("zero_init_residual is for blocks that end in a normalisation, basic and bottleneck, got block "
                            f"{block!r}")
        options = {} if norm == "batch" else {"norm": norm}
        options |= {"dropout": dropout} if dropout else {}
        options |= {"count": sum(blocks)} if block == "fixup" else {}
        self.conv1 = Conv2d(in_channels, channels[0], *STEMS[stem], bias=not kind.normalised, rng=rng)
        if block == "fixup":
            self.bias1 = Bias()
        if kind.normalised and not kind.preactivated:
            self.bn1 = make_norm(norm, channels[0])
        if not kind.preactivated:
            self.relu = ReLU()
        if stem == "imagenet":
            self.maxpool = MaxPool2d(3, 2, 1)
        inside = channels[0]
        for stage, (number, O) in enumerate(zip(blocks, channels, strict=True), 1):
            made = []
            for index in range(number):
                stride = 2 if stage > 1 and index == 0 else 1
                made.append(partial(kind.make, **options)(inside, O * width, stride, shortcut, rng=rng))
                inside = O * width * kind.expansion
                if zero_init_residual:
                    made[-1].branch()[-1].weight.data.fill(0)
            setattr(self, f"layer{stage}", Sequential(*made))
        if kind.preactivated:
            self.bn1, self.relu = make_norm(norm, inside), ReLU()
        self.pool = GlobalAvgPool2d()
        if block == "fixup":
            self.bias2 = Bias()
        self.fc = Linear(inside, num_classes, rng=rng)
        if block == "fixup":
            self.fc.weight.data.fill(0)
            self.fc.bias.data.fill(0)

    def forward(self, x):
        for _, layer in self.named_children():
            x = layer.forward(x)
        return x

    def backward(self, dy):
        for _, layer in reversed(list(self.named_children())):
            dy = layer.backward(dy)
        return dy


def _check(blocks, channels, block, kind, stem, norm):
    """UserError for arguments of a ResNet that do not go together."""
    if stem not in STEMS:
        raise UserError(f"unknown stem {stem!r}: choose cifar or imagenet")
    if norm not in NORMS:
        raise UserError(f"unknown norm {norm!r}: choose one of {', '.join(NORMS)}")
    if not kind.normalised and norm != "batch":
        raise UserError(f"block {block} has no normalisation, got norm {norm!r}: leave it out")
    if not blocks or len(blocks) != len(channels):
        raise UserError(f"blocks {blocks!r} and channels {channels!r} do not fit: expected a number of each for every stage")
    for value in (*blocks, *channels):
        count("each number of blocks and channels", value)


class CifarResNet(ResNet):
    """The networks of section 4.2: 3x3 stem, three stages of 16, 32, 64 channels at 32, 16, 8 pixels.

    x: (N, 32, 32, 3), other sizes work too; y: (N, K). depth: 6n + 2. plain=True leaves the shortcuts out.
    """

    def __init__(self, depth, num_classes=10, shortcut="A", *, plain=False, in_channels=3, rng=None):
        super().__init__(((depth - 2) // 6,) * 3, (16, 32, 64), num_classes, "plain" if plain else "basic", shortcut,
                         in_channels=in_channels, rng=rng)


class ImageNetResNet(ResNet):
    """The networks of table 1: four stages of 64 to 512 channels (times 4 in bottlenecks).

    x: (N, H, W, 3); y: (N, K). stem "imagenet": 7x7 stride 2 and 3x3 max pooling; "cifar": 3x3, no pooling, for
    images of 32 x 32. Parameters, with 1,000 classes, and keys (but for downsample, here shortcut) are torchvision's.
    """

    def __init__(self, depth, num_classes=1000, shortcut="B", stem="imagenet", *, in_channels=3, rng=None):
        block, layout = IMAGENET_LAYOUTS[depth]
        super().__init__(layout, (64, 128, 256, 512), num_classes, block, shortcut, stem, in_channels=in_channels, rng=rng)
