"""Element by element, and the optimisers' updates: maps over flat memory in chunks, shared out among the threads.

Bytes moved: each operand once. These are bound by memory, so each loop does all its formula asks for in one pass, over the
range of a view of the chunk: it needs no index check, so it vectorises.
"""
import numpy as np

from minires.backends import reference
from minires.backends.cpu import jit
from minires.backends.cpu.arena import empty
from minires.backends.cpu.threads import claimed, here, launch

CHUNK = 1 << 15  # elements a thread takes at a time
TOGETHER = 8  # parameters that one launch updates: a launch costs more than most of them


def flat(array):
    """The array as one C-contiguous row (a view where it is contiguous already)."""
    return np.ascontiguousarray(array).reshape(-1)


def share(kernel, size, *arguments):
    """Launch a kernel over the chunks that cover `size` elements."""
    launch(kernel, -(-size // CHUNK), size, *arguments)


@jit.kernel
def _relu(tasks, counter, thread, x, y):
    for chunk in claimed(tasks, counter, thread):
        start, end = chunk * CHUNK, (chunk + 1) * CHUNK
        x_, y_ = x[start:end], y[start:end]
        for i in range(x_.size):
            y_[i] = 0 if x_[i] <= 0 else x_[i]


@jit.kernel
def _relu_gradient(tasks, counter, thread, dy, y, dx):
    for chunk in claimed(tasks, counter, thread):
        start, end = chunk * CHUNK, (chunk + 1) * CHUNK
        dy_, y_, dx_ = dy[start:end], y[start:end], dx[start:end]
        for i in range(dx_.size):
            dx_[i] = dy_[i] if y_[i] > 0 else 0


@jit.kernel
def _add(tasks, counter, thread, a, b, y):
    for chunk in claimed(tasks, counter, thread):
        start, end = chunk * CHUNK, (chunk + 1) * CHUNK
        a_, b_, y_ = a[start:end], b[start:end], y[start:end]
        for i in range(y_.size):
            y_[i] = a_[i] + b_[i]


@jit.kernel
def _keep(tasks, counter, thread, x, keep, scale, y):
    for chunk in claimed(tasks, counter, thread):
        start, end = chunk * CHUNK, (chunk + 1) * CHUNK
        x_, keep_, y_ = x[start:end], keep[start:end], y[start:end]
        for i in range(y_.size):
            y_[i] = x_[i] * scale if keep_[i] else 0


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


def add_into(total, value):
    """total += value, in place."""
    here(np.add, total, value, total)


def zero(arrays):
    """Set every element of some arrays to zero."""
    here(_fill, arrays)


def _fill(arrays):
    for array in arrays:
        array.fill(0)
    return ()


def dropout_forward(x, keep, p):
    """y = x / (1 - p) where `keep`, else 0."""
    y = empty(x.shape, x.dtype)
    share(_keep, x.size, flat(x), flat(keep), x.dtype.type(1 / (1 - p)), flat(y))
    return y


def dropout_backward(dy, keep, p):
    """dx: the forward map is its own adjoint."""
    return dropout_forward(dy, keep, p)


@jit.kernel
def _sgd(tasks, counter, thread, parameters, grads, velocities, weight_decays, lr, momentum, nesterov):
    for task in claimed(tasks, counter, thread):
        which, start, end = task % TOGETHER, task // TOGETHER * CHUNK, (task // TOGETHER + 1) * CHUNK
        p, grad, v = parameters[which][start:end], grads[which][start:end], velocities[which][start:end]
        weight_decay = weight_decays[which]
        for i in range(p.size):
            g = grad[i] + weight_decay * p[i]
            v[i] = momentum * v[i] + g
            p[i] -= lr * (g + momentum * v[i]) if nesterov else lr * v[i]


@jit.kernel
def _adamw(tasks, counter, thread, parameters, grads, firsts, seconds, keeps, lr, beta1, take1, beta2, take2,
           unbias1, unbias2, eps):
    for task in claimed(tasks, counter, thread):
        which, start, end = task % TOGETHER, task // TOGETHER * CHUNK, (task // TOGETHER + 1) * CHUNK
        p, g = parameters[which][start:end], grads[which][start:end]
        m, v = firsts[which][start:end], seconds[which][start:end]
        keep = keeps[which]
        for i in range(p.size):
            m[i] = beta1 * m[i] + take1 * g[i]
            v[i] = beta2 * v[i] + take2 * g[i] * g[i]
            p[i] = p[i] * keep - lr * unbias1 * m[i] / (np.sqrt(v[i] * unbias2) + eps)


def _update(kernel, arrays, factors, *numbers):
    """Launch an update kernel over parameters, TOGETHER of them at a time; returns the indices of those left out.

    arrays: the tuples of parameters, gradients and states; factors: a number for each parameter; numbers: what all share.
    Left out is what has another dtype than the first or a layout whose flat view would be a copy.
    """
    dtype = arrays[0][0].dtype
    fits = [all(array.flags.c_contiguous and array.dtype == dtype for array in row) for row in zip(*arrays, strict=True)]
    chosen = [index for index, fit in enumerate(fits) if fit]
    numbers, nothing = [number if isinstance(number, bool) else dtype.type(number) for number in numbers], np.empty(0, dtype)
    for first in range(0, len(chosen), TOGETHER):
        some = chosen[first:first + TOGETHER]
        padding = TOGETHER - len(some)
        rows = [tuple(column[index].reshape(-1) for index in some) + (nothing,) * padding for column in arrays]
        sizes = [row.size for row in rows[0]]
        launch(kernel, -(-max(sizes) // CHUNK) * TOGETHER, sum(sizes), *rows,
               tuple(dtype.type(factors[index]) for index in some) + (dtype.type(0),) * padding, *numbers)
    return [index for index, fit in enumerate(fits) if not fit]


def sgd_update(parameters, grads, velocities, lr, momentum, weight_decays, nesterov):
    """PyTorch's SGD with momentum, in place: see the reference."""
    for index in _update(_sgd, (parameters, grads, velocities), weight_decays, lr, momentum, nesterov):
        some = slice(index, index + 1)
        reference.sgd_update(parameters[some], grads[some], velocities[some], lr, momentum, weight_decays[some], nesterov)


def adamw_update(parameters, grads, firsts, seconds, step, lr, betas, eps, weight_decays):
    """Adam with decoupled weight decay, in place: see the reference."""
    (beta1, beta2), unbias = betas, [1 / (1 - beta**step) for beta in betas]
    keeps = [1 - lr * weight_decay for weight_decay in weight_decays]
    for index in _update(_adamw, (parameters, grads, firsts, seconds), keeps, lr, beta1, 1 - beta1, beta2, 1 - beta2,
                         *unbias, eps):
        some = slice(index, index + 1)
        reference.adamw_update(parameters[some], grads[some], firsts[some], seconds[some], step, lr, betas, eps,
                               weight_decays[some])
