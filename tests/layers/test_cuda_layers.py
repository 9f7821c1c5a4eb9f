"""Layers, losses, optimisers and networks whose arrays live on the device, held against `cpu`."""
import cupy
import numpy as np
import pytest
from carried import synchronisations
from conftest import ON_DEVICE, relative_error

from minires.backends import to_device, to_numpy
from minires.backends.cpu.algorithm import use_convolution
from minires.backends.cuda import pool
from minires.errors import UserError
from minires.layers import BatchNorm2d, Conv2d, Dropout, GlobalAvgPool2d, Linear, ReLU
from minires.losses import CrossEntropyLoss, MSELoss
from minires.models import build_model
from minires.optim import SGD, AdamW
from minires.plan import compile
from minires.study import check_gradients, distinct_nonzero, randomise_parameters
from minires.study.subjects import LAYERS

pytestmark = pytest.mark.gpu
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-10}


def on_both(make, dtype, seed=1):
    """The same layer, with random weights, on cpu and on cuda."""
    return [randomise_parameters(make(np.random.default_rng(seed)).astype(dtype), np.random.default_rng(seed)).to(device)
            for device in ("cpu", "cuda")]


def assert_close(found, expected, tolerance):
    """Device arrays, or dicts of NumPy arrays, against the host's."""
    if not isinstance(expected, dict):
        found, expected = {"": to_numpy(found)}, {"": expected}
    assert found.keys() == expected.keys()
    errors = {name: relative_error(found[name], expected[name]) for name in expected}
    assert max(errors.values(), default=0) <= tolerance, errors


def gradients(layer):
    return {name: to_numpy(parameter.grad) for name, parameter in layer.named_parameters()}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, dtype, rng):
    make, shape = LAYERS[name]
    here, there = on_both(make, dtype)
    x = distinct_nonzero(shape, rng).astype(dtype)
    y = here.forward(x)
    dy = rng.standard_normal(y.shape).astype(dtype)
    y_there, waits = there.forward(cupy.asarray(x)), synchronisations()
    dx_there = there.backward(cupy.asarray(dy))
    assert synchronisations() == waits
    assert all(isinstance(array, cupy.ndarray) for _, array in there._tensors())
    assert isinstance(y_there, cupy.ndarray) and isinstance(dx_there, cupy.ndarray)
    tolerance = 5 * TOLERANCE[dtype]  # a block's batch normalisations divide by small spreads
    assert_close(y_there, y, tolerance)
    assert_close(dx_there, here.backward(dy), tolerance)
    assert_close(gradients(there), gradients(here), tolerance)
    assert_close(there.state_dict(), here.state_dict(), tolerance)


@pytest.mark.parametrize("name", ["Conv2d", "BatchNorm2d", "MaxPool2d overlapping", "Linear", "BasicBlock"])
def test_gradients_of_device_arrays(name, rng):
    make, shape = LAYERS[name]
    layer = randomise_parameters(make(rng).astype(np.float64), rng).to("cuda")
    report = check_gradients(layer, cupy.asarray(distinct_nonzero(shape, rng)), rng, complete=8, sample=8)
    assert report.error < 1e-7 and len(report.tensors) == 1 + len(layer.parameters())


def test_to_and_back_keeps_every_bit(rng):
    network = build_model("resnet20", rng=rng)
    before = network.state_dict()
    assert network.to("cuda").to("cuda") is network
    other = build_model("resnet20", rng=np.random.default_rng(5)).to("cuda").load_state_dict(before)
    for state in (network.state_dict(), other.state_dict(), network.to("cpu").state_dict()):
        assert all(np.array_equal(state[name], before[name]) for name in before)
    assert all(isinstance(array, np.ndarray) for _, array in network._tensors())


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_losses_stay_on_the_device(dtype, rng):
    y, target = rng.standard_normal((9, 7)).astype(dtype), rng.integers(0, 7, 9)
    for make, wanted in [(CrossEntropyLoss, target), (lambda: CrossEntropyLoss(0.1), target), (MSELoss, y[::-1].copy())]:
        here, there, waits = make(), make(), synchronisations()
        value = there.forward(cupy.asarray(y), cupy.asarray(wanted))
        dy = there.backward()
        assert synchronisations() == waits and isinstance(value, cupy.ndarray) and value.shape == ()
        assert float(value) == pytest.approx(here.forward(y, wanted), rel=TOLERANCE[dtype])
        assert_close(dy, here.backward(), TOLERANCE[dtype])


