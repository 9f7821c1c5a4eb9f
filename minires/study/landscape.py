"""Slices through the loss of a trained network, along random directions that are scaled to its filters.

Source: Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets", https://arxiv.org/abs/1712.09913
"""
from dataclasses import dataclass

import numpy as np

from minires.backends import device_of, to_device, to_numpy
from minires.errors import UserError
from minires.losses import CrossEntropyLoss
from minires.training.metrics import evaluate


@dataclass(frozen=True)
class Landscape:
    """loss, accuracy: (P,) along one direction, (P, P) over two: [i, j] at steps[i] * first + steps[j] * second.

    steps: (P,), in units of the filters' own norms. Where the network overflows the loss is NaN or infinite.
    """

    steps: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray


def random_direction(model, rng):
    """{parameter name: array of its shape}: a direction from `rng` in which a step of 1 is as long as each filter.

    A filter is what makes one output: weight[..., o] of a convolution (KH, KW, C, O) and of a linear layer (C, K).

        d_o = normal * |weight_o| / |normal|

    So the scale of the weights, which batch normalisation makes arbitrary, does not stretch the picture. Biases and the
    scales and shifts of batch normalisation are vectors and not moved, as in the paper's own code; neither are its
    running statistics.
    """
    direction = {}
    for name, parameter in model.named_parameters():
        weight = to_numpy(parameter.data)
        if weight.ndim < 2:
            direction[name] = np.zeros_like(weight)
            continue
        normal, axes = rng.standard_normal(weight.shape), tuple(range(weight.ndim - 1))
        length = np.sqrt((weight.astype(np.float64) ** 2).sum(axes) / (normal ** 2).sum(axes))
        direction[name] = (normal * length).astype(weight.dtype)
    return direction


def landscape(model, batches, steps, directions, progress=lambda done, total: None):
    """The Landscape of `model` along one or two `directions`, in evaluation mode over `batches`, a list of (x, target).

    steps: (P,) multiples of each direction; with a 0 among them the loss there is the model's own. progress(done, total)
    is called after each point. The weights are put back bit for bit, even after an exception.
    UserError for any other number of directions and for steps that are not P > 1 rising numbers.
    """
    steps = np.asarray(steps, np.float64)
    if steps.ndim != 1 or len(steps) < 2 or not (np.diff(steps) > 0).all():
        raise UserError(f"steps {steps.tolist()} are not rising numbers: expected two or more, as -1, 0, 1")
    if len(directions) not in (1, 2):
        raise UserError(f"a slice has 1 or 2 directions, got {len(directions)}")
    parameters = dict(model.named_parameters())
    origin = {name: parameter.data.copy() for name, parameter in parameters.items()}
    device = device_of(next(iter(origin.values())))
    directions = [{name: to_device(array, device) for name, array in direction.items()} for direction in directions]
    shape = (len(steps),) * len(directions)
    loss, accuracy = np.empty(shape), np.empty(shape)
    try:
        for done, place in enumerate(np.ndindex(shape), 1):
            for name, parameter in parameters.items():
                parameter.data[...] = origin[name] + sum(steps[at].astype(parameter.data.dtype) * direction[name]
                                                         for at, direction in zip(place, directions, strict=True))
            with np.errstate(over="ignore", invalid="ignore"):  # far out numbers overflow, which the picture shows
                score = evaluate(model, CrossEntropyLoss(), batches, device)
                loss[place], accuracy[place] = score.loss, score.accuracy
            progress(done, loss.size)
    finally:
        for name, parameter in parameters.items():
            parameter.data[...] = origin[name]
    return Landscape(steps, loss, accuracy)
