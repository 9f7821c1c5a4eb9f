"""Layers and parameters are found wherever a layer keeps them; Sequential takes nothing else."""
import numpy as np
import pytest

from minires import SGD, CrossEntropyLoss, compile
from minires.backends import use_backend
from minires.errors import UserError
from minires.layer import Layer, Parameter, Sequential
from minires.layers import Conv2d, Dropout, Identity, Linear, ReLU
from minires.study import check_gradients


class Net(Layer):
    """Layers in a list, a dict within a tuple, and one that is kept twice."""

    def __init__(self):
        self.parts = [Linear(3, 4, rng=0), ReLU()]
        self.more = ({"last": Linear(4, 4, rng=1)},)
        self.head = Linear(4, 2, rng=2)
        self.order = [*self.parts, self.more[0]["last"], self.head]

    def forward(self, x):
        for layer in self.order:
            x = layer.forward(x)
        return x

    def backward(self, dy):
        for layer in reversed(self.order):
            dy = layer.backward(dy)
        return dy


def test_layers_in_containers_are_found_once_and_learn():
    net = Net()
    names = ["parts.0.weight", "parts.0.bias", "more.0.last.weight", "more.0.last.bias", "head.weight", "head.bias"]
    assert [name for name, _ in net.named_parameters()] == names == list(net.state_dict())
    net.eval()
    assert not any(layer.training for layer in net.order)
    net.train().astype(np.float64)
    assert {parameter.data.dtype for parameter in net.parameters()} == {np.dtype(np.float64)}
    with use_backend("reference"):
        check_gradients(net, np.random.default_rng(0).standard_normal((5, 3)), rng=0)
        net.astype(np.float32)
        x, target = np.ones((4, 3), np.float32), np.array([0, 1, 0, 1])
        before = net.state_dict()
        step, optimiser = compile(net, CrossEntropyLoss()), SGD(net.parameters(), 0.1)
        for _ in range(2):
            step(x, target)
            optimiser.step()
        after = net.state_dict()
        assert all(not np.array_equal(before[name], after[name]) for name in names)
    net.load_state_dict(before)
    np.testing.assert_array_equal(net.parts[0].weight.data, before["parts.0.weight"])


def test_parameters_in_a_list_are_found_and_a_list_in_itself_is_refused():
    class Scales(Layer):
        def __init__(self):
            self.scales = [Parameter(np.ones(2, np.float32)), Parameter(np.ones(3, np.float32))]

    layer = Scales()
    assert list(layer.state_dict()) == ["scales.0", "scales.1"]
    layer.again = layer.scales[0]  # one that is kept twice is moved once
    assert [name for name, _ in layer.named_parameters()] == ["scales.0", "scales.1"]
    layer.scales.append(layer.scales)
    with pytest.raises(UserError, match=r"scales\.2 is kept in itself"):
        layer.parameters()


class Scaled(Net):
    """`Net`, and numbers in containers that multiply what comes out."""

    def __init__(self):
        super().__init__()
        self.scales, self.options = [Parameter(np.ones(1, np.float32))], {"factors": [1.0]}

    def forward(self, x):
        y = super().forward(x)
        self._save(y)
        return y * (self.scales[0].data * np.float32(self.options["factors"][0]))

    def backward(self, dy):
        (y,) = self._saved()
        dy = dy * np.float32(self.options["factors"][0])
        self.scales[0].accumulate((dy * y).sum().reshape(1))
        return super().backward(dy * self.scales[0].data)


def another_array(net):
    net.scales[0].data = np.full(1, 5, np.float32)


def another_parameter(net):
    net.scales[0] = Parameter(np.full(1, 5, np.float32))


def another_layer(net):
    net.order[1] = net.parts[1] = Identity()


def another_order(net):
    net.order[1:3] = net.order[2:0:-1]


def another_number(net):
    net.options["factors"][0] = 3.0


@pytest.mark.parametrize("change", [another_array, another_parameter, another_layer, another_order, another_number])
def test_a_plan_notices_what_changes_in_containers(change):
    net, plain, loss = Scaled(), Scaled(), CrossEntropyLoss()
    step, predict = compile(net, CrossEntropyLoss()), compile(net)
    x, target = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32), np.array([0, 1, 0, 1])
    step(x, target), predict(x)
    change(net), change(plain)
    y = plain.forward(x)
    value = loss.forward(y, target)
    plain.backward(loss.backward())
    np.testing.assert_allclose(predict(x), y, rtol=1e-5)
    assert step(x, target)[0] == pytest.approx(value, rel=1e-5)
    for mine, other in zip(net.parameters(), plain.parameters(), strict=True):
        np.testing.assert_allclose(mine.grad, other.grad, rtol=1e-5, atol=1e-6)


def test_a_layer_that_is_used_twice_is_updated_once():
    shared = Linear(3, 3, rng=0)
    assert len(Sequential(shared, ReLU(), shared).parameters()) == 2


@pytest.mark.parametrize(("wrong", "says"), [
    ([[Linear(3, 3), ReLU()]], r"got a list at place 0: write Sequential\(\*layers\)"),
    ([ReLU(), None], "NoneType at place 1"), ([ReLU], "got a type at place 0"), (["relu"], "got a str")])
def test_sequential_takes_layers_only(wrong, says):
    with pytest.raises(UserError, match=says):
        Sequential(*wrong)


def test_layers_without_a_generator_differ_and_a_program_makes_them_again():
    import minires

    def make():
        minires.seed(3)
        return [Conv2d(4, 4, 3), Conv2d(4, 4, 3)], [Dropout(0.5), Dropout(0.5)]

    (one, other), (drop, drop_other) = make()
    assert not np.array_equal(one.weight.data, other.weight.data)
    assert drop.rng.random() != drop_other.rng.random()
    np.testing.assert_array_equal(make()[0][1].weight.data, other.weight.data)


@pytest.mark.parametrize("x", [[[1.0, 2.0, 3.0]], None, "x", 3.0])
def test_what_is_no_array_is_named(x):
    with pytest.raises(UserError, match=f"Linear computes with NumPy and CuPy arrays, got a builtins.{type(x).__name__}"):
        Linear(3, 2).forward(x)


def test_a_tensor_of_pytorch_is_named():
    torch = pytest.importorskip("torch")
    with pytest.raises(UserError, match=r"got a torch\.Tensor: use numpy\.asarray"):
        Conv2d(3, 4, 3).forward(torch.zeros(1, 8, 8, 3))
