"""The layers, one file a concept; each docstring derives the backward pass that stands below it."""
from minires.layers.activation import GELU, LeakyReLU, ReLU, SiLU
from minires.layers.conv import Conv2d
from minires.layers.dropout import Dropout
from minires.layers.linear import Flatten, Identity, Linear
from minires.layers.norm import BatchNorm2d, GroupNorm, LayerNorm
from minires.layers.pool import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from minires.layers.residual import BasicBlock, Bottleneck, PaddedShortcut, PlainBlock, Residual
from minires.layers.scale import Bias, Scale

__all__ = [
    "GELU", "AvgPool2d", "BasicBlock", "BatchNorm2d", "Bias", "Bottleneck", "Conv2d", "Dropout", "Flatten",
    "GlobalAvgPool2d", "GroupNorm", "Identity", "LayerNorm", "LeakyReLU", "Linear", "MaxPool2d", "PaddedShortcut",
    "PlainBlock", "ReLU", "Residual", "Scale", "SiLU",
]
