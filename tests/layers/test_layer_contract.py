"""What every layer, block and network promises, whatever it computes."""
import numpy as np
import pytest

from minires.errors import UserError
from minires.layer import Kept, Layer, Parameter, Sequential, inference_mode
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
    ReLU,
    Residual,
    Scale,
    SiLU,
)
from minires.models import build_model
from minires.study import randomise_parameters
from minires.study.subjects import LAYERS

SUBJECTS = {**LAYERS, "resnet20": (lambda rng: build_model("resnet20", rng=rng), (2, 8, 8, 3)),
            "Sequential": (lambda rng: Sequential(Linear(4, 3, rng=rng), ReLU(), Linear(3, 2, rng=rng)), (5, 4))}


@pytest.fixture(params=SUBJECTS)
def subject(request, rng):
    """(layer in float32 with random weights, x)."""
    make, shape = SUBJECTS[request.param]
    return randomise_parameters(make(rng), rng), rng.standard_normal(shape).astype(np.float32)


def test_backward_needs_one_forward_each(subject, backend):
    layer, x = subject
    with pytest.raises(RuntimeError, match="backward needs what forward keeps, and forward kept nothing yet"):
        layer.backward(x)
    y = layer.forward(x)
    layer.backward(np.ones_like(y))
    with pytest.raises(RuntimeError, match="for one backward only"):
        layer.backward(np.ones_like(y))
    with inference_mode():
        layer.forward(x)
    with pytest.raises(RuntimeError, match="nothing in inference_mode: call forward, outside inference_mode"):
        layer.backward(np.ones_like(y))
    layer.forward(x)
    layer.forget()
    with pytest.raises(RuntimeError, match="nothing yet"):
        layer.backward(np.ones_like(y))


def test_what_a_layer_holds_for_backward_is_a_tuple_or_says_why_not():
    layer, x = Identity(), np.ones(2)
    assert layer._kept is Kept.NOTHING_YET
    layer.forward(x)
    assert layer._kept == ()
    layer.backward(x)
    assert layer._kept is Kept.USED
    with inference_mode():
        layer.forward(x)
    assert layer._kept is Kept.INFERENCE
    assert layer.forget()._kept is Kept.NOTHING_YET


def test_dtypes(subject, backend):
    layer, x = subject
    for dtype in (np.float32, np.float64):
        layer.astype(dtype)
        y = layer(x.astype(dtype))
        dx = layer.backward(np.ones_like(y))
        assert (y.dtype, dx.dtype, dx.shape) == (dtype, dtype, x.shape)
        assert all(array.dtype == dtype for array in layer.state_dict().values())
        assert all(p.grad.dtype == dtype and p.grad.shape == p.data.shape for p in layer.parameters())


def test_float32_agrees_with_float64(subject, backend):
    layer, x = subject
    generators = [part.rng for _, part in layer.named_layers() if isinstance(part, Dropout)]
    states = [generator.bit_generator.state for generator in generators]
    narrow = layer.forward(x)
    for generator, state in zip(generators, states, strict=True):
        generator.bit_generator.state = state
    wide = layer.astype(np.float64).forward(x.astype(np.float64))
    np.testing.assert_allclose(narrow, wide, rtol=0, atol=1e-4 * np.abs(wide).max())


def test_evaluation_changes_nothing_and_gradients_flow(subject, backend):
    layer, x = subject
    layer.eval()
    before = layer.state_dict()
    y = layer.forward(x)
    dx = layer.backward(np.ones_like(y))
    assert np.array_equal(layer.forward(x), y), "evaluation draws nothing"
    assert all(np.array_equal(before[name], array) for name, array in layer.state_dict().items())
    assert np.abs(dx).max() > 0


