"""Training steps beside PyTorch's, ten of a ResNet-20 to 1e-8 and twenty of others to 1e-7: every tensor."""
import numpy as np
import pytest
from conftest import ON_DEVICE

from minires.backends import HOST_BACKENDS
from minires.interop.torch import to_torch_state_dict
from minires.losses import CrossEntropyLoss
from minires.models import build_model
from minires.optim import SGD, AdamW

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'minires[torch]'")
torch_resnet = pytest.importorskip("torch_resnet")
PlainBlock, cifar_resnet, to_torch = torch_resnet.PlainBlock, torch_resnet.cifar_resnet, torch_resnet.to_torch

OPTIMISERS = {
    "SGD": (lambda p: SGD(p, 0.05), lambda p: torch.optim.SGD(p, 0.05)),
    "momentum, weight decay": (lambda p: SGD(p, 0.05, 0.9, 5e-4), lambda p: torch.optim.SGD(p, 0.05, 0.9, 0, 5e-4)),
    "Nesterov": (lambda p: SGD(p, 0.05, 0.9, 5e-4, True), lambda p: torch.optim.SGD(p, 0.05, 0.9, 0, 5e-4, True)),
    "AdamW": (lambda p: AdamW(p, 1e-3, (0.9, 0.99), 1e-8, 0.05),
              lambda p: torch.optim.AdamW(p, 1e-3, (0.9, 0.99), 1e-8, 0.05)),
}


def ten_steps(network, module, ours, theirs, rng, backend, steps=10, size=16):
    """Train both on the same batches, with a learning rate that falls; the largest difference of any tensor.

    Of cuda without a GPU, where a step takes its time, three steps.
    """
    steps = 3 if backend == "cuda" and not ON_DEVICE else steps
    module.load_state_dict({name: torch.from_numpy(array) for name, array in to_torch_state_dict(network).items()})
    optimiser, torch_optimiser = ours(network.parameters()), theirs(module.parameters())
    loss, torch_loss = CrossEntropyLoss(0.1), torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    start, losses = network.state_dict(), []
    for _ in range(steps):
        x, target = rng.standard_normal((4, size, size, 3)), rng.integers(0, 10, 4)
        optimiser.zero_grad()
        losses.append(loss.forward(network.forward(x), target))
        network.backward(loss.backward())
        optimiser.step()
        optimiser.lr *= 0.9
        torch_optimiser.zero_grad()
        torch_loss(module(to_torch(x).detach()), torch.from_numpy(target)).backward()
        torch_optimiser.step()
        torch_optimiser.param_groups[0]["lr"] *= 0.9
    assert len(set(losses)) == steps
    moved = network.state_dict()
    assert all(np.abs(moved[name] - start[name]).max() > 1e-4 for name in moved), "a tensor was not trained"
    theirs = module.state_dict()
    return max(np.abs(array - theirs[name].numpy()).max() for name, array in to_torch_state_dict(network).items())


# On cuda with one of them: each optimiser's arithmetic there is test_optim's, each network's gradients test_torch_parity's.
@pytest.mark.parametrize(("name", "backend"), [
    *[(name, backend) for name in OPTIMISERS for backend in HOST_BACKENDS],
    pytest.param("Nesterov", "cuda", marks=pytest.mark.gpu)], indirect=["backend"])
def test_resnet20(name, backend, rng):
    network = build_model("resnet20", rng=rng).astype(np.float64)
    assert ten_steps(network, cifar_resnet(20).double(), *OPTIMISERS[name], rng, backend) < 1e-8


@pytest.mark.parametrize("backend", HOST_BACKENDS, indirect=True)
def test_projection_shortcuts(backend, rng):
    network = build_model("resnet20", shortcut="B", rng=rng).astype(np.float64)
    assert ten_steps(network, cifar_resnet(20, "B").double(), *OPTIMISERS["momentum, weight decay"], rng, backend) < 1e-8


@pytest.mark.parametrize("backend", HOST_BACKENDS, indirect=True)
def test_plain20(backend, rng):
    network = build_model("plain20", rng=rng).astype(np.float64)
    assert ten_steps(network, cifar_resnet(20, block=PlainBlock).double(), *OPTIMISERS["Nesterov"], rng, backend) < 1e-8


TWENTY_STEPS = {
    "resnet18": (("resnet18",), {}),
    "bottlenecks": (("resnet",), {"blocks": (2, 2), "channels": (8, 16), "block": "bottleneck"}),
    "pre-activation": (("resnet",), {"blocks": (2, 2), "channels": (8, 16), "block": "preactivation"}),
    "fixup": (("resnet",), {"blocks": (2, 2), "channels": (8, 16), "block": "fixup"}),
}


@pytest.mark.parametrize("optimiser", ["momentum, weight decay", "AdamW"])
@pytest.mark.parametrize("name", TWENTY_STEPS)
def test_twenty_steps(name, optimiser, rng):
    import torch_twin

    arguments, design = TWENTY_STEPS[name]
    network = build_model(*arguments, rng=rng, **design).astype(np.float64)
    if name == "fixup":  # begins with zeros behind which gradients are none, and small for many steps: away from them
        for parameter in network.parameters():
            parameter.data += 0.1 * rng.standard_normal(parameter.data.shape)
    module = torch_twin.of(network)
    assert ten_steps(network, module, *OPTIMISERS[optimiser], rng, "cpu", 20, 16 if name == "resnet18" else 8) < 1e-7
