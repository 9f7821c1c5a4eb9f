"""The layers, one file a concept; each docstring derives the backward pass that stands below it."""
from minires.layers.activation import ReLU
from minires.layers.conv import Conv2d
from minires.layers.dropout import Dropout
from minires.layers.linear import Flatten, Identity, Linear
from minires.layers.norm import BatchNorm2d, LayerNorm
from minires.layers.pool import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from minires.layers.residual import BasicBlock, Bottleneck, PaddedShortcut, PlainBlock

__all__ = [
    "AvgPool2d", "BasicBlock", "BatchNorm2d", "Bottleneck", "Conv2d", "Dropout", "Flatten", "GlobalAvgPool2d",
    "Identity", "LayerNorm", "Linear", "MaxPool2d", "PaddedShortcut", "PlainBlock", "ReLU",
]
