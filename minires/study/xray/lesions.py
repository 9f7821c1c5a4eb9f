"""Lesions: cut a block's shortcut or its branch in the live network, and see what the loss does.

Source: Veit et al. 2016, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks", section 4,
https://arxiv.org/abs/1605.06431
"""
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from minires.errors import UserError
from minires.layer import calls_go_to, inference_mode
from minires.layers import Conv2d, Identity, PaddedShortcut
from minires.layers.residual import _Branch
from minires.losses import CrossEntropyLoss
from minires.study.xray.gradients import body, is_residual, stem

PARTS = ("branch", "shortcut")


@dataclass(frozen=True)
class Lesion:
    """One cut. block: its name; part: "branch" or "shortcut"; loss, accuracy: of the network with the cut; change: the
    loss less the uncut network's."""

    block: str
    part: str
    loss: float
    accuracy: float
    change: float


@dataclass(frozen=True)
class LesionStudy:
    """loss, accuracy: of the whole network; lesions: a Lesion for each block and part."""

    loss: float
    accuracy: float
    lesions: tuple


@contextmanager
def lesion(block, part):
    """Inside, the block lives without one of its parts, forward and backward; its parameters stay as they are.

        part "branch":    y = relu(S(x))    dx = S^T g    g = relu' * dy
        part "shortcut":  y = relu(F(x))    dx = F^T g

    A plain block has no shortcut to cut. Without its branch it hands x on, where the shape changes by option A's padded
    identity, so that the two kinds of network lose the same thing. UserError for a part that the block does not have.
    """
    if part not in PARTS or (part == "shortcut" and not is_residual(block)):
        raise UserError(f"{type(block).__name__} has no part {part!r} to cut: choose "
                        f"{' or '.join(PARTS) if is_residual(block) else 'branch'}")
    bypass = block.shortcut if is_residual(block) else _bypass(block)
    forward, backward = {"branch": (bypass.forward, bypass.backward),
                         "shortcut": (block.branch_forward, block.branch_backward)}[part]

    def cut(method, layer, array):  # a listener comes too late: a part that ran has changed statistics and gradients
        if layer is not block:
            return method(layer, array)
        return block.relu.forward(forward(array)) if method.__name__ == "forward" else backward(block.relu.backward(array))

    with calls_go_to(cut):
        yield block


def _bypass(block):
    convolutions = [layer for layer in block.branch() if isinstance(layer, Conv2d)]
    strides = np.prod([conv.stride for conv in convolutions], axis=0)
    channels = convolutions[0].in_channels, convolutions[-1].out_channels
    if channels[0] == channels[1] and all(strides == 1):
        return Identity()
    return PaddedShortcut(channels[1], tuple(int(stride) for stride in strides))


def lesion_study(network, x, target, progress=lambda: None):
    """The LesionStudy of every single cut, on one batch, in the network's mode; the network is left as it was.

    x: (N, H, W, C); target: (N,). In training mode batch normalisation uses the batch's statistics (and moves no running
    ones), in evaluation its running ones, as Veit et al. do. progress() is called after each block.
    """
    parts = body(network)
    with inference_mode():
        inputs, y = [], x
        for layer in stem(network):
            y = layer.forward(y)
        for _, layer in parts:
            inputs.append(y)
            y = layer.forward(y)
        loss, accuracy = _score(y, target)
        found = []
        for index, (name, block) in enumerate(parts):
            if not isinstance(block, _Branch):
                continue
            for part in PARTS if is_residual(block) else PARTS[:1]:
                with lesion(block, part):
                    y = inputs[index]
                    for _, layer in parts[index:]:
                        y = layer.forward(y)
                cut_loss, cut_accuracy = _score(y, target)
                found.append(Lesion(name, part, cut_loss, cut_accuracy, cut_loss - loss))
            progress()
    network.forget()
    return LesionStudy(loss, accuracy, tuple(found))


def _score(y, target):
    return float(CrossEntropyLoss().forward(y, target)), float(np.mean(y.argmax(1) == target))
