"""Listeners of a layer, and `calls_go_to`: who is told what, in which order, and that nothing of it stays."""
import copy
import inspect
import pickle

import numpy as np
import pytest

from minires.backends import use_backend
from minires.layer import Layer, Sequential, calls_go_to, inference_mode, listening
from minires.layers import BasicBlock, BatchNorm2d, Conv2d, Linear, ReLU
from minires.models import build_model
from minires.study.bugs import BUGS, inject
from minires.study.summary import summarise
from minires.study.taps import tapped
from minires.study.xray import lesion
from minires.study.xray.gradients import body, watched


@pytest.fixture(autouse=True)
def by_the_reference():
    """Whoever computes, the same is told; and the reference needs no kernels."""
    with use_backend("reference"):
        yield


class Times(Layer):
    """y = factor * x."""

    def __init__(self, factor):
        self.factor = factor

    def forward(self, x):
        self._save()
        return self.factor * x

    def backward(self, dy):
        self._saved()
        return self.factor * dy


class TimesPlusOne(Times):
    """y = factor * x + 1, by way of the class above."""

    def forward(self, x):
        return super().forward(x) + 1

    def backward(self, dy):
        return super().backward(dy) * 1


X, DY = np.array([1.0, 2.0]), np.array([3.0, 5.0])


class Notes(list):
    """A listener that notes all it is told."""

    def __call__(self, layer, method, array, result):
        self.append((layer, method, array.tolist(), result.tolist()))


def own_listeners(model):
    return [name for name, layer in model.named_layers() if "listeners" in vars(layer)]


# --- what a listener is told ---


def test_both_passes_are_told_with_what_came_in_and_what_goes_out():
    layer, notes = Times(2.0), Notes()
    with listening([layer], notes):
        y, dx = layer(X), layer.backward(DY)
    assert notes == [(layer, "forward", [1, 2], [2, 4]), (layer, "backward", [3, 5], [6, 10])]
    assert y.tolist() == [2, 4] and dx.tolist() == [6, 10]


def test_the_arrays_are_those_of_the_call_and_not_copies():
    layer, told = Times(2.0), []
    with listening([layer], lambda *call: told.extend(call)):
        y = layer.forward(X)
    assert told[2] is X and told[3] is y


def test_a_container_is_told_after_its_layers_on_both_ways():
    model, order = Sequential(Times(2.0), Sequential(Times(3.0), Times(5.0))), []
    names = {layer: name for name, layer in model.named_layers()}
    with listening(names, lambda layer, method, *_: order.append(f"{method} {names[layer]}")):
        model.backward(model.forward(X))
    assert order == ["forward 0", "forward 1.0", "forward 1.1", "forward 1", "forward ",
                     "backward 1.1", "backward 1.0", "backward 1", "backward 0", "backward "]


def test_only_the_layers_that_are_named_are_heard():
    model, notes = Sequential(Times(2.0), Times(3.0)), Notes()
    with listening([model[1]], notes):
        model.forward(X)
    assert [layer for layer, *_ in notes] == [model[1]]


def test_super_is_not_told_a_second_time():
    layer, notes = TimesPlusOne(2.0), Notes()
    with listening([layer], notes):
        layer.backward(layer.forward(X))
    assert [(method, result) for _, method, _, result in notes] == [("forward", [3, 5]), ("backward", [6, 10])]


def test_an_inherited_method_is_told():
    class Double(Times):
        def __init__(self):
            super().__init__(2.0)

    layer, notes = Double(), Notes()
    with listening([layer], notes):
        layer.forward(X)
    assert len(notes) == 1


def test_a_forward_in_inference_mode_is_told():
    block, notes = BasicBlock(3, 3).eval(), Notes()
    with listening([block], notes), inference_mode():
        block.forward(np.ones((1, 4, 4, 3), np.float32))
    assert [method for _, method, *_ in notes] == ["forward"]


# --- results that are replaced ---


def test_what_a_listener_returns_takes_the_results_place():
    model = Sequential(Times(2.0), Times(3.0))

    def replace(layer, method, array, result):
        return result + (1 if method == "forward" else 10)

    with listening([model[0]], replace):
        assert model.forward(X).tolist() == [9, 15]
        assert model.backward(DY).tolist() == [28, 40]
    assert model.forward(X).tolist() == [6, 12]


def test_none_leaves_the_result_and_zero_does_not():
    layer = Times(2.0)
    with listening([layer], lambda *_: None):
        assert layer.forward(X).tolist() == [2, 4]
    with listening([layer], lambda *_: 0):
        assert layer.forward(X) == 0


