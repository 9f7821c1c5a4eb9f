"""Optimisers: they read each parameter's `grad` and move its `data`, in place."""
from collections.abc import Iterable
from contextlib import contextmanager
from fnmatch import fnmatchcase

import numpy as np

from minires.arguments import flag, integer, number, shown, text
from minires.backends import device_of, ops_for, to_device, to_numpy
from minires.errors import UserError
from minires.layer import Parameter, zero_gradients
from minires.layers import BatchNorm2d
from minires.reprs import Shown


class _Optimiser(Shown):
    """A list of parameters, a learning rate that schedules set, and state arrays of the parameters' shapes.

    `decay_all=False` spares biases and normalisation parameters from weight decay. Each parameter's own factors are in its
    attributes lr_factor and decay_factor; what is frozen is not touched.
    max_norm: gradients whose Euclidean norm, over all parameters together, is larger are scaled to it (Pascanu et al. 2013,
    section 3.2). The arrays `grad` stay as they are.
    average: decay of a moving average of the weights, m = d * m + (1 - d) * weight after each update, with
    d = min(average, (1 + t) / (10 + t)) at update t; `averaged()` puts it in the weights' place (Polyak & Juditsky 1992).
    accumulate: every so many steps are one update, by the mean of their gradients: a larger batch in the same memory.
    """

    slots = ()  # the names of the state arrays that a parameter's update needs

    def __init__(self, parameters, lr, weight_decay, decay_all, max_norm, average, accumulate):
        self.parameters = list(parameters) if isinstance(parameters, Iterable) else []
        if not self.parameters or not all(isinstance(parameter, Parameter) for parameter in self.parameters):
            got = "" if isinstance(parameters, list) and not parameters else f" but {shown(parameters)}"
            raise UserError(f"the optimiser got no parameters{got}: pass model.parameters()")
        self.lr, self.weight_decay = number("lr", lr, 0), number("weight_decay", weight_decay, 0)
        self.decay_all, self.accumulate = flag("decay_all", decay_all), integer("accumulate", accumulate, 1)
        self.max_norm = None if max_norm is None else number("max_norm", max_norm, above=0, infinite=True)
        self.average = None if average is None else number("average", average, above=0, below=1)
        self.names = (*self.slots, *["average"] * (average is not None), *["sum"] * (self.accumulate > 1))
        self.state = [tuple(p.data.copy() if name == "average" else p.data * 0 for name in self.names)
                      for p in self.parameters]
        self.steps = self.waiting = 0  # updates made, and gradients that wait for the next

    def zero_grad(self):
        """Set every gradient to zero."""
        zero_gradients(self.parameters)

    def step(self):
        """Move every parameter by its gradient, or with `accumulate` note the gradient until it is time to."""
        if device_of(self.parameters[0].data) != device_of(self.state[0][0]):
            raise UserError(f"{type(self).__name__} was made before its parameters were moved to another device: make it "
                            "after model.to(...)")
        live = [index for index, parameter in enumerate(self.parameters) if not parameter.frozen]
        grads = self._gradients(live)
        if grads is None or not live:
            return
        self.steps += 1
        by_factor = {}
        for index in live:
            by_factor.setdefault(self.parameters[index].lr_factor, []).append(index)
        ops, count = ops_for(self.parameters[live[0]].data), len(self.slots)
        for factor, some in by_factor.items():
            chosen = [self.parameters[index] for index in some]
            decays = tuple(self.weight_decay * p.decay_factor if self.decay_all or p.decays else 0.0 for p in chosen)
            self._update(ops, tuple(p.data for p in chosen), tuple(grads[index] for index in some),
                         tuple(zip(*(self.state[index][:count] for index in some), strict=True)), decays, self.lr * factor)
        masked = [index for index in live if self.parameters[index].mask is not None]
        for index in masked:
            parameter = self.parameters[index]
            parameter.data *= parameter.mask
        if self.average is not None:
            keep = min(self.average, (1 + self.steps) / (10 + self.steps))
            for index in live:
                mean = self._state(index, "average")
                mean *= keep
                mean += (1 - keep) * self.parameters[index].data
            for index in masked:
                mean = self._state(index, "average")
                mean *= self.parameters[index].mask

    def _gradients(self, live):
        """{index: gradient} of the parameters to move, or None where more are waited for."""
        grads = {index: self.parameters[index].grad for index in live}
        if self.accumulate > 1:
            self.waiting = (self.waiting + 1) % self.accumulate
            for index, grad in grads.items():
                total = self._state(index, "sum")
                if self.waiting == 1:
                    total.fill(0)
                total += grad * (1 / self.accumulate)
            if self.waiting:
                return None
            grads = {index: self._state(index, "sum") for index in live}
        if self.max_norm is not None and live:
            size = sum((grad * grad).sum() for grad in grads.values()) ** 0.5
            scale = np.minimum(self.max_norm / (size + 1e-6), 1)  # PyTorch's formula; on a device it stays there
            grads = {index: grad * scale.astype(grad.dtype) for index, grad in grads.items()}
        return grads

    def _state(self, index, name):
        return self.state[index][self.names.index(name)]

    @contextmanager
    def averaged(self):
        """Inside, every parameter has its moving average, if this optimiser keeps one; afterwards its own value again."""
        if self.average is None:
            yield
            return
        own = [parameter.data.copy() for parameter in self.parameters]
        for index, parameter in enumerate(self.parameters):
            parameter.data[...] = self._state(index, "average")
        try:
            yield
        finally:
            for parameter, data in zip(self.parameters, own, strict=True):
                parameter.data[...] = data

    def state_dict(self):
        """{"steps": int array, "0.velocity": array, ...}: NumPy copies, in the parameters' order."""
        state = {f"{index}.{name}": to_numpy(array).copy()
                 for index, arrays in enumerate(self.state) for name, array in zip(self.names, arrays, strict=True)}
        waiting = {"waiting": np.array(self.waiting)} if self.accumulate > 1 else {}
        return {"steps": np.array(self.steps), **waiting, **state}

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
        self.steps, self.waiting = int(state["steps"]), int(state.get("waiting", 0))
        for index, arrays in enumerate(self.state):
            for name, array in zip(self.names, arrays, strict=True):
                array[...] = to_device(np.asarray(state[f"{index}.{name}"], array.dtype), device_of(array))


