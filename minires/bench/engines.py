"""The two engines behind one face: step() trains once, infer() evaluates once, first_results() is what must agree.

Both get the same weights, batch and hyperparameters: cross-entropy, SGD with Nesterov momentum and weight decay. Each is
set up as its own documentation advises for speed: minires planned, PyTorch with its fused SGD, gradients set to
None, in-place ReLU, compiled with static shapes and on a GPU with cuDNN's search for its quickest kernels; both multiply in
float32 there, PyTorch's TF32 is off. Images are standardised shapes (minires.data), kept in each engine's
own layout before the clock starts.

On a CPU the clock is the host's, on a GPU the device's own: events before and after the steps, which are read when both
have happened, so that launches run ahead as they do in training.
"""
import time

import numpy as np

SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
VARIANTS = ("eager", "channels_last", "compiled", "compiled_channels_last")  # of PyTorch


def host_seconds(run, steps):
    """Seconds of `steps` calls."""
    began = time.perf_counter()
    for _ in range(steps):
        run()
    return time.perf_counter() - began


def device_seconds(run, steps, event, milliseconds):
    """Seconds on the device from the first to the last of `steps` calls.

    event(): one that is recorded in the current stream; milliseconds(begin, end): the time between two that have happened.
    """
    begin = event()
    for _ in range(steps):
        run()
    end = event()
    end.synchronize()
    return milliseconds(begin, end) / 1e3


class MiniresEngine:
    """minires, planned as the trainer has it, or with `planned` False layer by layer."""

    _serving = None  # the context in which it serves, in inference mode, once it does

    def __init__(self, model, weights, x, target, threads, device="cpu", planned=True):
        from minires.backends import set_num_threads, to_device
        from minires.bench.networks import build_network
        from minires.losses import CrossEntropyLoss
        from minires.optim import SGD as Optimiser
        from minires.plan import compile

        if device == "cpu":
            set_num_threads(threads)
        self.model = build_network(model).load_state_dict(weights).to(device)
        self.optimiser = Optimiser(self.model.parameters(), **SGD)
        self.device = device
        self.x, self.target = to_device(x, device), to_device(target, device)
        self.loss = CrossEntropyLoss()
        self.gradients, self.logits = self._gradients, self.model.forward
        if planned:
            self.gradients, self.logits = compile(self.model, self.loss), compile(self.model)

    def _gradients(self, x, target):
        y = self.model.forward(x)
        value = self.loss.forward(y, target)
        self.optimiser.zero_grad()
        self.model.backward(self.loss.backward())
        return value, y

    def step(self):
        self.gradients(self.x, self.target)
        self.optimiser.step()

    def infer(self):
        if self._serving is None:  # entered once and for all, as a program that only answers would
            from minires.layer import serving_context

            self._serving = serving_context()
            self.model.eval()
        return self._serving.run(self.logits, self.x)

    def first_results(self, work):
        """{name: array} in PyTorch's layouts: logits, and for training loss and every gradient."""
        from minires.backends import to_numpy

        if work == "inference":
            return {"logits": to_numpy(self.infer())}
        loss, y = self.gradients(self.x, self.target)
        gradients = {}
        for name, parameter in self.model.named_parameters():
            grad = to_numpy(parameter.grad)
            gradients[f"grad {name}"] = grad.transpose(3, 2, 0, 1) if grad.ndim == 4 else grad.T
        return {"loss": np.asarray(float(loss)), "logits": to_numpy(y), **gradients}

    def seconds(self, run, steps):
        """Seconds of `steps` calls of `run`, by the clock of where they compute."""
        if self.device == "cpu":
            return host_seconds(run, steps)
        import cupy

        return device_seconds(run, steps, lambda: cupy.cuda.get_current_stream().record(), cupy.cuda.get_elapsed_time)

    def wait(self):
        """Return when everything that was started is done."""
        if self.device == "cuda":
            import cupy

            cupy.cuda.get_current_stream().synchronize()

    def memory(self):
        """What it held at the most beyond the process's own: {"arena_bytes"} on a CPU, {"peak_bytes"} of a GPU's memory."""
        if self.device == "cpu":
            from minires.backends.cpu import arena

            return {"arena_bytes": arena.held()}
        from minires.backends.cuda import launches

        return {"peak_bytes": launches.held()}


class TorchEngine:
    """PyTorch in one of VARIANTS."""

    _serving = None

    def __init__(self, variant, model, weights, x, target, threads, device="cpu"):
        import torch

        from minires.bench.torch_resnet import build_torch_model

        self.torch, self.device = torch, device
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = device == "cuda"
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        layout = torch.channels_last if "channels_last" in variant else torch.contiguous_format
        self.module = build_torch_model(model, weights).to(device, memory_format=layout)
        self.model = torch.compile(self.module, dynamic=False) if "compiled" in variant else self.module
        # fused: one kernel a tensor on a CPU and one for all on a GPU, the quickest of torch's three implementations
        self.optimiser = torch.optim.SGD(self.module.parameters(), fused=True, **SGD)
        self.x = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=layout).to(device)
        self.target = torch.from_numpy(target).to(device)

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
            return {"logits": self.infer().cpu().numpy()}
        loss, y = self._gradients()
        gradients = {f"grad {name}": parameter.grad.cpu().numpy() for name, parameter in self.module.named_parameters()}
        return {"loss": loss.detach().cpu().numpy(), "logits": y.detach().cpu().numpy(), **gradients}

    def seconds(self, run, steps):
        """As MiniresEngine's."""
        if self.device == "cpu":
            return host_seconds(run, steps)

        def event():
            recorded = self.torch.cuda.Event(enable_timing=True)
            recorded.record()
            return recorded

        return device_seconds(run, steps, event, lambda begin, end: begin.elapsed_time(end))

    def wait(self):
        """As MiniresEngine's."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def memory(self):
        """As MiniresEngine's; the caching allocator's reserve on a GPU."""
        return {"peak_bytes": self.torch.cuda.max_memory_reserved()} if self.device == "cuda" else {}
