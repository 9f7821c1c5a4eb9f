"""Residual networks of He et al. 2015, https://arxiv.org/abs/1512.03385: stem, stages of blocks, mean, linear."""
from minires.errors import UserError
from minires.init import default_rng
from minires.layer import Layer, Sequential
from minires.layers import BasicBlock, BatchNorm2d, Bottleneck, Conv2d, GlobalAvgPool2d, Linear, MaxPool2d, PlainBlock, ReLU
from minires.layers.arguments import count

CIFAR_DEPTHS = (20, 32, 44, 56, 110)  # 6n + 2: three stages of n blocks of two convolutions, stem and linear
IMAGENET_LAYOUTS = {18: (BasicBlock, (2, 2, 2, 2)), 34: (BasicBlock, (3, 4, 6, 3)), 50: (Bottleneck, (3, 4, 6, 3)),
                    101: (Bottleneck, (3, 4, 23, 3)), 152: (Bottleneck, (3, 8, 36, 3))}


class _ResNet(Layer):
    """A stem, stages of blocks, the mean over each feature map, a linear layer: y = fc(pool(stages(stem(x)))).

    Attribute names give PyTorch's keys (`layer1.0.conv1.weight`).
    """

    def _stage(self, block, channels, blocks, stride, shortcut, rng):
        stage = []
        for index in range(blocks):
            stage.append(block(self._width, channels, stride if index == 0 else 1, shortcut, rng=rng))
            self._width = channels * block.expansion
        return Sequential(*stage)

    def forward(self, x):
        for _, layer in self.named_children():
            x = layer.forward(x)
        return x

    def backward(self, dy):
        for _, layer in reversed(list(self.named_children())):
            dy = layer.backward(dy)
        return dy


class CifarResNet(_ResNet):
    """The networks of section 4.2: 3x3 stem, three stages of 16, 32, 64 channels at 32, 16, 8 pixels.

    x: (N, 32, 32, 3), other sizes work too; y: (N, K). plain=True leaves the shortcuts out.
    """

    def __init__(self, depth, num_classes=10, shortcut="A", *, plain=False, in_channels=3, rng=None):
        rng = default_rng(0 if rng is None else rng)
        count("num_classes", num_classes)
        block, self._width = (PlainBlock if plain else BasicBlock), 16
        self.conv1, self.bn1 = Conv2d(in_channels, 16, 3, 1, 1, bias=False, rng=rng), BatchNorm2d(16)
        self.relu = ReLU()
        for stage, channels in enumerate((16, 32, 64), 1):
            blocks = self._stage(block, channels, (depth - 2) // 6, 1 if stage == 1 else 2, shortcut, rng)
            setattr(self, f"layer{stage}", blocks)
        self.pool = GlobalAvgPool2d()
        self.fc = Linear(64, num_classes, rng=rng)


class ImageNetResNet(_ResNet):
    """The networks of table 1: four stages of 64 to 512 channels (times 4 in bottlenecks).

    x: (N, H, W, 3); y: (N, K). stem "imagenet": 7x7 stride 2 and 3x3 max pooling; "cifar": 3x3, no pooling, for
    images of 32 x 32.
    """

    def __init__(self, depth, num_classes=1000, shortcut="B", stem="imagenet", *, in_channels=3, rng=None):
        if stem not in ("cifar", "imagenet"):
            raise UserError(f"unknown stem {stem!r}: choose cifar or imagenet")
        rng = default_rng(0 if rng is None else rng)
        count("num_classes", num_classes)
        (block, layout), self._width = IMAGENET_LAYOUTS[depth], 64
        kernel, stride, padding = (7, 2, 3) if stem == "imagenet" else (3, 1, 1)
        self.conv1, self.bn1 = Conv2d(in_channels, 64, kernel, stride, padding, bias=False, rng=rng), BatchNorm2d(64)
        self.relu = ReLU()
        if stem == "imagenet":
            self.maxpool = MaxPool2d(3, 2, 1)
        for stage, (channels, blocks) in enumerate(zip((64, 128, 256, 512), layout, strict=True), 1):
            setattr(self, f"layer{stage}", self._stage(block, channels, blocks, 1 if stage == 1 else 2, shortcut, rng))
        self.pool = GlobalAvgPool2d()
        self.fc = Linear(512 * block.expansion, num_classes, rng=rng)
