"""Where random numbers come from: a generator, a seed, or neither."""
import numpy as np
import pytest

import minires
from minires.errors import UserError
from minires.init import default_rng
from minires.layers import BasicBlock, Conv2d, Dropout, Linear
from minires.models import build_model


@pytest.mark.parametrize("make", [lambda **rng: Conv2d(8, 8, 3, **rng), lambda **rng: Linear(5, 5, **rng)])
def test_two_layers_made_without_a_generator_differ_and_a_program_repeats_them(make):
    first, second = make(), make()
    assert all((one.data != other.data).all()
               for one, other in zip(first.parameters(), second.parameters(), strict=True))
    minires.seed(0)
    for layer in (first, second):
        for one, other in zip(layer.parameters(), make().parameters(), strict=True):
            np.testing.assert_array_equal(one.data, other.data)
    minires.seed(1)
    assert (make().weight.data != first.weight.data).all()


@pytest.mark.parametrize("make", [lambda **rng: Conv2d(8, 8, 3, **rng), lambda **rng: Linear(5, 5, **rng),
                                  lambda **rng: build_model("resnet20", **rng)])
def test_a_seed_is_as_good_as_a_generator(make):
    for one, other in zip(make(rng=3).parameters(), make(rng=np.random.default_rng(3)).parameters(), strict=True):
        np.testing.assert_array_equal(one.data, other.data)


def test_two_dropouts_drop_different_places():
    x = np.ones((8, 8), np.float32)
    assert (Dropout(0.5).forward(x) != Dropout(0.5).forward(x)).any()
    assert (Dropout(0.5, rng=1).forward(x) == Dropout(0.5, rng=np.random.default_rng(1)).forward(x)).all()


def test_the_convolutions_of_a_block_differ():
    block = BasicBlock(4, 4)
    assert (block.conv1.weight.data != block.conv2.weight.data).all()


def test_a_network_by_name_has_seed_0_whatever_was_made_before():
    Conv2d(3, 3, 3)
    for one, other in zip(build_model("resnet20").parameters(), build_model("resnet20", rng=0).parameters(), strict=True):
        np.testing.assert_array_equal(one.data, other.data)


def test_a_generator_goes_on_where_it_is():
    rng = np.random.default_rng(5)
    assert default_rng(rng) is rng


@pytest.mark.parametrize("wrong", [-1, 0.5, "0", np.random])
def test_anything_else_is_one_sentence(wrong):
    with pytest.raises(UserError, match=r"rng must be a numpy\.random\.Generator or a seed, an int of at least 0, got"):
        Dropout(0.5, rng=wrong)