class SGD(_Optimiser):
    """Stochastic gradient descent with momentum, PyTorch's formula.

        g = grad + weight_decay * parameter
        velocity = momentum * velocity + g
        parameter -= lr * (g + momentum * velocity  if nesterov else  velocity)

    Source: Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning".
    """

    slots = ("velocity",)

    def __init__(self, parameters, lr, momentum=0.0, weight_decay=0.0, nesterov=False, *, decay_all=True, max_norm=None,
                 average=None, accumulate=1):
        super().__init__(parameters, lr, weight_decay, decay_all, max_norm, average, accumulate)
        self.momentum, self.nesterov = number("momentum", momentum, 0, below=1), flag("nesterov", nesterov)
        if self.nesterov and momentum == 0:
            raise UserError("nesterov looks ahead along the velocity and needs momentum > 0, got momentum 0")

    def _update(self, ops, parameters, grads, state, decays, lr):
        ops.sgd_update(parameters, grads, *state, lr, self.momentum, decays, self.nesterov)


class AdamW(_Optimiser):
    """Adam with weight decay decoupled from the gradient.

        first  = b1 * first  + (1 - b1) * grad          second = b2 * second + (1 - b2) * grad^2
        parameter -= lr * weight_decay * parameter
        parameter -= lr * first / (1 - b1^t) / (sqrt(second / (1 - b2^t)) + eps)

    Source: Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101
    """

    slots = ("first", "second")

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, *, decay_all=True,
                 max_norm=None, average=None, accumulate=1):
        super().__init__(parameters, lr, weight_decay, decay_all, max_norm, average, accumulate)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise UserError(f"betas must be a pair of numbers, got {shown(betas)}")
        self.betas = tuple(number("each of betas", beta, 0, below=1) for beta in betas)
        self.eps = number("eps", eps, above=0)

    def _update(self, ops, parameters, grads, state, decays, lr):
        ops.adamw_update(parameters, grads, *state, self.steps, lr, self.betas, self.eps, decays)


class Muon(_Optimiser):
    """Momentum whose update is made orthogonal, for the weights of convolutions; SGD for all other parameters.

    A weight is taken as the matrix of its patches, (KH * KW * C, O):

        velocity = momentum * velocity + grad
        u = grad + momentum * velocity  if nesterov else  velocity
        weight *= sqrt(O) / |weight|                    if normalise, else  weight *= 1 - lr * weight_decay
        weight -= lr * orthogonalise(u, iterations)

    so every direction of the matrix moves by about the rate, however small its gradient. normalise: for networks whose
    normalisations make the size of their weights meaningless. All others move as `SGD` moves them, with sgd_momentum and
    weight_decay, at sgd_lr while lr is what was given here, and in proportion to it when a schedule changes it.
    Sources: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; airbench94_muon of cifar10-airbench (normalise).
    """

    slots = ("velocity",)

    def __init__(self, parameters, lr, momentum=0.95, weight_decay=0.0, nesterov=True, *, sgd_lr, sgd_momentum=0.9,
                 iterations=5, normalise=True, decay_all=True, max_norm=None, average=None, accumulate=1):
        super().__init__(parameters, number("lr", lr, above=0), weight_decay, decay_all, max_norm, average, accumulate)
        self.momentum, self.nesterov = number("momentum", momentum, 0, below=1), flag("nesterov", nesterov)
        self.sgd_lr, self.sgd_momentum = number("sgd_lr", sgd_lr, 0), number("sgd_momentum", sgd_momentum, 0, below=1)
        self.iterations, self.normalise = integer("iterations", iterations, 1), flag("normalise", normalise)
        self.sgd_ratio = self.sgd_lr / self.lr

    def _update(self, ops, parameters, grads, state, decays, lr):
        rows = list(zip(parameters, grads, *state, decays, strict=True))
        others = [row for row in rows if row[0].ndim != 4]
        if others:
            data, grads, velocities, decays = zip(*others, strict=True)
            ops.sgd_update(data, grads, velocities, lr * self.sgd_ratio, self.sgd_momentum, decays,
                           self.nesterov and self.sgd_momentum > 0)
        for weight, grad, velocity, decay in (row for row in rows if row[0].ndim == 4):
            velocity *= self.momentum
            velocity += grad
            update = grad + self.momentum * velocity if self.nesterov else velocity
            O = weight.shape[3]
            if self.normalise:
                weight *= (O / ((weight * weight).sum() + 1e-30)) ** 0.5  # zeros stay zeros
            else:
                weight *= 1 - lr * decay
            weight -= lr * orthogonalise(update.reshape(-1, O), self.iterations).reshape(weight.shape)


