"""Networks of random layers: forward, dx and every parameter's gradient, held against the reference and PyTorch.

Errors are relative to the largest entry of an array, or to FLOOR of the network's largest gradient if that is more: what is
zero in exact arithmetic, as the gradient of a bias before a batch normalisation, is rounding in every back end.
"""
from contextlib import nullcontext

import numpy as np
import pytest
import random_networks
from conftest import each_backend
from hypothesis import assume, given

import minires
from minires.backends import reference, to_device, to_numpy, use_backend
from minires.layers import LeakyReLU, MaxPool2d, ReLU
from minires.study.planned import Given

FLOOR = 1e-4
# float32 is compared where rounding does not decide whether a ReLU is open, or which pixel is a window's largest.
MARGIN = 1e-5


def outcome(model, network, dtype, device="cpu", heard=()):
    """y, dx and the gradients of a network on its x and dy, in float64."""
    rng = np.random.default_rng(1)
    model.to(device)
    x = rng.standard_normal(network.shape)
    for layer in heard:
        layer.listeners = (heard[layer],)
    y = model.forward(to_device(x.astype(dtype), device))
    dx = model.backward(to_device(rng.standard_normal(y.shape).astype(dtype), device))
    arrays = {"y": y, "dx": dx, **{name: parameter.grad for name, parameter in model.named_parameters()}}
    assert all(array.dtype == dtype for array in arrays.values())
    statistics = {name: array for name, array in model.state_dict().items() if "running" in name}
    return {name: to_numpy(array).astype(np.float64) for name, array in {**arrays, **statistics}.items()}


def errors(found, expected):
    """By name, for arrays of the same shapes."""
    assert found.keys() == expected.keys()
    assert all(found[name].shape == expected[name].shape for name in found)
    largest = max(np.abs(array).max() for name, array in expected.items() if name != "y" and "running" not in name)
    return {name: np.abs(found[name] - array).max() / max(np.abs(array).max(), FLOOR * largest, 1e-300)
            for name, array in expected.items()}


def by_reference(network, dtype=np.float64, heard=None):
    """The same, computed by the reference, layer by layer."""
    with use_backend("reference"):
        model = network.build(dtype)
        listeners = {} if heard is None else {layer: heard for _, layer in model.named_layers()}
        return outcome(model, network, dtype, heard=listeners)


@pytest.mark.parametrize("module", each_backend("reference", "cpu", "cuda"))
@random_networks.examples(25)
@given(network=random_networks.networks())
def test_in_float64(module, network):
    """Layer by layer, and planned: the first run of a plan and the ones that repeat it, and its folded forward pass."""
    expected = by_reference(network)
    if module != "reference":
        wrong = errors(outcome(network.build(), network, np.float64, module), expected)
        assert max(wrong.values()) < 1e-10, wrong
    model, rng = network.build(), np.random.default_rng(1)
    x = rng.standard_normal(network.shape)
    dy = rng.standard_normal(expected["y"].shape)
    device = "cuda" if module == "cuda" else "cpu"
    model.to(device)
    before = {name: to_numpy(array).copy() for name, array in model.state_dict().items()}
    step = minires.compile(model, Given(), input_gradient=True)
    predict = minires.compile(model)
    with use_backend("reference") if module == "reference" else nullcontext():
        for _ in range(3):
            model.load_state_dict(before)
            _, y, dx = step(to_device(x, device), to_device(dy, device))
            arrays = {"y": y, "dx": dx, **{name: parameter.grad for name, parameter in model.named_parameters()},
                      **{name: array for name, array in model.state_dict().items() if "running" in name}}
            wrong = errors({name: to_numpy(array) for name, array in arrays.items()}, expected)
            assert max(wrong.values()) < 1e-10, wrong
        assert step.opaque == []
        model.load_state_dict(before)
        with use_backend("reference"):
            evaluated = network.build().eval().forward(x)
        for _ in range(2):
            y = to_numpy(predict(to_device(x, device)))
            assert np.abs(y - evaluated).max() <= 1e-10 * max(np.abs(evaluated).max(), 1)


@pytest.mark.parametrize("module", each_backend("cpu", "cuda"))
@random_networks.examples(10)
@given(network=random_networks.networks())
def test_in_float32(module, network):
    """Not further from float64 than 20 times what the reference in float32 is, and 1e-5."""
    margins = [1.0]

    def hear(layer, name, x, y):
        if name == "forward":
            margins.append(margin(layer, x))

    wide = by_reference(network, heard=hear)
    assume(min(margins) > MARGIN)
    narrow = errors(by_reference(network, np.float32), wide)
    found = errors(outcome(network.build(np.float32), network, np.float32, module), wide)
    bound = 20 * max(narrow.values()) + 1e-5
    assert max(found.values()) < bound, (found, narrow)


@random_networks.examples(25)
@given(network=random_networks.networks())
def test_in_pytorch(network):
    """The reference, which the other back ends are held against above."""
    pytest.importorskip("torch", reason="needs PyTorch: pip install 'minires[torch]'")
    import torch_twin
    from torch_resnet import from_torch, to_torch

    model, rng = network.build(), np.random.default_rng(1)
    twin = torch_twin.of(model)
    x = to_torch(rng.standard_normal(network.shape))
    y = twin(x)
    y.backward(to_torch(rng.standard_normal(from_torch(y).shape)).detach())
    expected = {"y": from_torch(y), "dx": from_torch(x.grad), **torch_twin.gradients(twin), **torch_twin.statistics(twin)}
    wrong = errors(by_reference(network), expected)
    assert max(wrong.values()) < 1e-10, wrong


def margin(layer, x):
    """How far x, relative to its largest entry, is from where the layer's gradient jumps; exact zeros and ties aside."""
    if isinstance(layer, ReLU | LeakyReLU):
        gaps = np.abs(x)
    elif isinstance(layer, MaxPool2d):
        border = [(0, 0), *((width, width) for width in layer.padding), (0, 0)]
        patches = reference.im2col(np.pad(x, border, constant_values=-1e9), layer.kernel_size, layer.stride, (0, 0),
                                   layer.dilation)
        gaps = np.diff(np.sort(patches.reshape(*patches.shape[:3], -1, x.shape[3]), 3)[:, :, :, -2:], axis=3)
    else:
        return 1.0
    gaps = gaps[gaps > 0]
    return gaps.min(initial=1e9) / (np.abs(x).max() or 1)
