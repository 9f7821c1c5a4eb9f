"""Optimisers: they read each parameter's `grad` and move its `data`, in place."""
from collections.abc import Iterable

import numpy as np

from minires.arguments import flag, number, shown
from minires.backends import device_of, ops_for, to_device, to_numpy
from minires.errors import UserError
from minires.layer import Parameter, zero_gradients
from minires.reprs import Shown


class _Optimiser(Shown):
    """A list of parameters, a learning rate that schedules set, and state arrays of the parameters' shapes.

    `decay_all=False` spares biases and normalisation parameters from weight decay.
    """

    slots = ()  # the names of the state arrays a parameter has

    def __init__(self, parameters, lr, weight_decay, decay_all):
        self.parameters = list(parameters) if isinstance(parameters, Iterable) else []
        if not self.parameters or not all(isinstance(parameter, Parameter) for parameter in self.parameters):
            got = "" if isinstance(parameters, list) and not parameters else f" but {shown(parameters)}"
            raise UserError(f"the optimiser got no parameters{got}: pass model.parameters()")
        self.lr, self.weight_decay = number("lr", lr, 0), number("weight_decay", weight_decay, 0)
        self.decay_all = flag("decay_all", decay_all)
        self.state = [tuple(p.data * 0 for _ in self.slots) for p in self.parameters]
        self.steps = 0

    def zero_grad(self):
        """Set every gradient to zero."""
        zero_gradients(self.parameters)

    def step(self):
        """Move every parameter by its gradient."""
        self.steps += 1
        data, grads = tuple(p.data for p in self.parameters), tuple(p.grad for p in self.parameters)
        if device_of(data[0]) != device_of(self.state[0][0]):
            raise UserError(f"{type(self).__name__} was made before its parameters were moved to another device: make it "
                            "after model.to(...)")
        decays = tuple(self.weight_decay if self.decay_all or p.decays else 0.0 for p in self.parameters)
        self._update(ops_for(data[0]), data, grads, tuple(zip(*self.state, strict=True)), decays)

    def state_dict(self):
        """{"steps": int array, "0.velocity": array, ...}: NumPy copies, in the parameters' order."""
        state = {f"{index}.{name}": to_numpy(array).copy()
                 for index, arrays in enumerate(self.state) for name, array in zip(self.slots, arrays, strict=True)}
        return {"steps": np.array(self.steps), **state}

    def require_state(self, state):
        """UserError when the keys or shapes of a `state_dict` are another optimiser's."""
        expected = {name: array.shape for name, array in self.state_dict().items()}
        found = {name: array.shape for name, array in state.items()}
        if expected != found:
            odd = sorted({name for name, _ in expected.items() ^ found.items()})
            raise UserError(f"this optimiser state does not fit {type(self).__name__} on these parameters: {', '.join(odd)}")

    def load_state_dict(self, state):
        """Copy a `state_dict` in; UserError when its keys or shapes are another optimiser's."""
        self.require_state(state)
        self.steps = int(state["steps"])
        for index, arrays in enumerate(self.state):
            for name, array in zip(self.slots, arrays, strict=True):
                array[...] = to_device(np.asarray(state[f"{index}.{name}"], array.dtype), device_of(array))


class SGD(_Optimiser):
    """Stochastic gradient descent with momentum, PyTorch's formula.

        g = grad + weight_decay * parameter
        velocity = momentum * velocity + g
        parameter -= lr * (g + momentum * velocity  if nesterov else  velocity)

    Source: Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning".
    """

    slots = ("velocity",)

    def __init__(self, parameters, lr, momentum=0.0, weight_decay=0.0, nesterov=False, *, decay_all=True):
        super().__init__(parameters, lr, weight_decay, decay_all)
        self.momentum, self.nesterov = number("momentum", momentum, 0, below=1), flag("nesterov", nesterov)
        if self.nesterov and momentum == 0:
            raise UserError("nesterov looks ahead along the velocity and needs momentum > 0, got momentum 0")

    def _update(self, ops, parameters, grads, state, decays):
        ops.sgd_update(parameters, grads, *state, self.lr, self.momentum, decays, self.nesterov)


class AdamW(_Optimiser):
    """Adam with weight decay decoupled from the gradient.

        first  = b1 * first  + (1 - b1) * grad          second = b2 * second + (1 - b2) * grad^2
        parameter -= lr * weight_decay * parameter
        parameter -= lr * first / (1 - b1^t) / (sqrt(second / (1 - b2^t)) + eps)

    Source: Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101
    """

    slots = ("first", "second")

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, *, decay_all=True):
        super().__init__(parameters, lr, weight_decay, decay_all)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise UserError(f"betas must be a pair of numbers, got {shown(betas)}")
        self.betas = tuple(number("each of betas", beta, 0, below=1) for beta in betas)
        self.eps = number("eps", eps, above=0)

    def _update(self, ops, parameters, grads, state, decays):
        ops.adamw_update(parameters, grads, *state, self.steps, self.lr, self.betas, self.eps, decays)
