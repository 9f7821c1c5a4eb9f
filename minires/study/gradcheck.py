"""Backward passes against numerical derivatives: how every gradient of this project is proved.

    L = sum(dy * layer(x)), dy random

`layer.backward(dy)` claims to be dL/dx and to add dL/dparameter to each parameter's grad. An entry of such a tensor is
compared with the central difference (L(+h) - L(-h)) / 2h, taken as sum(dy * (y(+h) - y(-h))) / 2h so that the large
common part of the two sums does not round the difference away. A tensor's error is

    max |claimed - numerical| / max(max |numerical|, floor)      over the entries checked

with one scale for the whole tensor: an entry that is nearly zero is held to the accuracy of its neighbours instead of
to its own. The floor, 1e-4 of sqrt(sum((dy * y)^2)), is what rounding leaves of a gradient that is zero.

Of a large tensor a random sample is checked, and with it the slope along one random direction, which feels every entry.

A kink (ReLU, max pooling) inside the step makes the difference wrong, not the gradient. An entry that disagrees is
therefore measured again with steps ten times shorter until two measurements agree with each other, and that one counts.
If none do, the entry has no numerical derivative; it is counted as a kink and another is drawn. Whether it is one
is decided by the measurements alone, so a wrong gradient cannot excuse itself, and too many kinks fail the check.
"""
from dataclasses import dataclass

import numpy as np

from minires.backends import device_of, to_device, to_numpy
from minires.errors import UserError
from minires.init import default_rng
from minires.layer import Layer

STEPS = (1e-5, 1e-6, 1e-7, 1e-8)
FLOOR = 1e-4
REPEAT = 1e-9  # two runs of one backward may differ by the order of their sums, no more


class GradientError(AssertionError):
    """A gradient is not the derivative. The message names the tensors; `report` holds every measurement."""

    def __init__(self, message, report):
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class TensorCheck:
    """One tensor's result. tensor: "dx" or a parameter's dotted name; size: its entries; entries: those checked;
    kinks: those without a numerical derivative; error: the worst relative error; problem: None, or what is wrong."""

    tensor: str
    size: int
    entries: int
    kinks: int
    error: float
    problem: str | None

    @property
    def passed(self):
        return self.problem is None


@dataclass(frozen=True)
class GradientReport:
    """What was measured on one layer: a TensorCheck for dx and for each parameter."""

    subject: str
    tolerance: float
    tensors: tuple

    @property
    def passed(self):
        return all(check.passed for check in self.tensors)

    @property
    def error(self):
        """The worst relative error of all tensors."""
        return max(check.error for check in self.tensors)


class LayerState:
    """What a forward changes in a layer and those below it: running statistics, and the generators that dropout draws
    from. Taken when made; `restore` puts it back, as often as it is called."""

    def __init__(self, layer):
        self.buffers = [(part, name, getattr(part, name).copy())
                        for _, part in layer.named_layers() for name in part.buffers]
        self.generators = [(value, value.bit_generator.state) for _, part in layer.named_layers()
                           for value in vars(part).values() if isinstance(value, np.random.Generator)]

    def restore(self):
        """Put everything back as it was."""
        for part, name, value in self.buffers:
            getattr(part, name)[...] = value  # in place: a plan relies on the arrays that it was made of
        for generator, state in self.generators:
            generator.bit_generator.state = state


class LossLayer(Layer):
    """A loss as a layer, for the checks: x: (N, K), y: (1,), the loss against a fixed target."""

    def __init__(self, loss, target):
        self.loss, self.target = loss, target

    def forward(self, x):
        return np.array([self.loss.forward(x, self.target)])

    def backward(self, dy):
        return self.loss.backward() * dy


def distinct_nonzero(shape, rng):
    """float64 values of random sign, 0.1 to 2 in size, any two of the n sizes at least 0.9 / n apart.

    So no ReLU is at its kink and no two pixels tie in max pooling, and a small step leaves it so.
    """
    n = int(np.prod(shape))
    sizes = 0.1 + 1.9 * (rng.permutation(n) + rng.uniform(0.25, 0.75, n)) / max(n, 1)
    return (sizes * rng.choice((-1.0, 1.0), n)).reshape(shape)


