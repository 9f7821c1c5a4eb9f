"""The two engines behind one face: step() trains once, infer() evaluates once, first_results() is what must agree.

Both get the same weights, batch and hyperparameters: cross-entropy, SGD with Nesterov momentum and weight decay. Each is
set up as its own documentation advises for speed: minires with fused blocks, PyTorch with its fused SGD, gradients set to
None, in-place ReLU, and compiled with static shapes. Images are standardised shapes (minires.data), kept in each engine's
own layout before the clock starts.
"""
import numpy as np

SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
VARIANTS = ("eager", "channels_last", "compiled", "compiled_channels_last")  # of PyTorch


class MiniresEngine:
    """minires, fused as the trainer has it."""

    _serving = None  # the inference mode it is in, once it is

    def __init__(self, model, weights, x, target, threads, fused=True):
        from minires.backends import set_num_threads
        from minires.layers.fused import fuse
        from minires.losses import CrossEntropyLoss
        from minires.models import build_model
        from minires.optim import SGD as Optimiser

        set_num_threads(threads)
        self.model = fuse(build_model(model), fused).load_state_dict(weights)
        self.model.input_gradient = False
        self.loss, self.optimiser = CrossEntropyLoss(), Optimiser(self.model.parameters(), **SGD)
        self.x, self.target = x, target

    def _gradients(self):
        self.optimiser.zero_grad()
        y = self.model.forward(self.x)
        loss = self.loss.forward(y, self.target)
        self.model.backward(self.loss.backward())
        return loss, y

    def step(self):
        self._gradients()
        self.optimiser.step()

    def infer(self):
        if self._serving is None:  # entered once and for all, as a program that only answers would
            from minires.layer import inference_mode

            self._serving = inference_mode()
            self._serving.__enter__()
            self.model.eval()
        return self.model.forward(self.x)

    def first_results(self, work):
        """{name: array} in PyTorch's layouts: logits, and for training loss and every gradient."""
        if work == "inference":
            return {"logits": self.infer()}
        loss, y = self._gradients()
        gradients = {}
        for name, parameter in self.model.named_parameters():
            grad = parameter.grad
            gradients[f"grad {name}"] = grad.transpose(3, 2, 0, 1) if grad.ndim == 4 else grad.T
        return {"loss": np.asarray(loss), "logits": y, **gradients}

    def arena_bytes(self):
        from minires.backends.cpu.arena import arena

        return arena.held


class TorchEngine:
    """PyTorch in one of VARIANTS."""

    _serving = None

    def __init__(self, variant, model, weights, x, target, threads):
        import torch

        from minires.bench.torch_resnet import build_torch_model

        self.torch = torch
        torch.set_num_threads(threads)
        layout = torch.channels_last if "channels_last" in variant else torch.contiguous_format
        self.module = build_torch_model(model, weights).to(memory_format=layout)
        self.model = torch.compile(self.module, dynamic=False) if "compiled" in variant else self.module
        # fused: one kernel a tensor instead of several, the quickest of torch's three implementations on a CPU
        self.optimiser = torch.optim.SGD(self.module.parameters(), fused=True, **SGD)
        self.x = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=layout)
        self.target = torch.from_numpy(target)

    def _gradients(self):
        self.optimiser.zero_grad()
        y = self.model(self.x)
        loss = self.torch.nn.functional.cross_entropy(y, self.target)
        loss.backward()
        return loss, y

    def step(self):
        self._gradients()
        self.optimiser.step()

    def infer(self):
        if self._serving is None:
            self._serving = self.torch.inference_mode()
            self._serving.__enter__()
            self.model.eval()
        return self.model(self.x)

    def first_results(self, work):
        """As MiniresEngine's."""
        if work == "inference":
            return {"logits": self.infer().numpy()}
        loss, y = self._gradients()
        gradients = {f"grad {name}": parameter.grad.numpy() for name, parameter in self.module.named_parameters()}
        return {"loss": loss.detach().numpy(), "logits": y.detach().numpy(), **gradients}
