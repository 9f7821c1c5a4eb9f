"""Summaries: published parameter counts and multiply-adds, from a forward pass that leaves no trace."""
import numpy as np
import pytest

from minires.errors import UserError
from minires.layer import Sequential
from minires.layers import Conv2d, Flatten, Linear, MaxPool2d
from minires.models import build_model
from minires.study.summary import count_parameters, summarise


# He et al. 2015, tables 1 and 6: 0.27M parameters for ResNet-20 on CIFAR-10, 0.85M for ResNet-56, 1.8e9 multiply-adds
# for ResNet-18 on ImageNet, which has 11,689,512 parameters in torchvision.
@pytest.mark.parametrize("name, options, size, parameters, multiply_adds", [
    ("resnet20", {"shortcut": "A"}, 32, 269_722, 40_551_040),
    ("resnet20", {"shortcut": "B"}, 32, 272_474, 40_813_184),
    ("plain20", {}, 32, 269_722, 40_551_040),
    ("resnet56", {}, 32, 853_018, 125_485_696),
    ("resnet18", {"num_classes": 1000, "stem": "imagenet"}, 224, 11_689_512, 1_814_073_344),
])
def test_published_numbers(name, options, size, parameters, multiply_adds):
    model = build_model(name, **options)
    rows = summarise(model, size)
    assert sum(row.parameters for row in rows) == count_parameters(model) == parameters
    assert sum(row.multiply_adds for row in rows) == multiply_adds


def test_rows_say_what_ran():
    model = Sequential(Conv2d(3, 4, (3, 1), stride=2), MaxPool2d(2), Flatten(), Linear(4 * 3 * 4, 5, bias=False))
    rows = summarise(model, 15)
    assert [(row.name, row.kind, row.output_shape, row.parameters, row.multiply_adds) for row in rows] == [
        ("0", "Conv2d", (7, 8, 4), 40, 7 * 8 * 4 * 9), ("1", "MaxPool2d", (3, 4, 4), 0, 0),
        ("2", "Flatten", (48,), 0, 0), ("3", "Linear", (5,), 240, 240)]


def test_rows_of_a_block_are_in_the_order_they_run():
    rows = summarise(build_model("resnet20", shortcut="B"), 32)
    assert [row.name for row in rows if row.name.startswith("layer2.0.")] == [
        f"layer2.0.{name}" for name in ("conv1", "bn1", "relu1", "conv2", "bn2", "shortcut.0", "shortcut.1", "relu")]


def test_the_model_is_as_before():
    model = build_model("resnet20")
    before = model.state_dict()
    summarise(model, 32)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert all(layer.training and "listeners" not in vars(layer) for _, layer in model.named_layers())
    with pytest.raises(RuntimeError, match="call forward"):
        model.backward(np.zeros((1, 10), np.float32))


def test_an_image_that_is_too_small():
    with pytest.raises(UserError, match="image size 0"):
        summarise(build_model("resnet20"), 0)
    with pytest.raises(UserError, match="no place to put its window"):
        summarise(Sequential(Conv2d(3, 4, 5)), 4)