def test_a_later_listener_gets_what_an_earlier_one_made_of_the_result():
    layer, before, after = Times(2.0), Notes(), Notes()
    with listening([layer], before), listening([layer], lambda layer, method, x, y: y + 1), listening([layer], after):
        assert layer.forward(X).tolist() == [3, 5]
    assert [note[3] for note in (*before, *after)] == [[2, 4], [3, 5]]


# --- coming and going ---


def test_listeners_go_in_whatever_order_and_leave_the_others():
    layer, first, second = Times(2.0), Notes(), Notes()
    one, other = listening([layer], first), listening([layer], second)
    one.__enter__()
    other.__enter__()
    layer.forward(X)
    one.__exit__(None, None, None)
    layer.forward(X)
    other.__exit__(None, None, None)
    layer.forward(X)
    assert (len(first), len(second)) == (1, 2)
    assert "listeners" not in vars(layer)


def test_one_that_listens_twice_is_told_twice_and_goes_once():
    layer, notes = Times(2.0), Notes()
    with listening([layer], notes):
        with listening([layer], notes):
            layer.forward(X)
        assert len(notes) == 2
        layer.forward(X)
    assert len(notes) == 3


def test_a_layer_that_is_named_twice_is_heard_once():
    layer, notes = Times(2.0), Notes()
    with listening([layer, layer], notes):
        layer.forward(X)
    assert len(notes) == 1 and "listeners" not in vars(layer)


def test_listeners_that_were_set_by_hand_stay():
    layer, mine, inside = Times(2.0), Notes(), Notes()
    layer.listeners = [mine]
    with listening([layer], Notes()):
        layer.listeners = (*layer.listeners, inside)
    layer.forward(X)
    assert len(mine) == len(inside) == 1 and list(layer.listeners) == [mine, inside]


def test_listeners_that_somebody_took_away_inside_are_no_error():
    layer = Times(2.0)
    with listening([layer], Notes()):
        layer.listeners = ()
    assert "listeners" not in vars(layer)


def test_an_error_inside_takes_the_listener_away():
    model = Sequential(Times(2.0), Times(3.0))
    with pytest.raises(ZeroDivisionError), listening([model, *model], Notes()):
        raise ZeroDivisionError
    assert own_listeners(model) == []


def test_what_cannot_be_listened_to_leaves_the_others_as_they_were():
    layer = Times(2.0)
    with pytest.raises(AttributeError), listening([layer, "no layer"], Notes()):
        pass
    assert "listeners" not in vars(layer)


@pytest.mark.parametrize("failing", ["forward", "backward"])
def test_a_listener_that_raises_leaves_the_layer_usable(failing):
    layer = Conv2d(2, 3, 3, rng=np.random.default_rng(0)).astype(np.float64)
    x = np.random.default_rng(1).standard_normal((2, 4, 4, 2))
    y = layer.forward(x)
    dx, weight = layer.backward(y), layer.weight.grad.copy()

    def fail(layer, method, *_):
        if method == failing:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), listening([layer], fail):
        layer.backward(layer.forward(x))
    layer.zero_grad()
    np.testing.assert_array_equal(layer.forward(x), y)
    np.testing.assert_array_equal(layer.backward(y), dx)
    np.testing.assert_array_equal(layer.weight.grad, weight)


def test_a_listener_that_stops_listening_as_it_is_told():
    layer, notes = Times(2.0), Notes()

    def once(layer, *_):
        layer.listeners = layer.listeners[1:]

    layer.listeners = (once, notes)
    layer.forward(X)
    layer.forward(X)
    assert len(notes) == 2 and layer.listeners == (notes,)


# --- layers stay what they are ---


