"""What is proved: a row for each layer and its odd cases. A new layer adds its row here, and the tests find it."""
import numpy as np

from minires.layers import (
    GELU,
    AvgPool2d,
    BasicBlock,
    BatchNorm2d,
    Bias,
    Bottleneck,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    GroupNorm,
    Identity,
    LayerNorm,
    LeakyReLU,
    Linear,
    MaxPool2d,
    PaddedShortcut,
    PlainBlock,
    ReLU,
    Residual,
    Scale,
    SiLU,
)
from minires.losses import CrossEntropyLoss, MSELoss
from minires.models import blocks
from minires.models.speedrun import ConvGroup
from minires.study.gradcheck import LossLayer
from minires.study.planned import Planned


def frozen(norm):
    """A batch normalisation that takes its running statistics in training too."""
    norm.frozen = True
    return norm


def thawed(layer):
    """A layer of which every parameter learns: what is frozen has no gradient to prove."""
    for parameter in layer.parameters():
        parameter.frozen = False
    return layer


# name (its first word is the class): (layer from rng, shape of x)
LAYERS = {
    "Conv2d": (lambda rng: Conv2d(3, 4, 3, padding=1, rng=rng), (2, 5, 4, 3)),
    "Conv2d stride 2": (lambda rng: Conv2d(3, 4, 3, stride=2, padding=1, bias=False, rng=rng), (2, 7, 5, 3)),
    "Conv2d 1x1 stride 2": (lambda rng: Conv2d(5, 3, 1, stride=2, rng=rng), (2, 4, 5, 5)),
    "Conv2d uneven pairs": (lambda rng: Conv2d(2, 3, (3, 2), (2, 1), (1, 2), (1, 2), rng=rng), (2, 6, 5, 2)),
    "Conv2d one channel": (lambda rng: Conv2d(1, 1, 5, rng=rng), (1, 5, 6, 1)),
    "BatchNorm2d": (lambda rng: BatchNorm2d(3), (4, 5, 3, 3)),
    "BatchNorm2d evaluation": (lambda rng: BatchNorm2d(3).eval(), (2, 3, 4, 3)),
    "LayerNorm rows": (lambda rng: LayerNorm(7), (5, 7)),
    "LayerNorm images": (lambda rng: LayerNorm(5), (2, 3, 4, 5)),
    "BatchNorm2d frozen": (lambda rng: frozen(BatchNorm2d(3)), (2, 3, 4, 3)),
    "GroupNorm": (lambda rng: GroupNorm(2, 6), (2, 3, 4, 6)),
    "GroupNorm one group": (lambda rng: GroupNorm(1, 5), (3, 2, 3, 5)),
    "GroupNorm of single channels": (lambda rng: GroupNorm(3, 3), (2, 4, 3, 3)),
    "Scale": (lambda rng: Scale(5), (2, 3, 4, 5)),
    "Scale of everything": (lambda rng: Scale(), (2, 3, 4, 5)),
    "Bias": (lambda rng: Bias(5), (2, 3, 4, 5)),
    "Bias of everything": (lambda rng: Bias(), (4, 5)),
    "ReLU": (lambda rng: ReLU(), (2, 5, 3, 3)),
    "LeakyReLU": (lambda rng: LeakyReLU(0.2), (2, 5, 3, 3)),
    "GELU": (lambda rng: GELU(), (2, 5, 3, 3)),
    "SiLU": (lambda rng: SiLU(), (2, 5, 3, 3)),
    "MaxPool2d": (lambda rng: MaxPool2d(2), (2, 5, 6, 3)),
    "MaxPool2d overlapping": (lambda rng: MaxPool2d(3, stride=2, padding=1), (2, 7, 6, 3)),
    "MaxPool2d dilation 2": (lambda rng: MaxPool2d((2, 3), stride=1, padding=(1, 0), dilation=2), (2, 5, 7, 2)),
    "AvgPool2d": (lambda rng: AvgPool2d(2), (2, 5, 6, 3)),
    "AvgPool2d overlapping": (lambda rng: AvgPool2d((3, 2), stride=(2, 1), padding=(1, 1)), (2, 7, 5, 3)),
    "GlobalAvgPool2d": (lambda rng: GlobalAvgPool2d(), (2, 5, 3, 4)),
    "Flatten": (lambda rng: Flatten(), (2, 3, 4, 5)),
    "Linear": (lambda rng: Linear(7, 5, rng=rng), (4, 7)),
    "Linear without bias": (lambda rng: Linear(3, 2, bias=False, rng=rng), (1, 3)),
    "Dropout": (lambda rng: Dropout(0.4, rng=rng), (3, 4, 5)),
    "Dropout evaluation": (lambda rng: Dropout(0.4, rng=rng).eval(), (3, 4, 5)),
    "Identity": (lambda rng: Identity(), (3, 4, 5)),
    "PaddedShortcut": (lambda rng: PaddedShortcut(6, stride=2), (2, 5, 4, 3)),
    "Residual": (lambda rng: Residual(Linear(5, 5, rng=rng)), (4, 5)),
    "Residual with a shortcut": (lambda rng: Residual(Conv2d(3, 4, 3, 2, 1, rng=rng), Conv2d(3, 4, 1, 2, bias=False,
                                                                                         rng=rng)), (2, 5, 4, 3)),
    "BasicBlock": (lambda rng: BasicBlock(3, 3, rng=rng), (3, 4, 4, 3)),
    "BasicBlock shortcut A": (lambda rng: BasicBlock(3, 6, 2, "A", rng=rng), (3, 5, 4, 3)),
    "BasicBlock shortcut B": (lambda rng: BasicBlock(3, 6, 2, "B", rng=rng), (3, 5, 4, 3)),
    "BasicBlock evaluation": (lambda rng: BasicBlock(3, 6, 2, "B", rng=rng).eval(), (2, 5, 4, 3)),
    "Bottleneck": (lambda rng: Bottleneck(4, 2, 2, rng=rng), (3, 5, 4, 4)),
    "Bottleneck identity": (lambda rng: Bottleneck(8, 2, rng=rng), (3, 3, 4, 8)),
    "PlainBlock": (lambda rng: PlainBlock(3, 4, 2, rng=rng), (3, 5, 4, 3)),
}

