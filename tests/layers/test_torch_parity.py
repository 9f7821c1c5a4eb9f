"""Every layer against PyTorch: output, dx, every parameter's gradient and running statistics, on odd cases."""
import numpy as np
import pytest
from cases import AVG_POOLS, CONVOLUTIONS, IMAGES, LINEARS, MAX_POOLS
from conftest import relative_error

import minires.layers as ours
from minires.backends import ops_for
from minires.interop.torch import load_torch_weights, to_torch_state_dict
from minires.layer import Sequential
from minires.losses import CrossEntropyLoss, MSELoss
from minires.models import build_model

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'minires[torch]'")
torch_resnet = pytest.importorskip("torch_resnet")
nn, from_torch, to_torch = torch.nn, torch_resnet.from_torch, torch_resnet.to_torch

DTYPES = {np.float64: 1e-10, np.float32: 5e-5}


def case_name(case):
    return "-".join(str(part).replace(" ", "") for part in case)


def compare(layer, module, x, rng, dtype, tolerance=None):
    """Give the layer random weights of the module; compare what both compute and derive. Both keep their mode."""
    tolerance = tolerance or DTYPES[dtype]
    module.to(torch.float64 if dtype == np.float64 else torch.float32)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                spread = torch.from_numpy(rng.standard_normal(tuple(tensor.shape)))
                scale = np.sqrt(2 / tensor[0].numel()) if tensor.ndim > 1 else 0.5
                tensor.copy_(spread.abs() + 0.5 if name.endswith("var") else spread * scale)
    load_torch_weights(layer.astype(dtype), module.state_dict())
    x = x.astype(dtype)
    x_torch = to_torch(x)
    y_torch = module(x_torch)
    dy = rng.standard_normal(from_torch(y_torch).shape).astype(dtype)
    y_torch.backward(to_torch(dy).detach())
    results = {"y": (layer.forward(x), from_torch(y_torch)), "dx": (layer.backward(dy), from_torch(x_torch.grad))}
    grads = dict(layer.named_parameters())
    for name, parameter in module.named_parameters():
        grad = parameter.grad
        grad = grad.permute(2, 3, 1, 0) if grad.ndim == 4 else grad.T if grad.ndim == 2 else grad
        results[name] = grads.pop(name).grad, grad.numpy()
    assert not grads
    statistics = to_torch_state_dict(layer)
    for name, buffer in module.named_buffers():
        if not name.endswith("num_batches_tracked"):
            results[name] = statistics[name], buffer.numpy()
    errors = {name: relative_error(*pair) for name, pair in results.items()}
    assert max(errors.values()) <= tolerance, errors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=case_name)
def test_conv2d(case, bias, dtype, backend, rng):
    N, H, W, C, O, *geometry = case
    x = rng.standard_normal((N, H, W, C))
    compare(ours.Conv2d(C, O, *geometry, bias=bias), nn.Conv2d(C, O, *geometry, bias=bias), x, rng, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", MAX_POOLS, ids=case_name)
def test_max_pool(case, dtype, backend, rng):
    N, H, W, C, *geometry = case
    x = rng.standard_normal((N, H, W, C))
    for images in (x, np.round(x)):  # rounded: ties, which go to the first in both
        compare(ours.MaxPool2d(*geometry), nn.MaxPool2d(*geometry), images, rng, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_max_pool_of_infinity_and_nan(dtype, backend, rng):
    x = np.full((1, 5, 5, 3), -np.inf)
    x[0, 4, 4, 1], x[0, 2, 2, 2] = np.nan, np.inf
    compare(ours.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1), x, rng, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", AVG_POOLS, ids=case_name)
def test_avg_pool(case, dtype, backend, rng):
    N, H, W, C, kernel, stride, padding, _ = case
    x = rng.standard_normal((N, H, W, C))
    compare(ours.AvgPool2d(kernel, stride, padding), nn.AvgPool2d(kernel, stride, padding), x, rng, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [shape for shape in IMAGES if np.prod(shape[:3]) > 2], ids=case_name)
def test_batchnorm(shape, training, dtype, backend, rng):
    C = shape[3]
    layer, module = ours.BatchNorm2d(C, eps=1e-3, momentum=0.3), nn.BatchNorm2d(C, eps=1e-3, momentum=0.3)
    compare(layer.train(training), module.train(training), 2 * rng.standard_normal(shape) + 0.5, rng, dtype)


def test_running_statistics_after_several_steps(backend, rng):
    layer, module = ours.BatchNorm2d(5).astype(np.float64), nn.BatchNorm2d(5).double()
    for step in range(6):
        x = rng.standard_normal((2, 2, 1 + step % 2, 5)) * (1 + step) + step
        layer.forward(x)
        module(to_torch(x))
    assert relative_error(layer.running_mean, module.running_mean.numpy()) < 1e-14
    assert relative_error(layer.running_var, module.running_var.numpy()) < 1e-14
    before, x = layer.state_dict(), rng.standard_normal((3, 4, 4, 5))
    assert relative_error(layer.eval().forward(x), from_torch(module.eval()(to_torch(x)))) < 1e-14
    assert all(np.array_equal(before[name], array) for name, array in layer.state_dict().items())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 3), (4, 7), (33, 130), (2, 3, 17), (2, 5, 3, 5), (2, 8, 8, 64)], ids=case_name)
