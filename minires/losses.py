"""Losses: forward gives a float, backward the gradient of that float with respect to the network's output."""
import numpy as np

from minires.arguments import number, shown
from minires.backends import ops_for
from minires.errors import UserError
from minires.reprs import Shown


class CrossEntropyLoss(Shown):
    """Softmax and cross-entropy in one, averaged over the batch.

    y: (N, K) logits; target: (N,) integers in 0 .. K-1, or (N, K) shares of the classes, which add up to 1 (mixup)

        p = softmax(y)      q = (1 - label_smoothing) * one_hot(target) + label_smoothing / K, or shares for one_hot
        loss = -sum over N, K of q * log(p) / N

    Backward. log p = y - log(sum exp y), so row by row δ(log p) = δy - sum(p * δy), δL = -sum(q * δ(log p)), and sum(q) = 1:

        dy = (p - q) / N

    Taken together the division by p of the logarithm cancels, so nothing overflows, not even for logits of 1e4.
    Source: Szegedy et al. 2015, section 7 (label smoothing), https://arxiv.org/abs/1512.00567
    """

    def __init__(self, label_smoothing=0.0):
        self.label_smoothing = number("label_smoothing", label_smoothing, 0, 1)
        self._kept = None

    def forward(self, y, target):
        _require_arrays("CrossEntropyLoss", y=y, target=target)
        if y.ndim != 2 or y.size == 0 or y.dtype.kind != "f":
            raise UserError(f"CrossEntropyLoss expects logits y of shape (N, K), at least one row, got {tuple(y.shape)}")
        N, K = y.shape
        if target.shape == (N, K) and target.dtype == y.dtype:
            q = target if not self.label_smoothing else target * (1 - self.label_smoothing) + self.label_smoothing / K
            loss, softmax = ops_for(y).soft_cross_entropy_forward(y, q)
            self._kept = softmax, q
            return _number(loss)
        if target.shape != (N,) or target.dtype.kind not in "iu":
            raise UserError(f"CrossEntropyLoss expects {N} integer targets, one per row of y, got shape {target.shape} of "
                            f"dtype {target.dtype}")
        loss, softmax = ops_for(y).softmax_cross_entropy_forward(y, target, self.label_smoothing)
        self._kept = softmax, target
        return _number(loss)

    def backward(self):
        (softmax, target), self._kept = _once(self), None
        if target.ndim == 2:
            return ops_for(softmax).soft_cross_entropy_backward(softmax, target)
        return ops_for(softmax).softmax_cross_entropy_backward(softmax, target, self.label_smoothing)


class MSELoss(Shown):
    """The mean of the squared differences over all elements.

    y, target: one shape        loss = mean((y - target)^2)        backward: dy = 2 (y - target) / size
    """

    _kept = None

    def forward(self, y, target):
        _require_arrays("MSELoss", y=y, target=target)
        if y.shape != target.shape or y.dtype != target.dtype:
            raise UserError(f"MSELoss expects y and target alike, got {y.shape} {y.dtype} and {target.shape} {target.dtype}")
        if y.size == 0:
            raise UserError(f"MSELoss got an empty y of shape {tuple(y.shape)}: a mean needs at least one element")
        self._kept = y, target
        loss = ops_for(y).mse_forward(y, target)
        return _number(loss)

    def backward(self):
        kept, self._kept = _once(self), None
        return ops_for(kept[0]).mse_backward(*kept)


def _require_arrays(loss, **arrays):
    for name, array in arrays.items():
        if not hasattr(array, "ndim") or not hasattr(array, "dtype"):
            raise UserError(f"{loss} takes NumPy or CuPy arrays, got {shown(array)} for {name}: use numpy.asarray on it")


def _number(loss):
    """A float; the array as it is where it lies on a device, or where it is recorded, to be filled again."""
    return float(loss) if isinstance(loss, np.generic) else loss


def _once(loss):
    if loss._kept is None:
        raise RuntimeError(f"{type(loss).__name__}.backward needs a forward before it, one for each backward")
    return loss._kept