# Blocks that are compositions of layers, by what makes them.
BLOCKS = {
    "preactivation": (lambda rng: blocks.preactivation(3, 3, rng=rng), (3, 4, 3, 3)),
    "preactivation projection": (lambda rng: blocks.preactivation(3, 5, 2, rng=rng), (3, 4, 5, 3)),
    "preactivation group": (lambda rng: blocks.preactivation(4, 4, norm="group", rng=rng), (2, 4, 3, 4)),
    "preactivation_bottleneck": (lambda rng: blocks.preactivation_bottleneck(8, 2, rng=rng), (3, 4, 3, 8)),
    "unnormalised": (lambda rng: blocks.unnormalised(3, 5, 2, rng=rng), (2, 5, 4, 3)),
    "skipinit": (lambda rng: blocks.skipinit(3, 3, rng=rng), (2, 4, 3, 3)),
    "fixup": (lambda rng: blocks.fixup(3, 3, rng=rng), (2, 4, 3, 3)),
    "ConvGroup": (lambda rng: thawed(ConvGroup(3, 4, rng=rng)), (3, 7, 6, 3)),
    "dropout inside": (lambda rng: BasicBlock(3, 3, dropout=0.3, rng=rng), (3, 4, 3, 3)),
}

# Blocks as a plan computes them, whose rewrites the layers alone never meet; the first word is the class inside.
PLANNED = {
    "BasicBlock planned": (lambda rng: Planned(BasicBlock(8, 8, rng=rng)), (2, 3, 4, 8)),
    "BasicBlock planned, shortcut A": (lambda rng: Planned(BasicBlock(8, 16, 2, "A", rng=rng)), (2, 5, 4, 8)),
    "BasicBlock planned, odd channels": (lambda rng: Planned(BasicBlock(3, 5, 2, "B", rng=rng)), (3, 5, 4, 3)),
    "BasicBlock planned, evaluation": (lambda rng: Planned(BasicBlock(8, 8, rng=rng).eval()), (2, 3, 4, 8)),
    "Bottleneck planned": (lambda rng: Planned(Bottleneck(8, 8, 2, rng=rng)), (2, 3, 4, 8)),
    "preactivation planned": (lambda rng: Planned(blocks.preactivation(8, 8, rng=rng)), (2, 3, 4, 8)),
    "skipinit planned": (lambda rng: Planned(blocks.skipinit(3, 8, rng=rng)), (2, 4, 3, 3)),
    "PlainBlock planned": (lambda rng: Planned(PlainBlock(3, 8, rng=rng)), (2, 4, 3, 3)),
}

LOSSES = {
    "CrossEntropyLoss": (lambda rng: LossLayer(CrossEntropyLoss(), rng.integers(0, 7, 5)), (5, 7)),
    "CrossEntropyLoss smoothed": (lambda rng: LossLayer(CrossEntropyLoss(0.1), rng.integers(0, 7, 5)), (5, 7)),
    "CrossEntropyLoss of shares": (lambda rng: LossLayer(CrossEntropyLoss(0.1), rng.dirichlet(np.ones(7), 5)), (5, 7)),
    "MSELoss": (lambda rng: LossLayer(MSELoss(), rng.standard_normal((4, 3))), (4, 3)),
}
