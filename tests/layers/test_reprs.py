"""How objects print themselves: the call that makes them."""
import numpy as np
import pytest

import minires.layers
from minires.data import Dataset, Loader
from minires.layer import Layer, Parameter, Sequential
from minires.layers import (  # noqa: F401 the calls below are evaluated
    AvgPool2d,
    BasicBlock,
    BatchNorm2d,
    Conv2d,
    Dropout,
    LayerNorm,
    Linear,
    MaxPool2d,
    PaddedShortcut,
    ReLU,
)
from minires.losses import CrossEntropyLoss, MSELoss  # noqa: F401
from minires.models import build_model
from minires.optim import SGD, AdamW
from minires.schedules import CosineLR, MultiStepLR, OneCycleLR, StepLR, WarmUp
from minires.training import Trainer

CALLS = ["Conv2d(3, 16, 3, padding=1, bias=False)", "Conv2d(3, 4, (3, 1), stride=(2, 1), dilation=2)", "Linear(4, 5)",
         "Linear(4, 5, bias=False)", "BatchNorm2d(4)", "BatchNorm2d(4, momentum=0.2)", "LayerNorm(3)", "ReLU()",
         "MaxPool2d(3, stride=2, padding=1)", "AvgPool2d(2, stride=2)", "Dropout()", "Dropout(p=0.2)",
         "PaddedShortcut(8, 2)", "CrossEntropyLoss()", "CrossEntropyLoss(label_smoothing=0.1)", "MSELoss()"]


@pytest.mark.parametrize("call", CALLS)
def test_a_layer_and_a_loss_print_the_call_that_makes_them(call):
    assert repr(eval(call)) == call


def test_a_block_prints_its_parts_below_each_other():
    assert repr(Sequential(Sequential(Linear(2, 3), ReLU()), Linear(3, 2))) == """Sequential(
  (0): Sequential(
    (0): Linear(2, 3)
    (1): ReLU()
  )
  (1): Linear(3, 2)
)"""
    assert repr(BasicBlock(3, 4)).splitlines()[:2] == ["BasicBlock(", "  (conv1): Conv2d(3, 4, 3, padding=1, bias=False)"]
    assert repr(build_model("resnet20")).count("BasicBlock(") == 9
    assert repr(Sequential()) == "Sequential()"


def test_an_optimiser_and_a_schedule_print_their_rates():
    optimiser = SGD(Linear(2, 3).parameters(), 0.1, momentum=0.9)
    weight, bias = "Parameter(<float32 (2, 3)>)", "Parameter(<float32 (3,)>, decays=False)"
    assert repr(optimiser) == f"SGD([{weight}, {bias}], 0.1, momentum=0.9)"
    assert "62 in all" in repr(AdamW(build_model("resnet18").parameters()))
    assert repr(StepLR(optimiser, 5)) == "StepLR(SGD(...), 5)"
    assert repr(MultiStepLR(optimiser, (3, 4))) == "MultiStepLR(SGD(...), [3, 4])"
    assert repr(WarmUp(CosineLR(optimiser, 10), 3)) == "WarmUp(CosineLR(SGD(...), 10), 3)"
    assert repr(OneCycleLR(optimiser, 0.2, 100, pct_start=0.2)) == "OneCycleLR(SGD(...), 0.2, 100, pct_start=0.2)"


def test_data_and_a_trainer_print_no_pixels():
    data = Dataset(np.zeros((6, 8, 8, 3), np.uint8), np.arange(6), ("a", "b", "c", "d", "e", "f"))
    assert repr(data) == "Dataset(<uint8 (6, 8, 8, 3)>, <int64 (6,)>, ('a', ... 6 in all))"
    loader = Loader(data, 2, mean=[0.5] * 3, std=[1] * 3, shuffle=True, rng=np.random.default_rng(0))
    assert repr(loader) == f"Loader({data!r}, 2, shuffle=True)"
    model = build_model("resnet20", 6)
    trainer = repr(Trainer(model, SGD(model.parameters(), 0.1), loader, loader))
    assert trainer.startswith("Trainer(ResNet(...), SGD([Parameter(") and "0x" not in trainer and "\n" not in trainer


def test_a_layer_of_ones_own_and_a_parameter():
    class Scale(Layer):
        def __init__(self, factor, offset=0.0, *, rng=None):
            self.factor, self.rng = factor, np.random.default_rng(rng)

    assert repr(Scale(2.0)) == "Scale(2.0)"
    assert repr(Parameter(np.ones(3))) == "Parameter(<float64 (3,)>)"


def test_nothing_public_prints_its_address(rng):
    from minires.study.subjects import LAYERS

    assert {name.split()[0] for name in LAYERS} == set(minires.layers.__all__)
    for make, _ in LAYERS.values():
        assert " object at 0x" not in repr(make(rng))
