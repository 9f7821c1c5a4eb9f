"""Mistakes in a model, and in how it is to be trained: each an experiment on a few images."""
import copy
import math

import numpy as np

from minires.layer import evaluating, left_as_found, listening
from minires.layers import ReLU
from minires.losses import CrossEntropyLoss
from minires.optim import SGD
from minires.plan import compile
from minires.study.doctor.finding import Finding

BY_HEART, STEPS = 32, 150  # images, and steps to learn them
MOMENT = 240  # steps after which a network has learned something, if there is anything to learn
RANGE = np.geomspace(1e-5, 10, 70)  # learning rates of the range test
TRIAL = 60  # steps at the rate that is meant
DEAD = 0.25  # of a layer's units


def look_at_model(model, train, *, lr=None, predict=None, picture=None, trained=None):
    """Findings about an untrained model. trained: the same model after training, where there is one, for dead units."""
    images, labels = _some(train, 256)
    found = _neighbours(model if trained is None else trained, predict, images)
    found += _initial_loss(model, images, labels) + _gradients(model, images, labels)
    found += _dead(model if trained is None else trained, images)
    found += _by_heart(model, images, labels)
    if lr is not None:
        found += _rate(model, train, lr, picture)
    return found


def _some(loader, count):
    """(x, target) of up to `count` images, without augmentation, drawn over the whole set."""
    data = loader.dataset
    place = np.random.default_rng(0).permutation(len(data))[:count]
    return loader.standardise(data.images[place]), data.labels[place]


