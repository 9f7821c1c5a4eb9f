"""ResNets as PyTorch users write them, on (N, C, H, W): the other side of the parity tests."""
import torch
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)  # on arrays as small as these its threads mostly wait for one another


class PaddedShortcut(nn.Module):
    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.before, self.stride = (channels - in_channels) // 2, stride
        self.after = channels - in_channels - self.before

    def forward(self, x):
        return F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, self.before, self.after))


def make_shortcut(in_channels, channels, stride, shortcut):
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    if shortcut == "A":
        return PaddedShortcut(in_channels, channels, stride)
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, in_channels, channels, stride=1, shortcut="B"):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        self.shortcut = make_shortcut(in_channels, channels, stride, shortcut)

    def branch(self, x):
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))

    def forward(self, x):
        return F.relu(self.branch(x) + self.shortcut(x))


class PlainBlock(BasicBlock):
    def __init__(self, in_channels, channels, stride=1, shortcut=None):
        super().__init__(in_channels, channels, stride, "A")
        del self.shortcut

    def forward(self, x):
        return F.relu(self.branch(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, in_channels, channels, stride=1, shortcut="B"):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, 4 * channels, 1, bias=False), nn.BatchNorm2d(4 * channels)
        self.shortcut = make_shortcut(in_channels, 4 * channels, stride, shortcut)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, block, blocks, widths, shortcut="A", stem="cifar", num_classes=10):
        super().__init__()
        self.imagenet, self.width = stem == "imagenet", widths[0]
        stem = (7, 2, 3) if self.imagenet else (3, 1, 1)
        self.conv1, self.bn1 = nn.Conv2d(3, self.width, *stem, bias=False), nn.BatchNorm2d(self.width)
        for stage, (channels, count) in enumerate(zip(widths, blocks, strict=True), 1):
            layers = []
            for index in range(count):
                layers.append(block(self.width, channels, 2 if stage > 1 and index == 0 else 1, shortcut))
                self.width = channels * block.expansion
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.stages = len(widths)
        self.fc = nn.Linear(self.width, num_classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        if self.imagenet:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


def cifar_resnet(depth, shortcut="A", block=BasicBlock, num_classes=10):
    return ResNet(block, [(depth - 2) // 6] * 3, (16, 32, 64), shortcut, num_classes=num_classes)


def to_torch(array):
    """(N, H, W, C) -> (N, C, H, W), a tensor that wants a gradient."""
    tensor = torch.from_numpy(array.copy())
    return (tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor).contiguous().requires_grad_()


def from_torch(tensor):
    """The array in this project's layout."""
    tensor = tensor.detach()
    return (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).contiguous().numpy()