def randomise_parameters(layer, rng):
    """Give every parameter and running statistic a random value, in place. Returns the layer.

    At 1 and 0, where training starts, a swapped or forgotten weight or bias would not show. Weights keep the size of
    the signal (He), scales are 0.5 to 1.5 of either sign, running variances 0.5 to 2.
    """
    for name, parameter in layer.named_parameters():
        _fill(parameter.data, _random_values(name.split(".")[-1], parameter.data.shape, rng))
    for _, part in layer.named_layers():
        for name in part.buffers:
            array = getattr(part, name)
            spread = rng.uniform(0.5, 2, array.shape) if name.endswith("var") else 0.5 * rng.standard_normal(array.shape)
            _fill(array, spread)
    return layer


def _random_values(name, shape, rng):
    if len(shape) > 1:
        return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
    if name == "weight":
        return rng.uniform(0.5, 1.5, shape) * rng.choice((-1, 1), shape)
    return 0.5 * rng.standard_normal(shape)


def _fill(array, values):
    array[...] = to_device(values.astype(array.dtype), device_of(array))


def learned(layer):
    """[(dotted name, Parameter)] of those that backward gives a gradient: all that are not frozen."""
    return [(name, parameter) for name, parameter in layer.named_parameters() if not parameter.frozen]


def check_gradients(layer, x, rng=None, tolerance=1e-6, *, complete=400, sample=50):
    """Prove dx and every parameter's gradient (but of those that are frozen), in value, shape and dtype; returns the
    GradientReport.

    x: float64, away from kinks and ties (`distinct_nonzero`); the layer in float64 too. Tensors of up to `complete`
    entries are checked whole, larger ones in `sample` entries drawn by rng and along one random direction. rng: a Generator
    or a seed, 0 if None; dy is drawn from it too.
    Also checked: gradients add up over two backward passes; x and dy stay as they were. The layer is left as it was, with
    gradients at zero: parameters, running statistics and random generators are put back, before each forward and at the end.

    GradientError names every tensor that is not the derivative to `tolerance`; UserError for anything but float64.
    A loss is checked as `LossLayer(loss, target)`.
    """
    report = measure_gradients(layer, x, rng, tolerance, complete=complete, sample=sample)
    if not report.passed:
        problems = "; ".join(f"{check.tensor} {check.problem}" for check in report.tensors if not check.passed)
        raise GradientError(f"{report.subject}.backward: {problems}", report)
    return report


def measure_gradients(layer, x, rng=None, tolerance=1e-6, *, complete=400, sample=50, progress=lambda: None):
    """`check_gradients` without the verdict: the report, of failures too. progress() is called after each tensor."""
    arrays = {"x": x, **{name: parameter.data for name, parameter in layer.named_parameters()}}
    wrong = [f"{name} is {array.dtype}" for name, array in arrays.items() if array.dtype != np.float64]
    if wrong:
        raise UserError(f"gradients are proved in float64, but {', '.join(wrong)}: convert with astype(numpy.float64)")
    probe = _Probe(layer, x, default_rng(0 if rng is None else rng), tolerance)
    try:
        checks = []
        for name in probe.claims:
            checks.append(probe.check(name, complete, sample))
            progress()
    finally:
        probe.state.restore()
        layer.zero_grad()
        layer.forget()
    return GradientReport(type(layer).__name__, tolerance, tuple(checks))


