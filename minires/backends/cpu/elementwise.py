"""Element by element, and the optimisers' updates: maps over flat memory in chunks, shared out among the threads.

Bytes moved: each operand once. These are bound by memory, so each loop does all its formula asks for in one pass.
"""
import numpy as np
from numba import njit

from minires.backends import reference
from minires.backends.cpu.arena import empty
from minires.backends.cpu.threads import claim, launch

CHUNK = 1 << 15  # elements a thread takes at a time


def flat(array):
    """The array as one C-contiguous row (a view where it is contiguous already)."""
    return np.ascontiguousarray(array).reshape(-1)


def share(kernel, size, *arguments):
    """Launch a kernel over the chunks that cover `size` elements."""
    launch(kernel, -(-size // CHUNK), size, *arguments)


@njit(cache=True)
def part(array, chunk):
    """One chunk of a flat array, as a view: a loop over its own range needs no index check, so it vectorises."""
    start = np.int64(chunk) * CHUNK
    return array[start:start + CHUNK]


@njit(nogil=True, cache=True)
def _relu(tasks, counter, thread, x, y):
    chunk = claim(counter)
    while chunk < tasks:
        x_, y_ = part(x, chunk), part(y, chunk)
        for i in range(x_.size):
            y_[i] = 0 if x_[i] <= 0 else x_[i]
        chunk = claim(counter)


@njit(nogil=True, cache=True)
def _relu_gradient(tasks, counter, thread, dy, y, dx):
    chunk = claim(counter)
    while chunk < tasks:
        dy_, y_, dx_ = part(dy, chunk), part(y, chunk), part(dx, chunk)
        for i in range(dx_.size):
            dx_[i] = dy_[i] if y_[i] > 0 else 0
        chunk = claim(counter)


@njit(nogil=True, cache=True)
def _add(tasks, counter, thread, a, b, y):
    chunk = claim(counter)
    while chunk < tasks:
        a_, b_, y_ = part(a, chunk), part(b, chunk), part(y, chunk)
        for i in range(y_.size):
            y_[i] = a_[i] + b_[i]
        chunk = claim(counter)


@njit(nogil=True, cache=True)
def _keep(tasks, counter, thread, x, keep, scale, y):
    chunk = claim(counter)
    while chunk < tasks:
        x_, keep_, y_ = part(x, chunk), part(keep, chunk), part(y, chunk)
        for i in range(y_.size):
            y_[i] = x_[i] * scale if keep_[i] else 0
        chunk = claim(counter)


def relu_forward(x):
    """y = max(x, 0); a NaN stays one."""
    y = empty(x.shape, x.dtype)
    share(_relu, x.size, flat(x), flat(y))
    return y


def relu_backward(dy, y):
    """dx = dy where y > 0, else 0."""
    dx = empty(dy.shape, dy.dtype)
    share(_relu_gradient, dy.size, flat(dy), flat(y), flat(dx))
    return dx


def add(a, b):
    """The sum of two arrays of one shape."""
    y = empty(a.shape, a.dtype)
    share(_add, a.size, flat(a), flat(b), flat(y))
    return y


def dropout_forward(x, keep, p):
    """y = x / (1 - p) where `keep`, else 0."""
    y = empty(x.shape, x.dtype)
    share(_keep, x.size, flat(x), flat(keep), x.dtype.type(1 / (1 - p)), flat(y))
    return y


def dropout_backward(dy, keep, p):
    """dx: the forward map is its own adjoint."""
    return dropout_forward(dy, keep, p)


@njit(nogil=True, cache=True)
def _sgd(tasks, counter, thread, parameter, grad, velocity, lr, momentum, weight_decay, nesterov):
    chunk = claim(counter)
    while chunk < tasks:
        p, grad_, v = part(parameter, chunk), part(grad, chunk), part(velocity, chunk)
        for i in range(p.size):
            g = grad_[i] + weight_decay * p[i]
            v[i] = momentum * v[i] + g
            p[i] -= lr * (g + momentum * v[i]) if nesterov else lr * v[i]
        chunk = claim(counter)


@njit(nogil=True, cache=True)
def _adamw(tasks, counter, thread, parameter, grad, mean, square, lr, keep, beta1, take1, beta2, take2, unbias1, unbias2,
           eps):
    chunk = claim(counter)
    while chunk < tasks:
        p, g, m, v = part(parameter, chunk), part(grad, chunk), part(mean, chunk), part(square, chunk)
        for i in range(p.size):
            m[i] = beta1 * m[i] + take1 * g[i]
            v[i] = beta2 * v[i] + take2 * g[i] * g[i]
            p[i] = p[i] * keep - lr * unbias1 * m[i] / (np.sqrt(v[i] * unbias2) + eps)
        chunk = claim(counter)


def sgd_update(parameters, grads, velocities, lr, momentum, weight_decays, nesterov):
    """PyTorch's SGD with momentum, in place: see the reference."""
    for parameter, grad, velocity, weight_decay in zip(parameters, grads, velocities, weight_decays, strict=True):
        _sgd_one(parameter, grad, velocity, lr, momentum, weight_decay, nesterov)


def _sgd_one(parameter, grad, velocity, lr, momentum, weight_decay, nesterov):
    if not (parameter.flags.c_contiguous and velocity.flags.c_contiguous):  # a flat view would be a copy
        reference.sgd_update((parameter,), (grad,), (velocity,), lr, momentum, (weight_decay,), nesterov)
        return
    lr, momentum, weight_decay = (parameter.dtype.type(value) for value in (lr, momentum, weight_decay))
    share(_sgd, parameter.size, parameter.reshape(-1), flat(grad), velocity.reshape(-1), lr, momentum, weight_decay,
          nesterov)


def adamw_update(parameters, grads, firsts, seconds, step, lr, betas, eps, weight_decays):
    """Adam with decoupled weight decay, in place: see the reference."""
    for parameter, grad, first, second, weight_decay in zip(parameters, grads, firsts, seconds, weight_decays, strict=True):
        _adamw_one(parameter, grad, first, second, step, lr, betas, eps, weight_decay)


def _adamw_one(parameter, grad, first, second, step, lr, betas, eps, weight_decay):
    if not all(array.flags.c_contiguous for array in (parameter, first, second)):
        reference.adamw_update((parameter,), (grad,), (first,), (second,), step, lr, betas, eps, (weight_decay,))
        return
    (beta1, beta2), unbias = betas, [1 / (1 - beta**step) for beta in betas]
    numbers = [parameter.dtype.type(value)
               for value in (lr, 1 - lr * weight_decay, beta1, 1 - beta1, beta2, 1 - beta2, *unbias, eps)]
    share(_adamw, parameter.size, parameter.reshape(-1), flat(grad), first.reshape(-1), second.reshape(-1), *numbers)
