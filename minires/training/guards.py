"""Guards of training: what is not finite is found before it is saved, and told by layer and tensor."""
import math

import numpy as np

from minires.backends import to_numpy
from minires.layer import left_as_found, listening, zero_gradients

RATIO_EVERY = 16  # steps between two whose update is measured against the weights
DEVICE_EVERY = 50  # steps between two whose gradients are read from a device, which must be waited for
ROW = 8192  # numbers that are multiplied in one call


def norm(arrays):
    """The Euclidean norm of all numbers of some arrays: inf or NaN where one of them is. One pass over the memory."""
    flat = [array.reshape(-1) for array in arrays]
    if isinstance(flat[0], np.ndarray):
        with np.errstate(over="ignore", invalid="ignore"):
            total = sum(float(_square_sum(array)) for array in flat)
    else:
        total = float(sum(array.dot(array) for array in flat))  # one wait
    if math.isfinite(total):
        return math.sqrt(total)
    # The squares may overflow where the numbers do not.
    return math.sqrt(sum(float((to_numpy(array).astype(np.float64) ** 2).sum()) for array in flat))


def _square_sum(array):
    """The sum of the squares, in rows so short that BLAS does not wake threads of its own beside the kernels'."""
    if array.size <= ROW:
        return array.dot(array)
    whole = array.size // ROW * ROW
    rows, rest = array[:whole].reshape(-1, ROW), array[whole:]
    return np.vecdot(rows, rows).sum() + rest.dot(rest)


def is_finite(array):
    """Whether every number of an array is finite."""
    return bool(np.isfinite(to_numpy(array)).all())


def first_not_finite(tensors):
    """The name of the first of some tensors, {name: array}, that holds a number which is not finite; or None."""
    return next((name for name, array in tensors.items() if array.dtype.kind == "f" and not np.isfinite(array).all()), None)


def where_not_finite(model, loss, x, target):
    """Repeat a step layer by layer and say in which tensor the first number appeared that is not finite.

    The model is left as it was found, but for the gradients.
    """
    if not is_finite(x):
        images = [index for index, image in enumerate(to_numpy(x)) if not np.isfinite(image).all()]
        return (f"the input held it already: {len(images)} of the batch's {len(x)} images, the first at place {images[0]}; "
                "look at the data, not at the learning rate")
    found = first_not_finite({name: to_numpy(parameter.data) for name, parameter in model.named_parameters()})
    if found is not None:
        return f"the input is finite, and {found} held it before the step: an update brought it"
    names = {layer: name or "the model" for name, layer in model.named_layers()}
    seen = []

    def look(layer, method, _, result):
        if seen:
            return
        own = [(name, parameter.grad) for name, parameter in layer.own_parameters()]
        made = [("output", result)] if method == "forward" else [*((f"gradient of {name}", grad) for name, grad in own),
                                                                  ("dx", result)]
        seen.extend(f"{what} of {names[layer]} ({type(layer).__name__})" for what, array in made
                    if array is not None and not is_finite(array))

    with left_as_found(model), listening(names, look), np.errstate(all="ignore"):
        zero_gradients(model.parameters())
        y = model.forward(x)
        value = loss.forward(y, target)
        if not seen and not math.isfinite(float(value)):
            seen.append(f"loss itself, of logits up to {float(abs(to_numpy(y)).max()):.3g}")
        model.backward(loss.backward())
    if not seen:
        return "the input and the weights are finite, and repeated layer by layer so is the step"
    return f"the input and the weights are finite, and it appeared first in the {seen[0]}"


class Before:
    """What a step changes besides the weights, to be put back when its update is skipped: statistics of normalisations."""

    def __init__(self, model):
        self._buffers = [(array, array.copy()) for _, layer in model.named_layers()
                         for array in (getattr(layer, name) for name in layer.buffers)]

    def put_back(self):
        """Undo."""
        for array, was in self._buffers:
            array[...] = was


class Update:
    """Measures |update| / |weights| of a step: made before it, asked after it."""

    def __init__(self, parameters):
        self._arrays = [parameter.data for parameter in parameters]
        self._before = [array.copy() for array in self._arrays]

    def ratio(self):
        """The norm of what the step added, of the norm of the weights before it; None for weights that are all zero."""
        weights = norm(self._before)
        if weights == 0:
            return None
        for was, now in zip(self._before, self._arrays, strict=True):
            was -= now
        return norm(self._before) / weights