class _Probe:
    """A layer at one x and dy: what its backward claims, and numerical slopes of L to hold against it."""

    def __init__(self, layer, x, rng, tolerance):
        self.layer, self.x, self.rng, self.tolerance = layer, x.copy(), rng, tolerance
        self.state = LayerState(layer)
        self.arrays = {"dx": self.x, **{name: parameter.data for name, parameter in learned(layer)}}
        self.broken = {}
        y = self.forward()
        self.dy = rng.standard_normal(y.shape)
        self.floor = FLOOR * np.sqrt(np.sum((self.dy * y) ** 2))
        if not (np.isfinite(self.floor) and self.floor > 0):
            self.broken["dx"] = "cannot be checked: y is zero everywhere or not finite"
        self.claims = self.backward_claims()

    def forward(self):
        """y as a new host array: a layer that returns its x would otherwise change with the next step."""
        self.state.restore()
        return to_numpy(self.layer.forward(self.x)).copy()

    def backward_claims(self):
        """{name: claimed gradient}, from the first of two backward passes; what the second shows goes to `broken`."""
        self.layer.zero_grad()
        x, runs, changed = to_numpy(self.x).copy(), [], []
        for _ in range(2):
            self.forward()
            dy = to_device(self.dy.copy(), device_of(self.x))
            dx = self.layer.backward(dy)
            changed += ["dy"] * (not np.array_equal(to_numpy(dy), self.dy))
            changed += ["x"] * (not np.array_equal(to_numpy(self.x), x))
            grads = {name: to_numpy(parameter.grad).copy() for name, parameter in learned(self.layer)}
            runs.append({"dx": to_numpy(dx).copy(), **grads})
        first, second = runs
        for name, claim in first.items():
            array, times = self.arrays[name], 1 if name == "dx" else 2
            if (claim.shape, claim.dtype) != (array.shape, array.dtype):
                self.broken[name] = f"is {claim.shape} {claim.dtype}, expected {array.shape} {array.dtype}"
            elif not np.isfinite(claim).all():
                self.broken[name] = "is not finite"
            elif not np.abs(second[name] - times * claim).max(initial=0) <= REPEAT * np.abs(claim).max(initial=0):
                self.broken[name] = "is not added to grad by a second backward" if times == 2 else "differs in a second run"
        if changed:
            self.broken["dx"] = f"came with a change of {changed[0]}, which belongs to the caller"
        return first

    def slope(self, direction, step):
        """The central difference of L along (array, index) or (array, unit vector)."""
        array, where = direction
        start, ys = array.copy(), []
        for signed in (step, -step):
            if isinstance(where, tuple):
                array[where] += signed
            else:
                array += signed * where
            ys.append(self.forward())
            array[...] = start
        return float(np.vdot(self.dy, ys[0] - ys[1])) / (2 * step)

    def settle(self, direction, slope, scale):
        """The slope on which two steps agree, or None at a kink."""
        for step in STEPS[1:]:
            finer = self.slope(direction, step)
            if abs(finer - slope) <= self.tolerance / 2 * max(scale, abs(finer)):
                return finer
            slope = finer
        return None

    def check(self, name, complete, sample):
        """The TensorCheck of one tensor."""
        claim, array = self.claims[name], self.arrays[name]
        if name in self.broken:
            return TensorCheck(name, array.size, 0, 0, float("inf"), self.broken[name])
        order = self.rng.permutation(array.size)
        count = array.size if array.size <= complete else min(sample, array.size)
        spare = [np.unravel_index(index, array.shape) for index in order]
        places, spare = [(array, index) for index in spare[:count]], spare[count:]
        claimed = [claim[index] for _, index in places]
        if spare:
            unit = self.rng.standard_normal(array.shape)
            unit /= np.linalg.norm(unit)
            places.append((array, to_device(unit, device_of(array))))
            claimed.append(np.vdot(claim, unit))
        slopes = [self.slope(place, STEPS[0]) for place in places]
        if not np.isfinite(slopes).all():
            return TensorCheck(name, array.size, 0, 0, float("inf"), "cannot be checked: y is not finite beside x")
        scale = max(self.floor, np.abs(slopes).max(initial=0))
        kinks, worst, entries = 0, 0.0, 0
        allowed = 1 + len(places) // 20
        queue = list(zip(places, claimed, slopes, strict=True))
        while queue and kinks <= allowed:
            place, expected, slope = queue.pop()
            if abs(slope - expected) > self.tolerance * scale:
                slope = self.settle(place, slope, scale)
            if slope is None:
                kinks += 1
                if spare:
                    index = spare.pop()
                    queue.append(((array, index), claim[index], self.slope((array, index), STEPS[0])))
                continue
            worst = max(worst, float(abs(slope - expected)) / max(scale, abs(slope)))
            entries += isinstance(place[1], tuple)
        problem = None
        if worst > self.tolerance:
            problem = f"has relative error {worst:.1e} over {entries} of {array.size} entries, not {self.tolerance:.0e}"
        elif kinks > allowed or entries == 0:
            problem = f"has no numerical derivative at {kinks} of {kinks + entries} entries: move x away from kinks"
        return TensorCheck(name, array.size, entries, kinks, worst, problem)
