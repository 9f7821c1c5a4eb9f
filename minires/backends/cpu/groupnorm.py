"""Group normalisation: a task an image, whose feature maps lie in the cache while they are read again.

Bytes moved: x once and y once forward; dy, x and dx once backward. Sums are taken for each channel first, so that the
inner loop runs over channels, which lie side by side; in float64, since a group may have a hundred thousand values.
"""
import numpy as np

from minires.backends.cpu import jit
from minires.backends.cpu.arena import empty
from minires.backends.cpu.threads import claimed, here, launch


@jit.kernel
def _forward(tasks, counter, thread, x, weight, bias, eps, y, mean, var, scratch):
    M, C = x.shape[1:]
    G = mean.shape[1]
    size = C // G
    for n in claimed(tasks, counter, thread):
        sums = scratch[n, 0]
        sums[:] = 0
        for row in range(M):
            for c in range(C):
                sums[c] += x[n, row, c]
        for group in range(G):
            mean[n, group] = sums[group * size:(group + 1) * size].sum() / (M * size)
        shift, scale = scratch[n, 1], scratch[n, 2]
        for c in range(C):
            shift[c] = mean[n, c // size]
        sums[:] = 0
        for row in range(M):
            for c in range(C):
                sums[c] += (x[n, row, c] - shift[c]) ** 2
        for group in range(G):
            var[n, group] = sums[group * size:(group + 1) * size].sum() / (M * size)
        for c in range(C):
            scale[c] = weight[c] / np.sqrt(var[n, c // size] + eps)
        for row in range(M):
            for c in range(C):
                y[n, row, c] = (x[n, row, c] - shift[c]) * scale[c] + bias[c]


@jit.kernel
def _backward(tasks, counter, thread, dy, x, mean, var, weight, eps, dx, sums, scratch):
    M, C = x.shape[1:]
    size = C // mean.shape[1]
    for n in claimed(tasks, counter, thread):
        sum_dy, sum_dyx = sums[0, n], sums[1, n]  # of this image, for each channel: parts of dbias and dweight
        shift, inv_std, mean_g, mean_gx = scratch[n, 0], scratch[n, 1], scratch[n, 2], scratch[n, 3]
        for c in range(C):
            shift[c], inv_std[c] = mean[n, c // size], 1 / np.sqrt(var[n, c // size] + eps)
            sum_dy[c], sum_dyx[c] = 0, 0
        for row in range(M):
            for c in range(C):
                sum_dy[c] += dy[n, row, c]
                sum_dyx[c] += dy[n, row, c] * ((x[n, row, c] - shift[c]) * inv_std[c])
        for first in range(0, C, size):
            g, gx = 0.0, 0.0
            for c in range(first, first + size):
                g += weight[c] * sum_dy[c]
                gx += weight[c] * sum_dyx[c]
            mean_g[first:first + size], mean_gx[first:first + size] = g / (M * size), gx / (M * size)
        for row in range(M):
            for c in range(C):
                x_hat = (x[n, row, c] - shift[c]) * inv_std[c]
                dx[n, row, c] = inv_std[c] * (weight[c] * dy[n, row, c] - mean_g[c] - x_hat * mean_gx[c])


def _maps(x):
    """(N, H * W, C), C-contiguous."""
    return np.ascontiguousarray(x).reshape(len(x), -1, x.shape[3])


def groupnorm_forward(x, weight, bias, groups, eps):
    """See minires.backends.groupnorm."""
    N, C = len(x), x.shape[3]
    y = empty(x.shape, x.dtype)
    mean, var = (np.empty((N, 1, 1, groups, 1), x.dtype) for _ in range(2))
    launch(_forward, N, x.size, _maps(x), *map(np.ascontiguousarray, (weight, bias)), x.dtype.type(eps), _maps(y),
           mean.reshape(N, groups), var.reshape(N, groups), np.empty((N, 3, C)))
    return y, mean, var


def groupnorm_backward(dy, x, mean, var, weight, eps):
    """See minires.backends.groupnorm."""
    N, C, groups = len(x), x.shape[3], mean.shape[3]
    dx, sums = empty(x.shape, x.dtype), np.empty((2, N, C))
    mean, var = (np.ascontiguousarray(each).reshape(N, groups) for each in (mean, var))
    launch(_backward, N, x.size, _maps(dy), _maps(x), mean, var, np.ascontiguousarray(weight), x.dtype.type(eps), _maps(dx),
           sums, np.empty((N, 4, C)))
    dweight, dbias = here(_summed, sums, x.dtype)
    return dx, dweight, dbias


def _summed(sums, dtype):
    dbias, dweight = sums.sum(1).astype(dtype)
    return dweight, dbias