def orthogonalise(matrix, iterations=5):
    """About U V^T of a matrix U S V^T: the same singular vectors, and singular values near 1 (Newton-Schulz iteration).

        X = matrix / |matrix|;      again and again  X = a X + (b A + c A^2) X  with  A = X X^T

    Each turn maps every singular value s to a s + b s^3 + c s^5 and leaves U and V alone. (a, b, c) = (3.4445, -4.7750,
    2.0315) trade accuracy for speed: what is small grows 3.4445-fold a turn, and what is near 1 ends between 0.68 and 1.2.
    After n turns that holds of all s above about 0.7 / 3.4445^n of |matrix|; it takes products of matrices alone.
    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    X = matrix / ((matrix * matrix).sum() ** 0.5 + 1e-12)
    tall = X.shape[0] > X.shape[1]
    for _ in range(iterations):
        A = X.T @ X if tall else X @ X.T  # the smaller of the two; (X X^T) X = X (X^T X)
        B = b * A + c * (A @ A)
        X = a * X + (X @ B if tall else B @ X)
    return X


def set_parameters(model, pattern, *, frozen=None, lr_factor=None, decay_factor=None):
    """Set what is given on every parameter whose dotted name fits a pattern ("layer1.*", "*.bias"); returns their names.

        set_parameters(model, "*", frozen=True)       # fine-tuning: all but a new head stays as it is
        set_parameters(model, "fc.*", frozen=False, lr_factor=10)

    With `frozen` a batch normalisation whose weight fits takes its running statistics in training too, and leaves them.
    UserError for a pattern that no name fits, and for a factor below 0.
    """
    given = {name: number(name, factor, 0) for name, factor in (("lr_factor", lr_factor), ("decay_factor", decay_factor))
             if factor is not None}
    if frozen is not None:
        given["frozen"] = frozen = flag("frozen", frozen)
    pattern = text("pattern", pattern)
    found = {name: parameter for name, parameter in model.named_parameters() if fnmatchcase(name, pattern)}
    if not found:
        names = [name for name, _ in model.named_parameters()]
        raise UserError(f"no parameter's name fits {pattern!r}: expected a pattern for names such as {', '.join(names[:3])}")
    for parameter in found.values():
        for name, value in given.items():
            setattr(parameter, name, value)
    for _, layer in model.named_layers():
        if frozen is not None and isinstance(layer, BatchNorm2d) and any(layer.weight is each for each in found.values()):
            layer.frozen = frozen
    return list(found)


def prune(model, fraction, pattern="*"):
    """Set the smallest of the weights to zero, and let optimisers keep them there; returns how many are left of how many.

    fraction: of the entries of all weights (arrays of two axes or more) whose names fit the pattern, by magnitude over all
    of them together. Fine-tune afterwards. Masks are not saved: after loading pruned weights the same call finds the same,
    since zeros are the smallest. UserError for a fraction outside 0 <= fraction < 1, and for a pattern that no weight fits.
    Source: Han et al. 2015, section 3, https://arxiv.org/abs/1506.02626
    """
    fraction = number("fraction", fraction, 0, below=1)
    pattern = text("pattern", pattern)
    weights = [p for name, p in model.named_parameters() if p.data.ndim > 1 and fnmatchcase(name, pattern)]
    if not weights:
        raise UserError(f"no weight's name fits {pattern!r}: expected a pattern such as *conv*")
    sizes = [np.abs(to_numpy(parameter.data)).ravel() for parameter in weights]
    order = np.argsort(np.concatenate(sizes), kind="stable")
    kept = np.ones(order.size, bool)
    kept[order[:round(fraction * order.size)]] = False
    for parameter, keep in zip(weights, np.split(kept, np.cumsum([size.size for size in sizes])[:-1]), strict=True):
        data = parameter.data
        parameter.mask = to_device(keep.reshape(data.shape).astype(data.dtype), device_of(data))
        data *= parameter.mask
    return int(kept.sum()), kept.size
