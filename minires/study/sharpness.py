"""How sharp the loss becomes under gradient descent: the Hessian's largest eigenvalue along a training.

A step of gradient descent with rate lr on a quadratic of curvature h multiplies the distance to its bottom by 1 - lr h: it
shrinks while h < 2 / lr and grows beyond. Yet networks that are trained by plain gradient descent on all of their images
are driven up to that very line, and often over it, while the loss still falls ("the edge of stability"). With cross-entropy
the eigenvalue falls again once the images are fitted: p' = p (v - sum p v) vanishes where p is 0 or 1.
Source: Cohen et al. 2021, "Gradient descent on neural networks typically occurs at the edge of stability",
https://arxiv.org/abs/2103.00065; for deep networks' spectra Ghorbani et al. 2019, https://arxiv.org/abs/1901.10159.
"""
import math

import numpy as np

from minires.data import Standardise, channel_statistics, make_shapes
from minires.errors import UserError
from minires.losses import CrossEntropyLoss
from minires.models import build_model
from minires.plan import compile
from minires.study.hessian import LossHessian, lanczos

IMAGE_SIZE = 16  # pixels a side: a product costs a quarter of what it does at 32, and the shapes still differ
TOLERANCE = 0.02  # an eigenvalue's relative error: less than the width of its line on a picture
FRESH = 0.3  # of a random direction, mixed into the last eigenvector to start from: it need not be the top one any more


def small_network(depth, plain, seed):
    """A CIFAR ResNet or its plain twin, He-initialised. UserError unless depth is 6n + 2 with n of at least 1, and for a
    negative seed."""
    if depth < 8 or depth % 6 != 2:
        raise UserError(f"depth {depth} is no ResNet of this family: choose 8, 14, 20 or another 6n + 2")
    if seed < 0:
        raise UserError(f"seed {seed} is negative: expected 0 or more")
    return build_model("resnet", blocks=((depth - 2) // 6,) * 3, channels=(16, 32, 64), block="plain" if plain else "basic",
                       shortcut=None if plain else "A", rng=seed)


def small_batch(images, seed):
    """x: (images, 16, 16, 3) float32, standardised, and target: (images,), drawn shapes. UserError for under 10 images."""
    if images < 10:
        raise UserError(f"{images} images leave classes without one: choose 10 or more")
    drawn = make_shapes(images, seed, IMAGE_SIZE)
    return Standardise(*channel_statistics(drawn.images))(drawn.images), drawn.labels


def sharpness_along_training(network, x, target, lr, steps, measurements, seed):
    """Train by gradient descent on the whole batch and yield a row, a dict, at `measurements` evenly spaced steps:

    step; loss: cross-entropy before that step; top, bottom: the Hessian's largest eigenvalue, to about 2 %, and the
    smallest one met on the way to it; products: how many Hessian-vector products it took. The first row is of the start,
    the last of the end.
    x: (N, H, W, C), target: (N,) integers. seed: of the eigenvalues' start vectors.
    UserError for a rate that is not above 0, for counts that do not fit, and when the loss is no longer finite.
    """
    if not (0 < lr < math.inf):
        raise UserError(f"learning rate {lr} is not above 0: expected a number such as 0.1")
    if steps < 1 or not 2 <= measurements <= steps + 1:
        raise UserError(f"{measurements} measurements along {steps} steps cannot be made: expected 2 to steps + 1 of them")
    return _follow(network, x, target, lr, steps, measurements, np.random.default_rng(seed))


def _follow(network, x, target, lr, steps, measurements, rng):
    loss, vector = CrossEntropyLoss(), None
    gradients, hessian = compile(network, loss), LossHessian(network, loss, x, target)
    chosen = {round(step) for step in np.linspace(0, steps, measurements)}
    for step in range(steps + 1):
        with np.errstate(over="ignore", invalid="ignore"):  # numbers that overflow show up in the loss
            value, _ = gradients(x, target)
            if not math.isfinite(value):
                raise UserError(f"the loss became {value} at step {step} with learning rate {lr:g}: choose a lower one")
        if step in chosen:
            fresh = rng.standard_normal(hessian.size)
            start = fresh if vector is None else vector + FRESH * fresh / np.linalg.norm(fresh)
            with np.errstate(over="ignore", invalid="ignore"):
                found = _eigenvalues(hessian, rng, start, step, lr)
            vector = found.vector
            yield {"step": step, "loss": value, "top": found.top, "bottom": found.bottom, "products": found.products}
        for parameter in network.parameters():
            parameter.data -= parameter.data.dtype.type(lr) * parameter.grad


def _eigenvalues(hessian, rng, start, step, lr):
    try:
        return lanczos(hessian, hessian.size, rng, start, TOLERANCE)
    except UserError as error:
        raise UserError(f"the curvature overflows at step {step} with learning rate {lr:g}: choose a lower one") from error
