"""The networks of minires.models as PyTorch users write them, with the same keys: the other side of the comparison."""
import torch
from torch import nn
from torch.nn import functional as F

from minires.bench.networks import parts
from minires.models import RESNETS


class _PaddedShortcut(nn.Module):
    """Identity with zero channels on both sides, every stride-th pixel: option A of He et al. 2015."""

    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.before, self.stride = (channels - in_channels) // 2, stride
        self.after = channels - in_channels - self.before

    def forward(self, x):
        return F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, self.before, self.after))


def _make_shortcut(in_channels, channels, stride, option):
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    if option == "A":
        return _PaddedShortcut(in_channels, channels, stride)
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class _BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, in_channels, channels, stride, option):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = _make_shortcut(in_channels, channels, stride, option)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class _PlainBlock(_BasicBlock):
    def __init__(self, in_channels, channels, stride, _):
        super().__init__(in_channels, channels, stride, "A")
        self.shortcut = None

    def forward(self, x):
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, in_channels, channels, stride, option):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, 4 * channels, 1, bias=False), nn.BatchNorm2d(4 * channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = _make_shortcut(in_channels, 4 * channels, stride, option)

    def forward(self, x):
        y = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return self.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class _ResNet(nn.Module):
    def __init__(self, blocks, widths, option, num_classes, kind=_BasicBlock, imagenet=False):
        super().__init__()
        width, stem = widths[0], (7, 2, 3) if imagenet else (3, 1, 1)
        self.conv1, self.bn1 = nn.Conv2d(3, width, *stem, bias=False), nn.BatchNorm2d(width)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        for stage, (channels, count) in enumerate(zip(widths, blocks, strict=True), 1):
            layers = []
            for index in range(count):
                layers.append(kind(width, channels, 2 if stage > 1 and index == 0 else 1, option))
                width = channels * kind.expansion
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.stages = len(widths)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


def build_torch_model(name, state, num_classes=10):
    """The torch module of a network that is timed (networks.py), with `state`, {key: NumPy array in PyTorch's layout}."""
    name, stem, _ = parts(name)
    design = RESNETS[name]
    kind = {"basic": _BasicBlock, "plain": _PlainBlock, "bottleneck": _Bottleneck}[design["block"]]
    model = _ResNet(design["blocks"], design["channels"], design.get("shortcut", "B"), num_classes, kind, stem == "imagenet")
    found = model.load_state_dict({key: torch.from_numpy(array) for key, array in state.items()}, strict=False)
    missing = [key for key in found.missing_keys if not key.endswith("num_batches_tracked")]
    if missing or found.unexpected_keys:
        raise RuntimeError(f"the torch network's keys differ: missing {missing}, unexpected {found.unexpected_keys}")
    return model