def test_a_target_outside_the_classes_makes_the_loss_nan(rng):
    y = cupy.asarray(rng.standard_normal((3, 4)))
    for wrong in (-1, 4):
        assert np.isnan(float(CrossEntropyLoss().forward(y, cupy.asarray(np.array([0, wrong, 3])))))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["sgd", "nesterov", "adamw"])
def test_optimisers_move_all_parameters_at_once(kind, dtype, rng):
    shapes = [(3, 3, 5, 7), (1,), (4100,), (64, 10)]
    start = [[rng.standard_normal(shape).astype(dtype) for shape in shapes] for _ in range(4)]
    make = {"sgd": lambda p: SGD(p, 0.1, 0.9, 5e-4), "nesterov": lambda p: SGD(p, 0.1, 0.9, 0.01, True, decay_all=False),
            "adamw": lambda p: AdamW(p, 0.01, weight_decay=0.05)}[kind]
    states = []
    for device in ("cpu", "cuda"):
        layers = [Linear(1, 1, bias=False).to(device) for _ in shapes]
        parameters = [layer.weight for layer in layers]
        for index, (parameter, values) in enumerate(zip(parameters, start[0], strict=True)):
            parameter.data, parameter.decays = to_device(values.copy(), device), index != 1
        optimiser = make(parameters)
        for grads in start[1:]:
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.grad = to_device(grad, device)
            launches = 0 if ON_DEVICE else cupy.counters.launches
            optimiser.step()
            assert ON_DEVICE or cupy.counters.launches - launches == (device == "cuda")
        again = make(parameters)
        again.load_state_dict(optimiser.state_dict())
        assert all(np.array_equal(array, again.state_dict()[name]) for name, array in optimiser.state_dict().items())
        moved = {f"parameter {index}": to_numpy(parameter.data) for index, parameter in enumerate(parameters)}
        states.append({**moved, **optimiser.state_dict()})
    assert_close(states[1], states[0], TOLERANCE[dtype])


def three_steps(device, dtype, planned, depth=20):
    """State of a ResNet and its optimiser after three steps on random images, and the losses; as float64."""
    rng = np.random.default_rng(3)
    network = build_model(f"resnet{depth}", rng=rng).astype(dtype).to(device)
    update, loss, losses = SGD(network.parameters(), 0.01, 0.9, 5e-4, True), CrossEntropyLoss(0.1), []
    step = compile(network, loss)
    for _ in range(3):
        x, target = rng.standard_normal((4, 8, 8, 3)).astype(dtype), rng.integers(0, 10, 4)
        x, target, waits = to_device(x, device), to_device(target, device), synchronisations()
        if planned:
            losses.append(step(x, target)[0])
        else:
            losses.append(loss.forward(network.forward(x), target))
            update.zero_grad()
            network.backward(loss.backward())
        update.step()
        assert synchronisations() == waits, "the step waits for the device"
    losses = {f"loss {step}": np.array(float(value)) for step, value in enumerate(losses)}
    state = {**losses, **network.state_dict(), **update.state_dict()}
    return {name: array.astype(np.float64) for name, array in state.items()}


@pytest.mark.parametrize("planned", [True, False])
def test_three_steps_of_resnet20_agree_with_cpu(planned):
    """In float64 to 1e-10, in float32 to 1e-5; and float32 on the device is that near to the truth, float64, as well."""
    with use_convolution("direct"):  # of the cpu's algorithms the one that rounds as little as the device
        narrow, narrow_there, wide, wide_there = (three_steps(device, dtype, planned) for dtype in (np.float32, np.float64)
                                                  for device in ("cpu", "cuda"))
    assert len(wide) == 3 + 59 + 38 + 59 + 1  # losses, parameters, statistics, velocities, steps
    assert_close(wide_there, wide, 1e-10)
    assert_close(narrow_there, wide, 1e-5)
    of_both = {name for name in narrow if not name.endswith("velocity")}  # on cpu they are further than 1e-5 from the truth
    assert_close(*({name: state[name] for name in of_both} for state in (narrow_there, narrow)), 1e-5)