def _neighbours(model, predict, x):
    """An image's logits must not depend on the others of its batch: they do where a batch's statistics are used."""
    predict = compile(model) if predict is None else predict
    half = max(1, min(16, len(x) // 2))
    with left_as_found(model):
        together, alone = np.asarray(predict(x[:2 * half]))[:half], np.asarray(predict(x[:half]))
    apart, scale = float(np.abs(together - alone).max()), float(np.abs(together).max()) + 1e-12
    if apart / scale < 1e-3:
        return []
    return [Finding("evaluation in training mode", f"the same image gets other logits in another batch, up to {apart:.2g} "
                                                   "apart: evaluate in evaluation mode (model.eval(), or "
                                                   "minires.training.evaluate)")]


def _initial_loss(model, x, target):
    classes = len(np.asarray(compile(model)(x[:1]))[0])
    with np.errstate(all="ignore"):
        value = float(CrossEntropyLoss().forward(_copy(model).forward(x), target))
    if abs(value - math.log(classes)) <= max(0.7, 0.5 * math.log(classes)):
        return []
    return [Finding("initial loss", f"an untrained network of {classes} classes has a loss of {value:.2f} where ln "
                                    f"{classes} = {math.log(classes):.2f} is a guess's: the last layer's weights, or the "
                                    "scale of the input, are too large, or the loss is another")]


def _gradients(model, x, target):
    loss, twin, rng = CrossEntropyLoss(), _copy(model), np.random.default_rng(0)
    for parameter in twin.parameters():
        parameter.zero_grad()
        if not parameter.data.any():  # a layer that begins as zero lets no gradient through to those before it
            parameter.data[...] += 0.1 * rng.standard_normal(parameter.data.shape)
    with np.errstate(all="ignore"):
        loss.forward(twin.forward(x[:64]), target[:64])
        twin.backward(loss.backward())
    still = [name for name, parameter in twin.named_parameters() if not (parameter.frozen or parameter.grad.any())]
    if not still:
        return []
    return [Finding("no gradient", f"{len(still)} parameters get none, {', '.join(still[:3])} among them: they are "
                                   "not used, or a backward pass does not reach them")]


def _dead(model, x):
    """Units of a ReLU that pass nothing, on any image."""
    alive, names = {}, {layer: name for name, layer in model.named_layers() if isinstance(layer, ReLU)}

    def look(layer, method, _, y):
        if method == "forward":
            alive[layer] = np.asarray(y).reshape(-1, y.shape[-1]).any(0)

    with left_as_found(model), evaluating(model), listening(names, look), np.errstate(all="ignore"):
        model.forward(x)
    model.forget()
    found = [(names[layer], units) for layer, units in alive.items() if (~units).mean() > DEAD]
    if not found:
        return []
    name, units = found[0]
    more = f", and so in {len(found) - 1} layers more" if len(found) > 1 else ""
    return [Finding("dead units", f"{int((~units).sum())} of the {len(units)} channels after {name} are zero on all "
                                  f"{len(x)} images{more}: a learning rate was too high, or a bias far below zero")]


def _copy(model):
    twin = copy.deepcopy(model)
    twin.forget()
    return twin.train()


def _by_heart(model, x, target):
    """A network that cannot learn a handful of images has a mistake in its backward pass or its wiring."""
    x, target, best = x[:BY_HEART], target[:BY_HEART], 0.0
    for rate in (0.05, 0.005):
        twin = _copy(model)
        step, optimiser = compile(twin, CrossEntropyLoss()), SGD(twin.parameters(), rate, 0.9)
        with np.errstate(all="ignore"):
            for _ in range(STEPS):
                _, y = step(x, target)
                optimiser.step()
                best = max(best, float((np.asarray(y).argmax(1) == target).mean()))
                if best >= 0.95:
                    return []
    return [Finding("cannot learn by heart", f"after {STEPS} steps on {len(x)} images the network names {best:.0%} of them "
                                             "right, and it should name all: check its backward passes (check_gradients) "
                                             "and that the optimiser has its parameters")]


def learned(model, train, place):
    """names(images, labels) -> which are named right, of a copy that learned from the images at `place` for a moment."""
    twin, rng, data = _copy(model), np.random.default_rng(0), train.dataset
    step, optimiser = compile(twin, CrossEntropyLoss()), SGD(twin.parameters(), 0.0, 0.9, 5e-4)
    with np.errstate(all="ignore"):
        for number in range(MOMENT):
            optimiser.lr = 0.1 * min(1, number / 30) * (1 - number / MOMENT)
            batch = place[rng.integers(0, len(place), min(64, len(place)))]
            step(train.standardise(data.images[batch]), data.labels[batch])
            optimiser.step()
    twin.eval()
    predict = compile(twin)

    def names(images, labels):
        parts = np.array_split(images, -(-len(images) // 100))
        return np.concatenate([np.asarray(predict(train.standardise(part))).argmax(1) for part in parts]) == labels

    return names


def range_test(model, train, rates=RANGE):
    """[(learning rate, loss)] of a copy whose rate rises at each step, until the loss is four times the first."""
    twin, curve = _copy(model), []
    step, optimiser = compile(twin, CrossEntropyLoss()), SGD(twin.parameters(), float(rates[0]), 0.9)
    batches, smooth = _endless(train), None
    for rate in rates:
        x, target = next(batches)
        optimiser.lr = float(rate)
        with np.errstate(all="ignore"):
            value, _ = step(x, target)
            optimiser.step()
        smooth = value if smooth is None else 0.8 * smooth + 0.2 * value
        curve.append((float(rate), float(smooth)))
        if not math.isfinite(value) or smooth > 4 * curve[0][1]:
            break
    return curve


def _endless(loader):
    data, rng = loader.dataset, np.random.default_rng(0)
    while True:
        for place in np.array_split(rng.permutation(len(data)), max(1, len(data) // min(64, loader.batch_size))):
            yield loader.standardise(data.images[place]), data.labels[place]


def _fails(model, train, lr, start):
    """Whether a copy is lost at a rate that it is led to slowly, as schedules do: a range test rises faster than any."""
    twin, batches, losses = _copy(model), _endless(train), []
    step, optimiser = compile(twin, CrossEntropyLoss()), SGD(twin.parameters(), 0.0, 0.9)
    with np.errstate(all="ignore"):
        for number in range(TRIAL):
            optimiser.lr = lr * min(1, 1.5 * (number + 1) / TRIAL)
            value, y = step(*next(batches))
            optimiser.step()
            losses.append(float(value))
    dead = np.ptp(np.asarray(y), axis=0).max() < 1e-6  # whatever the image, the answer is the same
    return dead or not np.mean(losses[-TRIAL // 6:]) < 1.5 * start


def _rate(model, train, lr, picture):
    """Smith 2017, section 3.3, https://arxiv.org/abs/1506.01186: the loss falls, then flies up as the rate grows."""
    curve = [(rate, loss) for rate, loss in range_test(model, train) if math.isfinite(loss)]
    if not curve:
        return [Finding("learning rate", f"the loss of a range test is not finite from its first step on, at "
                                         f"{RANGE[0]:.0e}: make the input or the weights smaller, no learning rate helps")]
    if picture is not None:
        from minires.plots import draw_range_test

        draw_range_test(curve, lr, picture)
    start, lowest = curve[0][1], min(loss for _, loss in curve)
    best = next(rate for rate, loss in curve if loss == lowest)
    begins = next((rate for rate, loss in curve if loss < start - 0.2 * (start - lowest)), best)  # the loss begins to fall
    too_high = next((rate for rate, loss in curve if rate > best and loss > 2 * start), None)
    if (lr > 30 * best or (too_high is not None and lr > 3 * too_high)) and _fails(model, train, lr, start):
        flies = "" if too_high is None else f" and flies up at {too_high:.2g}"
        return [Finding("learning rate", f"{lr:.2g} is too high: in a range test the loss is lowest at {best:.2g}{flies}; "
                                         f"try {best / 3:.1g}")]
    if lr < begins / 30:
        return [Finding("learning rate", f"{lr:.2g} is too low: in a range test the loss begins to fall at {begins:.2g} and "
                                         f"is lowest at {best:.2g}; try {best / 3:.1g}")]
    return []