def test_layernorm(shape, dtype, backend, rng):
    """On the last axis in both, so images need no change of layout."""
    layer, module = ours.LayerNorm(shape[-1]), nn.LayerNorm(shape[-1])
    x = rng.standard_normal(shape)
    if len(shape) == 4:
        module = nn.Sequential()
        module.add_module("norm", nn.LayerNorm(shape[-1]))
        inner = module.norm
        module.forward = lambda x: inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        layer = Sequential(layer)
        layer.norm = vars(layer).pop("0")
    compare(layer, module, x, rng, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", LINEARS, ids=case_name)
def test_linear(case, bias, dtype, backend, rng):
    N, C, K = case
    compare(ours.Linear(C, K, bias=bias), nn.Linear(C, K, bias=bias), rng.standard_normal((N, C)), rng, dtype)


class GlobalMean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class FlattenChannelsLast(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", IMAGES, ids=case_name)
def test_what_has_no_parameters(shape, dtype, backend, rng):
    x = rng.standard_normal(shape)
    compare(ours.ReLU(), nn.ReLU(), np.round(2 * x), rng, dtype)  # with zeros: the slope at the kink is 0 in both
    compare(ours.LeakyReLU(0.2), nn.LeakyReLU(0.2), np.round(2 * x), rng, dtype)
    compare(ours.LeakyReLU(), nn.LeakyReLU(), x, rng, dtype)
    compare(ours.GELU(), nn.GELU(), 3 * x, rng, dtype)
    compare(ours.SiLU(), nn.SiLU(), 3 * x, rng, dtype)
    compare(ours.GlobalAvgPool2d(), GlobalMean(), x, rng, dtype)
    compare(ours.Identity(), nn.Identity(), x, rng, dtype)
    compare(ours.Dropout(0.4).eval(), nn.Dropout(0.4).eval(), x, rng, dtype)
    for more, stride in [(0, 2), (7, 2), (4, 1)]:
        shortcut = torch_resnet.PaddedShortcut(shape[3], shape[3] + more, stride)
        compare(ours.PaddedShortcut(shape[3] + more, stride), shortcut, x, rng, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_flatten(dtype, backend, rng):
    layer, x = ours.Flatten(), rng.standard_normal((3, 4, 5, 2)).astype(dtype)
    x_torch = to_torch(x)
    y_torch = FlattenChannelsLast()(x_torch)
    dy = rng.standard_normal((3, 40)).astype(dtype)
    y_torch.backward(torch.from_numpy(dy))
    assert np.array_equal(layer.forward(x), y_torch.detach().numpy())
    assert np.array_equal(layer.backward(dy), from_torch(x_torch.grad))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_with_its_own_draw(dtype, backend, rng):
    layer, x = ours.Dropout(0.25, rng=rng), rng.standard_normal((50, 40)).astype(dtype)
    y = layer.forward(x)
    keep = torch.from_numpy(y != 0)
    x_torch = to_torch(x)
    y_torch = torch.where(keep, x_torch / 0.75, 0)
    dy = rng.standard_normal(x.shape).astype(dtype)
    y_torch.backward(torch.from_numpy(dy))
    assert relative_error(y, y_torch.detach().numpy()) < 1e-6
    assert relative_error(layer.backward(dy), x_torch.grad.numpy()) < 1e-6
    assert 0.70 < keep.double().mean() < 0.80


BLOCKS = {
    "BasicBlock identity": ("BasicBlock", (5, 5, 1, "A"), (3, 5, 4, 5)),
    "BasicBlock A": ("BasicBlock", (16, 32, 2, "A"), (2, 7, 8, 16)),
    "BasicBlock A odd": ("BasicBlock", (3, 8, 2, "A"), (2, 5, 5, 3)),
    "BasicBlock B": ("BasicBlock", (16, 32, 2, "B"), (2, 7, 8, 16)),
    "BasicBlock B one pixel wide": ("BasicBlock", (3, 3, 2, "B"), (4, 5, 1, 3)),
    "Bottleneck": ("Bottleneck", (8, 4, 2, "B"), (2, 5, 6, 8)),
    "Bottleneck identity": ("Bottleneck", (16, 4, 1, "B"), (2, 3, 3, 16)),
    "PlainBlock": ("PlainBlock", (3, 5, 2), (3, 7, 5, 3)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_block(name, training, dtype, backend, rng):
    kind, arguments, shape = BLOCKS[name]
    layer, module = getattr(ours, kind)(*arguments), getattr(torch_resnet, kind)(*arguments)
    compare(layer.train(training), module.train(training), rng.standard_normal(shape), rng, dtype,
            {np.float64: 1e-10, np.float32: 1e-4}[dtype])


NETWORKS = {
    "one block a stage": (("resnet8", 10, "B"), lambda: torch_resnet.cifar_resnet(8, "B"), (4, 9, 8, 3)),
    "resnet20 A": (("resnet20",), lambda: torch_resnet.cifar_resnet(20), (4, 16, 16, 3)),
    "resnet20 B": (("resnet20", 10, "B"), lambda: torch_resnet.cifar_resnet(20, "B"), (3, 15, 17, 3)),
    "resnet32 100 classes": (("resnet32", 100), lambda: torch_resnet.cifar_resnet(32, num_classes=100), (2, 16, 16, 3)),
    "plain20": (("plain20",), lambda: torch_resnet.cifar_resnet(20, block=torch_resnet.PlainBlock), (4, 16, 16, 3)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_network(name, training, backend, rng):
    arguments, make, shape = NETWORKS[name]
    model, x = build_model(*arguments).train(training), rng.standard_normal(shape)
    compare(model, make().train(training), x, rng, np.float64, 1e-9)


def test_imagenet_stem(rng):
    """7x7 stride 2 and max pooling in front of four stages."""
    module = torch_resnet.ResNet(torch_resnet.BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512), "B", "imagenet", 7)
    compare(build_model("resnet18", 7, "B", "imagenet"), module, rng.standard_normal((2, 33, 31, 3)), rng, np.float64, 1e-9)


# --- losses ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("scale", [1, 1e4])
def test_cross_entropy(dtype, smoothing, scale, backend, rng):
    for N, _, K in LINEARS:
        y, target = (scale * rng.standard_normal((N, K))).astype(dtype), rng.integers(0, K, N)
        y_torch = to_torch(y)
        expected = nn.CrossEntropyLoss(label_smoothing=smoothing)(y_torch, torch.from_numpy(target))
        expected.backward()
        loss = CrossEntropyLoss(smoothing)
        value = loss.forward(y, target)
        assert isinstance(value, float)
        assert value == pytest.approx(expected.item(), rel=1e-12 if dtype == np.float64 else 1e-6, abs=1e-7)
        grad = loss.backward()
        assert grad.dtype == dtype
        np.testing.assert_allclose(grad, y_torch.grad.numpy(), rtol=0, atol=1e-15 if dtype == np.float64 else 3e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mse(dtype, backend, rng):
    y, target = rng.standard_normal((2, 4, 7)).astype(dtype)
    y_torch = to_torch(y)
    expected = nn.MSELoss()(y_torch, torch.from_numpy(target))
    expected.backward()
    loss = MSELoss()
    assert loss.forward(y, target) == pytest.approx(expected.item(), rel=1e-6 if dtype == np.float32 else 1e-14)
    assert relative_error(loss.backward(), y_torch.grad.numpy()) < DTYPES[dtype]


def test_the_backend_under_test_is_the_one_used(backend):
    assert ops_for(np.ones(1)).__name__ == f"minires.backends.{backend}"
