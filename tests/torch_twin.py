"""A PyTorch module for any layer of ours, with the same parameters under the same names, in float64."""
import numpy as np
import torch
import torch_resnet
from torch import nn

from minires import layers as ours
from minires.layer import Sequential
from minires.models import ResNet
from minires.models.speedrun import ConvGroup, Speedrun


class LayerNorm(nn.LayerNorm):
    """On the channels of (N, C, H, W)."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GlobalMean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class Flatten(nn.Module):
    """To features in the order of (N, H, W, C)."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


class Residual(nn.Module):
    def __init__(self, branch, shortcut):
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x):
        return self.branch(x) + self.shortcut(x)


class Scale(nn.Module):
    """By a number a channel, or by one."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x * _of_channels(self.weight, x)


class Bias(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return x + _of_channels(self.bias, x)


def _of_channels(vector, x):
    return vector[:, None, None] if x.ndim == 4 else vector


class PaddedShortcut(nn.Module):
    """Of strides that differ along the axes."""

    def __init__(self, out_channels, stride):
        super().__init__()
        self.out_channels, self.stride = out_channels, stride

    def forward(self, x):
        more = self.out_channels - x.shape[1]
        return nn.functional.pad(x[:, :, ::self.stride[0], ::self.stride[1]], (0, 0, 0, 0, more // 2, more - more // 2))


def _convolution(layer):
    return nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
                     bias=layer.bias is not None)


class Chain(nn.Module):
    """Children one after another, under their names."""

    def __init__(self, named):
        super().__init__()
        for name, module in named:
            self.add_module(name, module)

    def forward(self, x):
        for module in self.children():
            x = module(x)
        return x


def _block(layer):
    """A block of torch_resnet's making, its children those of the layer."""
    module = getattr(torch_resnet, type(layer).__name__)(layer.conv1.in_channels, layer.conv1.out_channels)
    for name, child in layer.named_children():
        if hasattr(module, name):
            setattr(module, name, _module(child))
    return module


_MODULES = {
    ours.Conv2d: _convolution,
    ours.BatchNorm2d: lambda layer: nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum),
    ours.LayerNorm: lambda layer: LayerNorm(layer.num_features, layer.eps),
    ours.GroupNorm: lambda layer: nn.GroupNorm(layer.num_groups, layer.num_channels, layer.eps),
    ours.Scale: lambda layer: Scale(layer.channels),
    ours.Bias: lambda layer: Bias(layer.channels),
    ours.Residual: lambda layer: Residual(_module(layer.branch), _module(layer.shortcut)),
    **dict.fromkeys((ResNet, Speedrun, ConvGroup), lambda layer: Chain((name, _module(child))
                                                                      for name, child in layer.named_children())),
    ours.ReLU: lambda layer: nn.ReLU(),
    ours.LeakyReLU: lambda layer: nn.LeakyReLU(layer.slope),
    ours.GELU: lambda layer: nn.GELU(),
    ours.SiLU: lambda layer: nn.SiLU(),
    ours.MaxPool2d: lambda layer: nn.MaxPool2d(layer.kernel_size, layer.stride, layer.padding, layer.dilation),
    ours.AvgPool2d: lambda layer: nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding),
    ours.GlobalAvgPool2d: lambda layer: GlobalMean(),
    ours.Flatten: lambda layer: Flatten(),
    ours.Linear: lambda layer: nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None),
    ours.Identity: lambda layer: nn.Identity(),
    ours.PaddedShortcut: lambda layer: PaddedShortcut(layer.out_channels, layer.stride),
    Sequential: lambda layer: nn.Sequential(*map(_module, layer)),
    **dict.fromkeys((ours.BasicBlock, ours.Bottleneck, ours.PlainBlock), _block),
}


def _module(layer):
    return _MODULES[type(layer)](layer)


def of(layer):
    """The module that computes what the layer does, all of it in the layer's mode."""
    module = _module(layer).double().train(layer.training)
    state = {name: torch.from_numpy(np.ascontiguousarray(_exchanged(array, (3, 2, 0, 1))))
             for name, array in layer.state_dict().items()}
    state |= {name: tensor for name, tensor in module.state_dict().items() if name.endswith("num_batches_tracked")}
    module.load_state_dict(state)
    return module


def gradients(module):
    """The parameters' gradients, as arrays in our layouts."""
    return {name: _exchanged(parameter.grad.numpy(), (2, 3, 1, 0)) for name, parameter in module.named_parameters()}


def statistics(module):
    """The running statistics, as arrays."""
    return {name: buffer.numpy() for name, buffer in module.named_buffers() if "running" in name}


def _exchanged(array, order):
    """A convolution's weight with its axes in another order, a linear layer's transposed."""
    return array.transpose(order) if array.ndim == 4 else array.T
