"""Residual networks of He et al. 2015, https://arxiv.org/abs/1512.03385: stem, stages of blocks, mean, linear."""
import numpy as np

from minires.errors import UserError
from minires.layer import Sequential, in_inference_mode
from minires.layers import BasicBlock, Bottleneck, Conv2d, GlobalAvgPool2d, Linear, MaxPool2d, PlainBlock, ReLU, fused
from minires.layers.arguments import count
from minires.layers.residual import Branch

CIFAR_DEPTHS = (20, 32, 44, 56, 110)  # 6n + 2: three stages of n blocks of two convolutions, stem and linear
IMAGENET_LAYOUTS = {18: (BasicBlock, (2, 2, 2, 2)), 34: (BasicBlock, (3, 4, 6, 3)), 50: (Bottleneck, (3, 4, 6, 3)),
                    101: (Bottleneck, (3, 4, 23, 3)), 152: (Bottleneck, (3, 8, 36, 3))}


class _ResNet(Branch):
    """A stem (one unit and a ReLU) and layers after it. Attribute names give PyTorch's keys (`layer1.0.conv1.weight`).

    `input_gradient = False` leaves out the gradient with respect to the images, which training never reads: backward
    then returns None.
    """

    input_gradient = True

    def _stage(self, block, channels, blocks, stride, shortcut, rng):
        stage = []
        for index in range(blocks):
            stage.append(block(self._width, channels, stride if index == 0 else 1, shortcut, rng=rng))
            self._width = channels * block.expansion
        return Sequential(*stage)

    def _body(self):
        stem = (self.conv1, self.bn1, self.relu)
        return [layer for _, layer in self.named_children() if layer not in stem]

    def _chains(self, body):
        """For each layer of the body the blocks of a stage, each the input of the next; of other layers none.

        The stem stands in front where nothing is between. None of the last stage: backward begins there, and would form its
        images again at once. None in inference_mode, which keeps nothing.
        """
        if in_inference_mode():
            return [()] * len(body)
        stages = [layer for layer in body if isinstance(layer, Sequential)]
        return [[] if layer not in stages[:-1] else [self, *layer] if layer is body[0] else list(layer) for layer in body]

    def forward(self, x):
        body = self._body()
        stages = [layer for layer in body if isinstance(layer, Sequential)]
        if self.fused:
            blocks = [block for stage in stages for block in stage]
            hand_on = body[0] in stages and all(block.fused for block in blocks) and fused.unheard(stages + blocks)
            x = fused.forward(self, x, hand_on=hand_on)
        else:
            x = self.relu.forward(self.branch_forward(x))
        for layer, chain in zip(body, self._chains(body), strict=True):
            x = layer.forward(x if layer in stages else fused.formed(x))
            fused.drop_outputs(chain)
        return x

    def backward(self, dy):
        body = self._body()
        stages = [layer for layer in body if isinstance(layer, Sequential)]
        fused.join([*([self] if body[0] in stages else []), *(block for stage in stages for block in stage)])
        for layer, chain in zip(reversed(body), reversed(self._chains(body)), strict=True):
            fused.restore_outputs(chain)
            dy = layer.backward(dy)
        if self.fused:
            return fused.backward(self, dy, need_dx=self.input_gradient)
        self.conv1.input_gradient = self.input_gradient
        return self.branch_backward(self.relu.backward(dy))


class CifarResNet(_ResNet):
    """The networks of section 4.2: 3x3 stem, three stages of 16, 32, 64 channels at 32, 16, 8 pixels.

    x: (N, 32, 32, 3), other sizes work too; y: (N, K). plain=True leaves the shortcuts out.
    """

    def __init__(self, depth, num_classes=10, shortcut="A", *, plain=False, in_channels=3, rng=None):
        rng = np.random.default_rng(0) if rng is None else rng
        count("num_classes", num_classes)
        block, self._width = (PlainBlock if plain else BasicBlock), 16
        self._add_units(Conv2d(in_channels, 16, 3, 1, 1, bias=False, rng=rng))
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
        rng = np.random.default_rng(0) if rng is None else rng
        count("num_classes", num_classes)
        (block, layout), self._width = IMAGENET_LAYOUTS[depth], 64
        kernel, stride, padding = (7, 2, 3) if stem == "imagenet" else (3, 1, 1)
        self._add_units(Conv2d(in_channels, 64, kernel, stride, padding, bias=False, rng=rng))
        self.relu = ReLU()
        if stem == "imagenet":
            self.maxpool = MaxPool2d(3, 2, 1)
        for stage, (channels, blocks) in enumerate(zip((64, 128, 256, 512), layout, strict=True), 1):
            setattr(self, f"layer{stage}", self._stage(block, channels, blocks, 1 if stage == 1 else 2, shortcut, rng))
        self.pool = GlobalAvgPool2d()
        self.fc = Linear(512 * block.expansion, num_classes, rng=rng)