@pytest.mark.parametrize("planned", [True, False])
def test_three_steps_of_a_network_of_one_block_a_stage(planned):
    """The first block is the last of its stage too, and reads the stem's output unformed."""
    here, there = (three_steps(device, np.float64, planned, depth=8) for device in ("cpu", "cuda"))
    assert_close(there, here, 1e-10)


def test_folded_evaluation(rng):
    network = randomise_parameters(build_model("resnet20", rng=rng), rng).eval()
    x = rng.standard_normal((2, 16, 16, 3)).astype(np.float32)
    expected, plain = compile(network)(x), network.forward(x)
    network.to("cuda")
    assert_close(compile(network)(cupy.asarray(x)), expected, 1e-5)
    assert_close(network.forward(cupy.asarray(x)), plain, 1e-5)


def test_dropout_draws_what_it_draws_on_cpu():
    x = np.ones((40, 30), np.float32)
    here, there = (Dropout(0.3, rng=np.random.default_rng(1)) for _ in range(2))
    y, y_there = here.forward(x), there.forward(cupy.asarray(x))
    assert np.array_equal(to_numpy(y_there), y)
    assert np.array_equal(to_numpy(there.backward(cupy.asarray(x))), here.backward(x))


def test_running_statistics_follow_on_the_device(rng):
    layer = BatchNorm2d(3).to("cuda")
    layer.forward(cupy.asarray(rng.standard_normal((4, 5, 5, 3)).astype(np.float32)))
    assert isinstance(layer.running_mean, cupy.ndarray) and layer.running_var.dtype == np.float32


def test_arrays_of_two_devices_are_one_sentence(rng):
    x = np.ones((2, 5, 5, 3), np.float32)
    with pytest.raises(UserError, match=r"Conv2d is on cuda and x on cpu: move one of them, as in layer.to\('cpu'\)"):
        Conv2d(3, 4, 3).to("cuda").forward(x)
    with pytest.raises(UserError, match=r"Conv2d is on cpu and x on cuda"):
        Conv2d(3, 4, 3).forward(cupy.asarray(x))
    layer = Linear(2, 2)
    optimiser = SGD(layer.parameters(), 0.1, 0.9)
    layer.to("cuda")
    with pytest.raises(UserError, match="SGD was made before its parameters were moved"):
        optimiser.step()


def test_arrays_of_two_dtypes_are_one_sentence():
    """A device would read the bytes of the one as numbers of the other, and beyond the end of the narrower one."""
    relu = ReLU()
    relu.forward(cupy.ones(4, np.float32))
    with pytest.raises(UserError, match="the device computes in float64 here and got an array of float32: convert it with"):
        relu.backward(cupy.ones(4))
    for make in (SGD, AdamW):
        layer = Linear(3, 2).to("cuda")
        optimiser = make(layer.parameters(), 0.1)
        layer.astype(np.float64)
        with pytest.raises(UserError, match=r"float64 and float32: make the optimiser after model.astype"):
            optimiser.step()


def test_more_images_than_a_grid_has_rows(monkeypatch, rng):
    """A grid's second axis ends at 65,535; a row of blocks an image does not."""
    monkeypatch.setattr(pool, "MOST_IMAGES", 2)
    x = rng.standard_normal((5, 3, 2, 40))
    assert_close(GlobalAvgPool2d().forward(cupy.asarray(x)), x.mean((1, 2)), 1e-12)
    monkeypatch.undo()
    grids = []
    monkeypatch.setattr(pool.Columns, "launch", lambda self, *arguments: grids.append(self.grid))
    GlobalAvgPool2d().forward(cupy.zeros((70_000, 1, 1, 1)))
    assert grids == [(1, 65_535), (1, 4_465)]


def test_results_stay_what_they_were(rng):
    """Memory of the pool is used again, but not while somebody holds a part of a result."""
    layer = Conv2d(3, 4, 3, padding=1, rng=rng).to("cuda")
    x = cupy.asarray(rng.standard_normal((2, 8, 8, 3)).astype(np.float32))
    part = layer.forward(x)[1:]
    before = to_numpy(part).copy()
    for _ in range(4):
        layer.forward(-x)
    assert np.array_equal(to_numpy(part), before)
