"""What the notebooks ask their reader to write, with the answers and the mistakes that people make."""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Turn:
    """arguments(rng): what the reader's function gets; right(*arguments): what it should give; mistakes: {a sentence:
    wrong(*arguments)}; value(*arguments): the number whose gradient by the first argument is asked for, or None."""

    arguments: Callable
    right: Callable
    mistakes: dict
    value: Callable | None = None


def _winners(x, best):
    """1 at the `best` pixel of each 2x2 window of x: (H, W), 0 elsewhere."""
    H, W = x.shape
    windows = x.reshape(H // 2, 2, W // 2, 2).swapaxes(1, 2).reshape(-1, 4)
    won = np.eye(4)[best(windows, 1)]
    return won.reshape(H // 2, W // 2, 2, 2).swapaxes(1, 2).reshape(H, W)


def _spread(dy):
    """dy at each of the four pixels of its window."""
    return dy.repeat(2, 0).repeat(2, 1)


def _softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _distinct(rng, *shape):
    return rng.permutation(np.arange(1.0, np.prod(shape) + 1)).reshape(shape) / 3


TURNS = {
    "a convolution in one dimension": Turn(  # x, dy, w
        lambda rng: (rng.standard_normal(7), rng.standard_normal(5), rng.standard_normal(3)),
        lambda x, dy, w: np.convolve(dy, w),
        {"the kernel stands the wrong way round: x[h] meets y[a] through w[h - a]": lambda x, dy, w: np.convolve(
            dy, w[::-1]),
         "x[h] is overwritten by the last output that saw it: add, += for =": lambda x, dy, w: np.array(
             [dy[min(h, 4)] * w[h - min(h, 4)] for h in range(7)]),
         "that is dy times the sum of the kernel: each pixel meets one tap of it at a time": lambda x, dy, w: np.convolve(
             dy, [w.sum(), 0, 0])},
        lambda x, dy, w: (dy * np.convolve(x, w[::-1], "valid")).sum()),
    "centring": Turn(  # x, dy
        lambda rng: (rng.standard_normal(5) + 3, rng.standard_normal(5)),
        lambda x, dy: dy - dy.mean(),
        {"the mean is no constant: it moves by 1/m with each x, and all of y moves with it": lambda x, dy: dy,
         "subtract the mean of dy, not of x": lambda x, dy: dy - x.mean(),
         "each x moves the mean for every y, not for its own alone": lambda x, dy: dy * (1 - 1 / len(x)),
         "subtract the mean of dy, not its sum": lambda x, dy: dy - dy.sum(),
         "the mean is subtracted, so its part has a minus": lambda x, dy: dy + dy.mean()},
        lambda x, dy: (dy * (x - x.mean())).sum()),
    "temperature": Turn(  # z, q, T
        lambda rng: (rng.standard_normal((3, 4)), np.eye(4)[[2, 0, 3]], np.array(2.5)),
        lambda z, q, T: (_softmax(z / T) - q) / (T * len(z)),
        {"z reaches the softmax through z / T: the chain rule asks for a factor 1 / T": lambda z, q, T: (
            _softmax(z / T) - q) / len(z),
         "z / T moves by 1 / T with z, not by T": lambda z, q, T: (_softmax(z / T) - q) * T / len(z),
         "the softmax is that of z / T": lambda z, q, T: (_softmax(z) - q) / (T * len(z)),
         "the loss is a mean over the batch: divide by N": lambda z, q, T: (_softmax(z / T) - q) / T,
         "the sign is flipped": lambda z, q, T: (q - _softmax(z / T)) / (T * len(z))},
        lambda z, q, T: -(q * np.log(_softmax(z / T))).sum() / len(z)),
    "min pooling": Turn(  # x, dy
        lambda rng: (_distinct(rng, 4, 6), rng.standard_normal((2, 3))),
        lambda x, dy: _spread(dy) * _winners(x, np.argmin),
        {"that is max pooling's: here the smallest of a window wins": lambda x, dy: _spread(dy) * _winners(x, np.argmax),
         "that is average pooling's: only the winner moves y": lambda x, dy: _spread(dy) / 4,
         "every pixel gets its window's dy: only the winner moves y": lambda x, dy: _spread(dy),
         "the smallest moves y as it moves itself: by 1, not by -1": lambda x, dy: -_spread(dy) * _winners(x, np.argmin)},
        lambda x, dy: (dy * x.reshape(2, 2, 3, 2).min((1, 3))).sum()),
    "a block with the ReLU in front": Turn(  # x, dy, W
        lambda rng: (rng.standard_normal(5), rng.standard_normal(5), rng.standard_normal((5, 5))),
        lambda x, dy, W: dy + (W.T @ dy) * (x > 0),
        {"the shortcut is forgotten: x reaches y directly too": lambda x, dy, W: (W.T @ dy) * (x > 0),
         "the mask belongs to the branch alone: the shortcut does not pass the ReLU": lambda x, dy, W: (
             dy + W.T @ dy) * (x > 0),
         "the branch begins with a ReLU: its mask comes last on the way back": lambda x, dy, W: dy + W.T @ dy,
         "the mask comes after W^T on the way back, since the ReLU comes before W": lambda x, dy, W: dy + W.T @ (
             dy * (x > 0)),
         "on the way back stands W^T, not W": lambda x, dy, W: dy + (W @ dy) * (x > 0)},
        lambda x, dy, W: (dy * (x + W @ np.maximum(x, 0))).sum()),
    "one weight twice": Turn(  # W, x, dy
        lambda rng: (rng.standard_normal((3, 3)), rng.standard_normal(3), rng.standard_normal(3)),
        lambda W, x, dy: np.outer(dy, W @ x) + np.outer(W.T @ dy, x),
        {"W is used twice: what comes back from the first use is missing": lambda W, x, dy: np.outer(dy, W @ x),
         "W is used twice: what comes back from the last use is missing": lambda W, x, dy: np.outer(W.T @ dy, x),
         "the two uses add up, they are not averaged": lambda W, x, dy: (
             np.outer(dy, W @ x) + np.outer(W.T @ dy, x)) / 2,
         "the first use gets what the last one hands back, W^T dy": lambda W, x, dy: np.outer(dy, W @ x) + np.outer(dy, x),
         "it is transposed: a gradient has the shape and the order of its weight": lambda W, x, dy: (
             np.outer(dy, W @ x) + np.outer(W.T @ dy, x)).T},
        lambda W, x, dy: (dy * (W @ (W @ x))).sum()),
    "a folded bias": Turn(  # b, mean, sigma, beta
        lambda rng: tuple(rng.standard_normal((4, 3))),
        lambda b, mean, sigma, beta: (b - mean) * sigma + beta,
        {"the convolution's own bias is forgotten": lambda b, mean, sigma, beta: beta - mean * sigma,
         "the convolution's bias is normalised too: it is multiplied by sigma": lambda b, mean, sigma, beta: (
             b - mean * sigma + beta),
         "the mean is subtracted": lambda b, mean, sigma, beta: (b + mean) * sigma + beta,
         "beta is added after sigma, and is not multiplied by it": lambda b, mean, sigma, beta: (b - mean + beta) * sigma}),
}
