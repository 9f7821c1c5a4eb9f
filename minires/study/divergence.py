"""The first tensor in which two ways to train one network part, in units of the last place.

A *side* trains: `side.step(x, target)` makes one step and returns its trace, {Key: array} in the order of computing:
the output of each layer and the loss, then backwards each layer's parameter gradients and dx, then weights and running
statistics. A plan forms few of the outputs and dx as the layers have them: a planned side shows the logits, the loss and the
parameters' gradients instead.
"""
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minires.backends import HOST_BACKENDS, use_backend
from minires.errors import UserError
from minires.layer import Parameter
from minires.losses import CrossEntropyLoss
from minires.models import build_model
from minires.optim import SGD
from minires.plan import compile
from minires.study.taps import tapped

OPTIMISER = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
PHASES = ("forward", "backward", "update")
FAR = np.iinfo(np.uint64).max  # the distance between a number and NaN


class Key(NamedTuple):
    """A tensor's place in a step: one of PHASES, the layer's dotted name, and y, dx, weight.grad, weight .. ."""

    phase: str
    layer: str
    tensor: str

    def __str__(self):
        return f"{self.layer or 'network'}.{self.tensor}" if self.phase in PHASES else self.tensor


LOSS = Key("forward", "loss", "value")


def ulp_distance(a, b):
    """How many floating-point numbers apart: uint64, one an element. a, b: float32 or float64, one shape and dtype.

    0 for equal numbers, 1 for neighbours; +0 and -0 are one number, and the largest finite number and infinity are
    neighbours. Two NaN are equal, NaN and a number 2^64 - 1 apart. The bits of a positive float, read as an integer,
    count the floats up from 0; so do a negative one's without the sign, downwards.
    """
    if a.dtype != b.dtype or a.shape != b.shape or a.dtype not in (np.float32, np.float64):
        raise UserError(f"units of the last place need two float32 or two float64 arrays of one shape, got {a.dtype} "
                        f"{a.shape} and {b.dtype} {b.shape}")
    signed = np.dtype(f"i{a.dtype.itemsize}")
    rank_a, rank_b = (_rank(np.ascontiguousarray(array).view(signed).astype(np.int64), signed) for array in (a, b))
    # Two ranks of float64 may be 2^64 - 2^53 apart: the difference fits an unsigned number, and wraps into it.
    distance = np.maximum(rank_a, rank_b).view(np.uint64) - np.minimum(rank_a, rank_b).view(np.uint64)
    nan_a, nan_b = np.isnan(a), np.isnan(b)
    distance = np.where(nan_a & nan_b, 0, distance)
    return np.where(nan_a ^ nan_b, FAR, distance).astype(np.uint64).reshape(a.shape)


def _rank(bits, signed):
    """Integers in the order of the floats, 0 for both zeros."""
    return np.where(bits < 0, np.iinfo(signed).min - bits, bits)


@dataclass(frozen=True)
class Gap:
    """How far apart one tensor of two sides is, in one step.

    ulps: max |a - b| in units of the last place of the tensor's largest element, infinite where NaN, infinities or
    shapes differ: what rounding explains, since a sum that cancels to nearly 0 keeps the error of its terms.
    elementwise: the largest `ulp_distance`. differing: the fraction of elements that differ. note: what else is to be said.
    """

    step: int
    key: Key
    ulps: float
    elementwise: int
    differing: float
    note: str = ""


