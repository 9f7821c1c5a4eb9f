"""Adversarial examples: images changed by at most epsilon a pixel so that the loss rises, by the engine's own dL/dx.

    attack = Attack(model, epsilon=8 / 255, mean=mean, std=std)                       # FGSM: one step
    attack = Attack(model, epsilon=8 / 255, mean=mean, std=std, steps=7, rng=rng)     # PGD
    changed = attack(x, target)
    attack.accuracy(loader)                     # of the model on changed images
    Trainer(model, optimiser, attack.over(train), ...)    # adversarial training

The gradient is of the network in evaluation mode: batch statistics would couple the images of a batch.
Sources: Goodfellow et al. 2014, section 4 (FGSM), https://arxiv.org/abs/1412.6572; Madry et al. 2017, section 2.1 (PGD, and
training on what it finds), https://arxiv.org/abs/1706.06083
"""
from copy import copy

import numpy as np

from minires.arguments import count, number
from minires.backends import device_of, to_device
from minires.data.augment import Standardise
from minires.errors import UserError
from minires.init import default_rng
from minires.layer import evaluating
from minires.losses import CrossEntropyLoss
from minires.plan import compile


class Attack:
    """attack(x, target) -> x', |x' - x| <= epsilon and x' a picture, in units of pixels in [0, 1]:

        x' = project(x' + step * sign(dL/dx'))        steps times

    from x itself, or with an `rng`, a Generator or a seed, from a random picture within epsilon. x: (N, H, W, C),
    standardised by mean and std, (C,). step: 2.5 * epsilon / steps by default, so that the border is reached, and epsilon if
    there is one step. The model is left as it was, its gradients too.
    UserError for an epsilon or step that is not above 0 and for fewer than one step.
    """

    def __init__(self, model, loss=None, *, epsilon, mean, std, steps=1, step=None, rng=None):
        self._epsilon, self.steps = number("epsilon", epsilon, above=0), count("steps", steps)
        self._step = (epsilon if steps == 1 else 2.5 * epsilon / steps) if step is None else number("step", step, above=0)
        self.model, self.rng = model, None if rng is None else default_rng(rng)
        Standardise(mean, std)  # refuses what is no mean and std
        self._mean, self._std = np.asarray(mean), np.asarray(std)
        self._gradient = compile(model, CrossEntropyLoss() if loss is None else loss, input_gradient=True)
        self._predict = compile(model)

    def __call__(self, x, target):
        mean, std, epsilon, step = (to_device(np.broadcast_to(value, self._mean.shape).astype(x.dtype), device_of(x))
                                    for value in (self._mean, self._std, self._epsilon, self._step))
        low, high = np.maximum(x - epsilon / std, -mean / std), np.minimum(x + epsilon / std, (1 - mean) / std)
        changed = x.copy()
        if self.rng is not None:
            noise = to_device(self.rng.uniform(-1, 1, x.shape).astype(x.dtype), device_of(x))
            changed = np.minimum(np.maximum(x + noise * (epsilon / std), low), high)
        gradients = [(parameter.grad, parameter.grad.copy()) for parameter in self.model.parameters()]
        try:
            with evaluating(self.model):
                for _ in range(self.steps):
                    _, _, dx = self._gradient(changed, target)
                    changed = np.minimum(np.maximum(changed + (step / std) * np.sign(dx), low), high)
        finally:
            for gradient, before in gradients:
                gradient[...] = before
        return changed

    def accuracy(self, loader):
        """The fraction of a loader's images that the model, in evaluation mode, names right after they were changed."""
        right = seen = 0
        for x, target in self._changed(loader):
            right += int((self._predict(x).argmax(1) == target).sum())
            seen += len(target)
        if not seen:
            raise UserError("the loader to attack yielded no batch: expected at least one image")
        return right / seen

    def over(self, loader):
        """A loader of the same batches, changed: by the model as it is when a batch is asked for.

        Where the attack draws, it draws from the loader's `rng`, if that has one: a training run that is resumed knows where
        it stands.
        """
        attack = copy(self)
        if self.rng is not None:
            attack.rng = getattr(loader, "rng", None) or self.rng
        return _Attacked(attack, loader)

    def _changed(self, batches):
        """(x', target) for each (x, target), where the model is."""
        device = next((device_of(parameter.data) for parameter in self.model.parameters()), "cpu")
        for x, target in batches:
            x, target = to_device(x, device), to_device(target, device)
            yield self(x, target), target


class _Attacked:
    """See `Attack.over`. batches_from(start, epoch), where the loader has it: an epoch from its batch number `start` on."""

    def __init__(self, attack, loader):
        self._attack, self._loader = attack, loader
        self.rng = getattr(loader, "rng", None) or attack.rng
        if hasattr(loader, "batches_from"):
            self.batches_from = lambda start=0, epoch=None: attack._changed(loader.batches_from(start, epoch))

    dataset = property(lambda self: self._loader.dataset)

    def __len__(self):
        return len(self._loader)

    def __iter__(self):
        return self._attack._changed(self._loader)
