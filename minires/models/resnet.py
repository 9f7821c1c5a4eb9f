"""Residual networks: stem, stages of blocks, mean, linear (He et al. 2015, https://arxiv.org/abs/1512.03385)."""
from minires.arguments import choice, count, shown
from minires.errors import UserError
from minires.init import default_rng
from minires.layer import Sequential
from minires.layers import BasicBlock, Bias, Bottleneck, Conv2d, GlobalAvgPool2d, Linear, MaxPool2d, ReLU
from minires.layers.norm import NORMS, make_norm
from minires.layers.residual import SHORTCUTS
from minires.models.blocks import block_kind

STEMS = {"cifar": (3, 1, 1), "imagenet": (7, 2, 3)}  # kernel, stride, padding


class ResNet(Sequential):
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

    Its layers run in order; their names give PyTorch's keys (`layer1.0.conv1.weight`). UserError for what does not go
    together.
    """

    def __init__(self, blocks, channels, num_classes=10, block="basic", shortcut="B", stem="cifar", *, width=1, norm="batch",
                 dropout=0.0, zero_init_residual=False, in_channels=3, rng=None):
        rng, kind = default_rng(0 if rng is None else rng), block_kind(block)
        _check(blocks, channels, block, kind, norm, zero_init_residual)
        choice("shortcut", shortcut, SHORTCUTS), choice("stem", stem, tuple(STEMS))
        count("num_classes", num_classes), count("width", width)
        options = {"norm": norm} if norm != "batch" else {}
        options |= {"dropout": dropout} if dropout != 0 else {}
        options |= {"blocks": sum(blocks)} if block == "fixup" else {}
        C = channels[0]
        self.conv1 = Conv2d(in_channels, C, *STEMS[stem], bias=not kind.normalised, rng=rng)
        if not kind.preactivated:
            if kind.normalised:
                self.bn1 = make_norm(norm, C)
            self.relu = ReLU()
        if stem == "imagenet":
            self.maxpool = MaxPool2d(3, 2, 1)
        for stage, (number, O) in enumerate(zip(blocks, channels, strict=True), 1):
            layers = []
            for index in range(number):
                stride = 2 if stage > 1 and index == 0 else 1
                layers.append(kind.make(C, O * width, stride, shortcut, rng=rng, **options))
                C = O * width * kind.expansion
            setattr(self, f"layer{stage}", Sequential(*layers))
        if kind.preactivated:
            self.bn1, self.relu = make_norm(norm, C), ReLU()
        self.pool = GlobalAvgPool2d()
        if block == "fixup":  # whose linear layer has a bias in front, too, and starts at 0; the stem's is its convolution's
            self.bias = Bias()
        self.fc = Linear(C, num_classes, rng=rng)
        if zero_init_residual:
            for _, layer in self.named_layers():
                if isinstance(layer, BasicBlock | Bottleneck):
                    layer.branch()[-1].weight.data.fill(0)
        if block == "fixup":
            self.fc.weight.data.fill(0)
            self.fc.bias.data.fill(0)


def _check(blocks, channels, block, kind, norm, zero_init_residual):
    """UserError for arguments of a ResNet that do not go together."""
    if not (isinstance(blocks, list | tuple) and isinstance(channels, list | tuple) and 0 < len(blocks) == len(channels)):
        raise UserError(f"blocks {shown(blocks)} and channels {shown(channels)} do not fit: expected two lists, with a "
                        "number for every stage")
    for value in (*blocks, *channels):
        count("each number of blocks and channels", value)
    if choice("norm", norm, NORMS) != "batch" and not kind.normalised:
        raise UserError(f"block {block} has no normalisation, got norm {norm!r}: leave it out")
    if zero_init_residual and block not in ("basic", "bottleneck"):
        raise UserError("zero_init_residual is for blocks that end in a normalisation, basic and bottleneck, got block "
                        f"{shown(block)}")