def measure(step, key, a, b):
    """The Gap between two arrays."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return Gap(step, key, np.inf, int(FAR), 1.0, f"{a.dtype} {a.shape} against {b.dtype} {b.shape}")
    if a.dtype.kind != "f":  # a count of steps
        same = np.array_equal(a, b)
        return Gap(step, key, 0.0 if same else np.inf, 0 if same else int(FAR), float(np.mean(a != b)))
    distance = ulp_distance(a, b)
    if not distance.size or not distance.any():
        return Gap(step, key, 0.0, 0, 0.0)
    finite = np.isfinite(a) & np.isfinite(b)
    if (distance[~finite] > 0).any():
        ulps = np.inf
    else:
        wide_a, wide_b = a[finite].astype(np.float64), b[finite].astype(np.float64)
        largest = max(np.abs(wide_a).max(), np.abs(wide_b).max())
        ulps = float(np.abs(wide_a - wide_b).max() / np.spacing(a.dtype.type(largest)))
    return Gap(step, key, ulps, int(distance.max()), float(np.mean(distance > 0)), _flipped(a, b))


def _flipped(a, b):
    """What rounding did to a ReLU: a unit that is open on one side only passes its gradient there only, whole."""
    if not (a.size and a.min() >= 0 and b.min() >= 0):
        return ""
    flipped = int(np.count_nonzero((a > 0) != (b > 0)))
    return f"{flipped:,} of {a.size:,} units are zero on one side only" if flipped else ""


@dataclass(frozen=True)
class Divergence:
    """gaps: every tensor that both sides have, in the order of computing, step by step. losses: (A's, B's) of each."""

    gaps: tuple
    losses: tuple

    def first(self, tolerance):
        """The first Gap above `tolerance` units of the last place, or None."""
        return next((gap for gap in self.gaps if gap.ulps > tolerance), None)

    def growth(self):
        """{(step, phase): the Gap with most ulps}, in order."""
        worst = {}
        for gap in self.gaps:
            place = gap.step, gap.key.phase
            if place not in worst or gap.ulps > worst[place].ulps:
                worst[place] = gap
        return worst

    def flips(self, step):
        """The Gaps of a step whose layers have units that are zero on one side only, each layer once.

        A pre-activation within rounding of zero lets a whole gradient through on one side and none on the other.
        """
        forward = [gap for gap in self.gaps if gap.step == step and gap.key.phase == "forward"]
        noted = [gap for before, gap in zip([None, *forward], forward, strict=False)
                 if gap.note and (before is None or gap.note != before.note)]  # a block puts out what its last layer does
        return [gap for gap in noted if not gap.key.layer.endswith("shortcut")]


class MiniresSide:
    """A minires network and its optimiser. contexts: functions without arguments, each a context for its steps."""

    def __init__(self, model, contexts=()):
        self.model, self.contexts, self.loss = model, contexts, CrossEntropyLoss()
        self.optimiser = SGD(model.parameters(), **OPTIMISER)

    def step(self, x, target):
        """Train one step on x: (N, H, W, C), target: (N,); returns (loss, trace)."""
        self.model.train()
        with ExitStack() as stack:
            for context in self.contexts:
                stack.enter_context(context())
            loss, trace = self._computed(x, target)
            self.optimiser.step()
        for key, array in self.model.state_dict().items():
            trace[Key("update", *split_name(key))] = array
        return loss, trace

    def _computed(self, x, target):
        """(loss, trace) of forward and backward."""
        trace = {}

        def on_forward(name, _, y):
            trace[Key("forward", name, "y")] = y.copy()

        def on_backward(name, layer, dy, dx):
            for tensor, parameter in vars(layer).items():
                if isinstance(parameter, Parameter):
                    trace[Key("backward", name, f"{tensor}.grad")] = parameter.grad.copy()
            trace[Key("backward", name, "dx")] = dx.copy()

        self.optimiser.zero_grad()
        with tapped(self.model, on_forward, on_backward):
            value = self.loss.forward(self.model.forward(x), target)
            trace[LOSS] = np.array([value], x.dtype)
            self.model.backward(self.loss.backward())
        return value, trace


class PlannedSide(MiniresSide):
    """A network that is trained as `minires.compile` plans it. See MiniresSide."""

    def __init__(self, model, contexts=()):
        super().__init__(model, contexts)
        self._step = compile(model, self.loss)

    def _computed(self, x, target):
        value, y = self._step(x, target)
        trace = {Key("forward", "", "y"): y, LOSS: np.array([value], x.dtype)}
        for name, parameter in reversed(list(self.model.named_parameters())):
            owner, tensor = split_name(name)
            trace[Key("backward", owner, f"{tensor}.grad")] = parameter.grad.copy()
        return value, trace


def split_name(name):
    """("layer1.0.conv1", "weight") of "layer1.0.conv1.weight"."""
    layer, _, tensor = name.rpartition(".")
    return layer, tensor


def make_side(name, model, seed=0, dtype=np.float32):
    """The MiniresSide called `name`, with the network `model` drawn from `seed`.

    name: parts joined by ":"; a back end (reference or cpu, the default), planned, and for cpu the convolution: direct,
    winograd2 or winograd4. So reference, cpu:direct, planned, reference:planned. UserError for any other.
    """
    parts = name.split(":")
    backend = parts.pop(0) if parts[0] in HOST_BACKENDS else "cpu"
    algorithms = [part for part in parts if part != "planned"]
    contexts = [lambda: use_backend(backend)]
    if len(algorithms) > 1 or (algorithms and (backend != "cpu" or algorithms[0] not in _algorithms())):
        raise UserError(f"{name!r} is no side to compare: expected a run's folder, torch, or a back end such as cpu, "
                        "reference, planned, cpu:direct, cpu:winograd2, cpu:winograd4, reference:planned")
    if algorithms:
        from minires.backends.cpu.algorithm import use_convolution

        contexts.append(lambda: use_convolution(algorithms[0]))
    network = build_model(model, rng=np.random.default_rng(seed)).astype(dtype)
    return (PlannedSide if "planned" in parts else MiniresSide)(network, contexts)


def _algorithms():
    from minires.backends.cpu.algorithm import ALGORITHMS

    return ALGORITHMS


def random_batch(batch_size, seed=0, dtype=np.float32, size=32, classes=10):
    """(x, target): normal noise as standardised images, x: (N, size, size, 3), target: (N,)."""
    if batch_size < 2:
        raise UserError(f"batch size {batch_size} is too small: expected 2 or more")
    rng = np.random.default_rng([seed, 1])  # not the stream that the weights come from
    return rng.standard_normal((batch_size, size, size, 3)).astype(dtype), rng.integers(0, classes, batch_size)


def compare_sides(a, b, x, target, steps, progress=lambda done: None):
    """Train both sides `steps` steps on one batch, each with its own weights, and return the Divergence.

    x: (N, H, W, C); target: (N,). Tensors that only one side shows are left out (a plan has no layers' outputs).
    """
    if steps < 1:
        raise UserError(f"steps {steps} is too small: expected 1 or more")
    gaps, losses = [], []
    for step in range(1, steps + 1):
        (loss_a, trace_a), (loss_b, trace_b) = a.step(x, target), b.step(x, target)
        losses.append((float(loss_a), float(loss_b)))
        gaps += [measure(step, key, array, trace_b[key]) for key, array in trace_a.items() if key in trace_b]
        progress(step)
    return Divergence(tuple(gaps), tuple(losses))