@pytest.mark.parametrize("carried", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_layers_are_copied_and_pickled(carried):
    model = Sequential(Linear(2, 3, rng=np.random.default_rng(0)), ReLU()).astype(np.float64)
    with listening([model, *model], lambda *_: None):
        pass
    again = carried(model)
    np.testing.assert_array_equal(again.forward(X[None]), model.forward(X[None]))
    assert own_listeners(again) == []


def test_a_layers_source_and_signature_are_its_methods_own():
    for method in (Conv2d.forward, Conv2d(1, 1, 1).forward):
        assert inspect.getsource(method).startswith("    def forward(self, x):\n")
        assert "conv2d" in inspect.getsource(method)
    assert str(inspect.signature(Conv2d.forward)) == "(self, x)" and Conv2d.forward.__qualname__ == "Conv2d.forward"
    assert str(inspect.signature(Conv2d(1, 1, 1).backward)) == "(dy)"


# --- calls that go elsewhere ---


def test_calls_go_to_a_watch_that_makes_them_or_not():
    model, calls = Sequential(Times(2.0), Times(3.0)), []

    def watch(method, layer, array):
        calls.append(f"{method.__name__} {type(layer).__name__}")
        return array if layer is model[0] else method(layer, array)

    with calls_go_to(watch):
        assert model.forward(X).tolist() == [3, 6]
    assert calls == ["forward Sequential", "forward Times", "forward Times"]
    assert model.forward(X).tolist() == [6, 12]


def test_a_watch_inside_another_hands_on_to_it():
    model, names = Sequential(Times(2.0), Times(3.0), Times(5.0)), []

    def without(index):
        def watch(method, layer, array):
            names.append((index, method.__name__))
            return array if layer is model[index] else method(layer, array)
        return watch

    with calls_go_to(without(0)):
        with calls_go_to(without(1)):
            assert model.forward(X).tolist() == [5, 10]
        assert model.forward(X).tolist() == [15, 30]
    assert names[:5] == [(1, "forward"), (0, "forward"), (1, "forward"), (0, "forward"), (1, "forward")]


def test_listeners_hear_what_a_watch_put_in_place_and_super_goes_to_no_watch():
    layer, notes, calls = TimesPlusOne(2.0), Notes(), []

    def watch(method, layer, array):
        calls.append(method.__name__)
        return method(layer, array) * 10

    with listening([layer], notes), calls_go_to(watch):
        assert layer.forward(X).tolist() == [30, 50]
    assert calls == ["forward"] and notes[0][3] == [30, 50]


# --- those who listen ---


def test_taps_watches_and_summaries_listen_beside_one_another():
    model, seen = Sequential(Linear(2, 3), ReLU()).astype(np.float64), []
    mine = Notes()
    with (listening([model[0]], mine), tapped(model, lambda name, layer, y: seen.append(name)),
          watched({"first": model[0]}, "backward", lambda name, dx: seen.append(name))):
        model.backward(model.forward(X[None]))
        assert len(own_listeners(model)) == 3
    assert seen == ["0", "1", "", "first"] and len(mine) == 2 and own_listeners(model) == []
    network = Sequential(Conv2d(3, 2, 1), ReLU())
    with listening([network[0]], mine):
        assert [row.name for row in summarise(network, 2)] == ["0", "1"]
        assert own_listeners(network) == ["0"]


def test_a_listener_hears_a_class_whose_backward_is_wrong():
    layer, notes = Conv2d(2, 3, 1, rng=np.random.default_rng(0)).astype(np.float64), Notes()
    with inject(BUGS["conv-bias-dropped"], ("reference",)), listening([layer], notes):
        dx = layer.backward(layer.forward(np.ones((1, 2, 2, 2))))
    assert [method for _, method, *_ in notes] == ["forward", "backward"] and notes[1][3] == dx.tolist()
    assert not layer.bias.grad.any() and layer.weight.grad.any()


def test_two_lesions_at_once_in_a_whole_network(rng):
    """The parts that are cut do not run: no statistics move, no gradients come."""
    model = build_model("resnet20", shortcut="B", rng=rng).astype(np.float64)
    x, shapes = rng.standard_normal((2, 8, 8, 3)), []
    first, second = model.layer1[1], model.layer2[0]
    before = {name: array.copy() for name, array in model.state_dict().items()}
    with lesion(first, "branch"), lesion(second, "shortcut"):
        y = model.forward(x)
        model.backward(np.ones_like(y))
        with listening([first, second], lambda layer, method, x, y: shapes.append((x.shape, y.shape))):
            model.forward(x)
    assert shapes == [((2, 8, 8, 16), (2, 8, 8, 16)), ((2, 8, 8, 16), (2, 4, 4, 32))]
    changed = {name for name, array in model.state_dict().items() if not np.array_equal(array, before[name])}
    trained = {name for name, parameter in model.named_parameters() if parameter.grad.any()}
    cut = ("layer1.1.", "layer2.0.shortcut.")
    assert not any(name.startswith(cut) for name in changed | trained)
    assert "layer2.0.bn2.running_mean" in changed and {"conv1.weight", "layer2.0.conv1.weight"} <= trained
    expected = model.relu.forward(model.bn1.forward(model.conv1.forward(x)))
    for _, layer in body(model):
        expected = {first: lambda x: np.maximum(x, 0), second: lambda x: np.maximum(second.branch_forward(x), 0)}.get(
            layer, layer.forward)(expected)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


def test_a_batch_normalisation_listened_to_is_itself_again():
    layer = BatchNorm2d(3)
    before = dict(vars(layer))
    with listening([layer], Notes()):
        pass
    assert vars(layer) == before
