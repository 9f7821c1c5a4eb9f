"""PyTorch's training step, recorded tensor by tensor as `minires.study.divergence` records minires' own."""
from collections import Counter

import numpy as np
import torch
from torch import nn

from minires.bench.torch_resnet import build_torch_model
from minires.errors import UserError
from minires.interop.torch import to_torch_state_dict
from minires.models import RESNETS, build_model
from minires.study.divergence import OPTIMISER, Key


class TorchSide:
    """The torch twin of a network, with the weights that minires draws from `seed`. See `divergence.MiniresSide`.

    Left out: modules that run more than once a step (a block's one ReLU).
    UserError for a network that has no twin.
    """

    def __init__(self, model, seed=0, dtype=np.float32):
        if model not in RESNETS:
            raise UserError(f"{model} has no PyTorch twin here: choose one of {', '.join(RESNETS)}")
        state = to_torch_state_dict(build_model(model, rng=np.random.default_rng(seed)))
        self.module = build_torch_model(model, state).to(torch.float64 if dtype == np.float64 else torch.float32)
        for part in self.module.modules():
            if isinstance(part, nn.ReLU):
                part.inplace = False  # the hooks would see what it overwrote
        self.optimiser = torch.optim.SGD(self.module.parameters(), **OPTIMISER)

    def step(self, x, target):
        """Train one step on x: (N, H, W, C), target: (N,); returns (loss, trace)."""
        forward, backward, calls, handles = {}, [], Counter(), []

        def watch(name, part):
            def on_forward(_, inputs, y):
                calls[name] += 1
                forward[name] = _image(y)

            def on_backward(_, dx, dy):
                backward.append((name, _image(dx[0])))

            handles.append(part.register_forward_hook(on_forward))
            handles.append(part.register_full_backward_hook(on_backward))

        for name, part in self.module.named_modules():
            watch(name, part)
        try:
            self.optimiser.zero_grad()
            images = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().requires_grad_()
            loss = nn.functional.cross_entropy(self.module.train()(images), torch.from_numpy(target))
            loss.backward()
        finally:
            for handle in handles:
                handle.remove()
        trace = {Key("forward", name, "y"): y for name, y in forward.items() if calls[name] == 1}
        parts = dict(self.module.named_modules())
        for name, dx in backward:
            for tensor, parameter in parts[name].named_parameters(recurse=False):
                trace[Key("backward", name, f"{tensor}.grad")] = _weight(parameter.grad)
            if calls[name] == 1:
                trace[Key("backward", name, "dx")] = dx
        self.optimiser.step()
        for name, array in self.module.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                layer, _, tensor = name.rpartition(".")
                trace[Key("update", layer, tensor)] = _weight(array)
        return float(loss.detach()), trace


def _image(tensor):
    """(N, C, H, W) -> (N, H, W, C), a copy; rows stay."""
    array = tensor.detach().numpy()
    return np.array(array.transpose(0, 2, 3, 1) if array.ndim == 4 else array, order="C")


def _weight(tensor):
    """PyTorch's layout -> minires', a copy."""
    array = tensor.detach().numpy()
    return np.array(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T, order="C")
