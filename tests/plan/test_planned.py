"""Layers as a plan computes them: `Planned` keeps a layer's contract, and its gradients are the derivative's."""
import numpy as np
import pytest

from minires.backends import HOST_BACKENDS, use_backend
from minires.layer import Layer, Parameter, Sequential
from minires.layers import BasicBlock, Conv2d, Linear, ReLU
from minires.losses import CrossEntropyLoss
from minires.plan import compile
from minires.study import check_gradients, distinct_nonzero, randomise_parameters
from minires.study.planned import Planned


class Offset(Layer):
    """y = x + offset: the parameter's gradient is dL/dx."""

    def __init__(self, *shape):
        self.offset = Parameter(np.zeros(shape, np.float32))

    def forward(self, x):
        return x + self.offset.data

    def backward(self, dy):
        self.offset.accumulate(dy)
        return dy


@pytest.mark.parametrize("before", [(), (ReLU(),)], ids=["first", "after a ReLU"])
def test_a_parameter_whose_gradient_is_that_of_an_image(before, backend, rng):
    """A convolution's dx is added to a gradient, as its dweight is: the plan tells them apart."""
    layers = Sequential(*before, Offset(2, 5, 4, 3), Conv2d(3, 4, 3, padding=1, bias=False, rng=rng), ReLU())
    layer = randomise_parameters(Planned(layers.astype(np.float64)), rng)
    report = check_gradients(layer, distinct_nonzero((2, 5, 4, 3), rng), rng)
    assert len(report.tensors) == 3


def test_a_planned_layer_has_the_names_and_numbers_of_the_one_inside(backend, rng):
    block = randomise_parameters(BasicBlock(3, 4, 2, rng=rng).astype(np.float64), rng)
    planned, x = Planned(block), rng.standard_normal((2, 5, 4, 3))
    assert planned.state_dict().keys() == block.state_dict().keys()
    y = block.forward(x)
    dy = rng.standard_normal(y.shape)
    dx, gradients = block.backward(dy), [parameter.grad.copy() for parameter in block.parameters()]
    np.testing.assert_allclose(planned.forward(x), y, rtol=1e-12)
    np.testing.assert_allclose(planned.backward(dy), dx, rtol=0, atol=1e-12 * np.abs(dx).max())
    for once, parameter in zip(gradients, planned.parameters(), strict=True):
        np.testing.assert_allclose(parameter.grad, 2 * once, rtol=0, atol=1e-12 * np.abs(once).max())  # added, as always
    with pytest.raises(RuntimeError, match=r"Planned.backward needs what forward keeps"):
        planned.backward(dy)


def test_the_loss_of_a_step_is_a_float(rng):
    """Of the reference too, which gives a NumPy scalar."""
    x, target = rng.standard_normal((3, 5), np.float32), np.array([0, 1, 1])
    for name in HOST_BACKENDS:
        with use_backend(name):
            assert type(compile(Linear(5, 2, rng=rng), CrossEntropyLoss())(x, target)[0]) is float