def test_inference_mode_gives_the_same(subject, backend):
    layer, x = subject
    for training in (False, True):
        if training and any(isinstance(part, Dropout) for _, part in layer.named_layers()):
            continue
        layer.train(training)
        expected, before = layer.forward(x), layer.state_dict()
        with inference_mode():
            np.testing.assert_allclose(layer.forward(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        assert all(np.array_equal(before[name], array) for name, array in layer.state_dict().items())


def test_gradients_add_up_until_zeroed(subject, backend):
    layer, x = subject
    layer.eval()
    grads = []
    for _ in range(2):
        layer.backward(np.ones_like(layer.forward(x)))
        grads.append([p.grad.copy() for p in layer.parameters()])
    for once, twice in zip(*grads, strict=True):
        np.testing.assert_allclose(twice, 2 * once, rtol=1e-5, atol=1e-6 * max(np.abs(once).max(), 1e-30))
        assert np.abs(once).max() > 0
    layer.zero_grad()
    assert not any(p.grad.any() for p in layer.parameters())


def test_state_dict_round_trip(subject, rng):
    layer, _ = subject
    state = layer.state_dict()
    assert list(state)[:1] == list(dict(layer.named_parameters()))[:1]
    randomise_parameters(layer, rng)
    assert all((state[name] != array).any() for name, array in layer.state_dict().items()), "a copy, not the live weights"
    assert layer.load_state_dict(state) is layer
    assert all(np.array_equal(state[name], array) for name, array in layer.state_dict().items())


def test_load_state_dict_lists_every_misfit_and_changes_nothing(rng):
    layer = BasicBlock(3, 4, 2, rng=rng)
    before, state = layer.state_dict(), layer.state_dict()
    state["bn1.weight"] = np.ones(5)
    state["conv1.weight"] = state["conv1.weight"] + 1
    del state["bn2.running_mean"]
    state["other"] = np.ones(2)
    with pytest.raises(UserError, match=r"missing bn2.running_mean; unexpected other; bn1.weight has shape \(5,\)"):
        layer.load_state_dict(state)
    assert all(np.array_equal(before[name], array) for name, array in layer.state_dict().items())


def test_train_and_eval_reach_every_layer():
    network = build_model("resnet20")
    assert network.eval() is network
    assert not any(layer.training for _, layer in network.named_layers())
    assert all(layer.training for _, layer in network.train().named_layers())


def test_batch_statistics_in_training_running_ones_in_evaluation(backend, rng):
    layer, x = BatchNorm2d(3).astype(np.float64), 5 + 3 * rng.standard_normal((8, 4, 4, 3))
    y = layer.forward(x)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(y.var((0, 1, 2)), 1, atol=1e-4)
    np.testing.assert_allclose(layer.running_mean, 0.1 * x.mean((0, 1, 2)))
    np.testing.assert_allclose(layer.running_var, 0.9 + 0.1 * x.var((0, 1, 2), ddof=1))
    layer.eval()
    np.testing.assert_allclose(layer.forward(x), (x - layer.running_mean) / np.sqrt(layer.running_var + 1e-5))


def test_dropout_follows_its_generator(backend):
    x = np.ones((100, 100), np.float32)
    one, other = Dropout(0.3, rng=np.random.default_rng(1)), Dropout(0.3, rng=np.random.default_rng(1))
    y = one.forward(x)
    assert np.array_equal(y, other.forward(x)) and not np.array_equal(y, one.forward(x))
    assert set(np.unique(y)) == {0, np.float32(1) / np.float32(0.7)}
    assert abs(y.mean() - 1) < 0.02


def test_sequential(rng):
    layers = [Linear(4, 3, rng=rng), ReLU(), Linear(3, 2, rng=rng)]
    network = Sequential(*layers)
    assert list(network) == layers and len(network) == 3 and network[2] is layers[2]
    assert [name for name, _ in network.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_layer_without_forward_or_backward():
    with pytest.raises(NotImplementedError, match="Layer does not define forward"):
        Layer().forward(np.ones(1))
    with pytest.raises(NotImplementedError, match="Layer does not define backward"):
        Layer().backward(np.ones(1))


def test_parameter():
    parameter = Parameter(np.ones((2, 3), np.float32))
    parameter.grad += 2
    parameter.zero_grad()
    assert not parameter.grad.any() and repr(parameter) == "Parameter(<float32 (2, 3)>)"
    parameter.grad += [np.nan, np.inf, 1]
    parameter.frozen = True
    assert not parameter.grad.any()


def x(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


@pytest.mark.parametrize(("layer", "wrong", "reason"), [
    (Conv2d(3, 4, 3), x(2, 5, 5, 4), r"Conv2d expects x of shape \(N, H, W, 3\), got \(2, 5, 5, 4\)"),
    (Conv2d(3, 4, 3), x(5, 5, 3), r"expects x of shape \(N, H, W, 3\), got \(5, 5, 3\)"),
    (Conv2d(3, 4, 3), x(2, 2, 5, 3), "no place to put its window on x of shape .*0 x 3"),
    (Conv2d(3, 4, 3, dilation=3), x(2, 6, 9, 3), "no place to put its window"),
    (Conv2d(3, 4, 3), x(0, 5, 5, 3), r"empty x of shape \(0, 5, 5, 3\)"),
    (Conv2d(3, 4, 3), x(2, 5, 5, 3, dtype=np.float64), "computes in float32, got x of dtype float64"),
    (Conv2d(3, 4, 3), x(2, 5, 5, 3, dtype=np.uint8), "computes in float32, got x of dtype uint8"),
    (BatchNorm2d(3), x(1, 1, 1, 3), "more than one value per channel"),
    (BatchNorm2d(3), x(2, 4, 4, 2), "expects x of shape"),
    (BatchNorm2d(3), x(0, 4, 4, 3), "empty x"),
    (LayerNorm(3), x(2, 4), r"expects x of shape \(N, 3\), got \(2, 4\)"),
    (LayerNorm(3), x(1, 1, 1, 1, 3), "expects x of shape"),
    (Linear(3, 2), x(2, 2, 3), r"Linear expects x of shape \(N, 3\)"),
    (Linear(3, 2), x(0, 3), "empty x"),
    (MaxPool2d(3), x(1, 2, 5, 3), "no place to put its window"),
    (MaxPool2d(3), x(1, 5, 5, 3, dtype=np.int64), "float32 or float64, got x of dtype int64"),
    (AvgPool2d(2), x(5, 5, 3), "expects x of shape"),
    (GlobalAvgPool2d(), x(5, 3), r"expects x of shape \(N, H, W, C\), got \(5, 3\)"),
    (Flatten(), x(0, 2, 2, 1), "at least one image"),
    (PaddedShortcut(2, 1), x(1, 2, 2, 3), "only adds channels"),
    (BasicBlock(3, 4), x(1, 4, 4, 2), "expects x of shape"),
    (Bias(), [1.0], "Bias computes with NumPy and CuPy arrays, got a builtins.list"),
    (Bias(), x(0, 3), "empty x"),
    (Scale(), x(2, 3, dtype=np.float64), "Scale computes in float32, got x of dtype float64"),
    (Scale(3), x(2, 4), r"expects x of shape \(N, 3\), got \(2, 4\)"),
    (LayerNorm(1), [1.0], "LayerNorm computes with NumPy and CuPy arrays"),
    (LeakyReLU(), x(2, dtype=np.int64), "float32 or float64, got x of dtype int64"),
    (GELU(), x(2, dtype=np.int64), "float32 or float64, got x of dtype int64"),
    (SiLU(), [1.0], "SiLU computes with NumPy and CuPy arrays"),
    (build_model("resnet20"), x(2, 3, 32, 32), r"\(N, H, W, 3\), got \(2, 3, 32, 32\)"),
])
def test_a_wrong_x_is_one_sentence(layer, wrong, reason, backend):
    with pytest.raises(UserError, match=reason) as caught:
        layer.forward(wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("make", "reason"), [
    (lambda: Conv2d(0, 4, 3), "in_channels must be an int of at least 1 and at most 1,048,576, got 0"),
    (lambda: Conv2d(3, 4.0, 3), "out_channels must be an int"),
    (lambda: Conv2d(3, 4, 0), "kernel_size must be an int of at least 1 or a pair of them, got 0"),
    (lambda: Conv2d(3, 4, (3, 3, 3)), "kernel_size"),
    (lambda: Conv2d(3, 4, 3, stride=0), "stride"),
    (lambda: Conv2d(3, 4, 3, padding=-1), "padding"),
    (lambda: Conv2d(3, 4, 3, padding="same"), "padding must be an int of at least 0 or a pair of them, got 'same'"),
    (lambda: Conv2d(3, 4, 3, dilation=0), "dilation"),
    (lambda: MaxPool2d(2, padding=2), "padding must be at most half of kernel_size"),
    (lambda: AvgPool2d(0), "kernel_size"),
    (lambda: BatchNorm2d(0), "num_features"),
    (lambda: Linear(3, -1), "out_features"),
    (lambda: Dropout(1.0), "must be a number at least 0 and below 1, got 1.0"),
    (lambda: BasicBlock(3, 4, dropout=""), "must be a number at least 0 and below 1, got ''"),
    (lambda: GroupNorm(1, 4, eps="x"), "eps must be a number above 0, got 'x'"),
    (lambda: GroupNorm(1, 4, eps=-1), "eps must be a number above 0, got -1"),
    (lambda: LeakyReLU("a"), "slope must be a number at least 0, got 'a'"),
    (lambda: LeakyReLU(True), "slope must be a number at least 0, got True"),
    (lambda: Scale(1, "x"), "value must be a number, got 'x'"),
    (lambda: Scale(1, None), "value must be a number, got None"),
    (lambda: Residual(None), "Residual takes layers, got a NoneType as branch"),
    (lambda: Residual(Identity(), 3), "Residual takes layers, got a int as shortcut"),
    (lambda: BasicBlock(3, 4, shortcut="C"), "unknown shortcut 'C': choose A"),
    (lambda: BasicBlock(8, 4, shortcut="A"), "shortcut A only adds channels"),
    (lambda: Bottleneck(3, 4, shortcut="x"), "unknown shortcut"),
    (lambda: Identity().astype(np.float16), "minires computes in float32 or float64"),
    (lambda: Identity().astype(np.int32), "cannot convert a layer to int32"),
    (lambda: Linear(2, 2).to("tpu"), "unknown device 'tpu': choose cpu or cuda"),
])
def test_a_wrong_argument_is_one_sentence(make, reason):
    with pytest.raises(UserError, match=reason):
        make()
