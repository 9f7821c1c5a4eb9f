"""Running a student's class on one case: what its backward gives, adds, changes and keeps."""
from dataclasses import dataclass, field

import numpy as np

from minires.errors import UserError
from minires.study.exercises.checker.report import Diagnosis
from minires.study.exercises.checker.situation import Situation
from minires.study.exercises.checker.student import StudentError, numbers, students_code
from minires.study.exercises.checker.words import shape

TOLERANCE = 1e-9  # of the largest entry, in float64: two orders of summing differ by less, two formulas by more


@dataclass
class Observation:
    """What a student's class did in one case. got: {"dx" or parameter: what backward returned or added};
    problems: {(kind, tensor): Diagnosis} of everything but the values."""

    situation: Situation
    got: dict
    problems: dict = field(default_factory=dict)

    def right(self, tensor):
        """Whether this gradient is what the engine has (or is none of this case's)."""
        return tensor not in self.got or close(self.got[tensor], self.situation.right[tensor])


def close(got, want, scale=None):
    """Equal in shape and, up to the rounding of float64, in value."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return False
    scale = max(np.abs(want).max(initial=0), scale or 0)
    return bool(np.abs(got - want).max(initial=0) <= TOLERANCE * scale)


def observe(exercise, cls, file, situation, single):
    """The Observation of a case; single: the same case in float32. StudentError when there is nothing to compare."""
    run = _Run(exercise, cls, file, situation)
    seen = Observation(situation, run.gradients())
    for name, before, now in run.belongings:
        if not np.array_equal(before, now):
            seen.problems["inputs", None] = Diagnosis(
                "input changed", [], None, f"backward changes {name} in place, and others still read it: make a new array, "
                "as in a = a * b for a *= b")
    again = _Run(exercise, cls, file, situation)
    draw = np.random.default_rng(5)
    held = {name: draw.standard_normal(parameter.grad.shape) for name, parameter in again.layer.named_parameters()}
    for name, parameter in again.layer.named_parameters():
        parameter.grad[...] = held[name]
    twice = again.gradients()
    for name, before in held.items():
        if seen.got[name].shape != before.shape or close(twice[name], before + seen.got[name], 1):
            continue
        shown = exercise.shown(name)
        if close(twice[name], seen.got[name], 1):
            problem = Diagnosis("overwritten", [name], None, f"{shown} is overwritten, not accumulated: write "
                                f"self.{name}.grad += {shown}, so that two passes add up")
        else:
            problem = Diagnosis("not accumulated", [name], None, f"{shown} is not added to what self.{name}.grad holds: "
                                "after a second pass it is neither the sum nor the new gradient")
        seen.problems["accumulation", name] = problem
    for name, array in _Run(exercise, cls, file, single).gradients().items():
        if array.dtype != np.float32:
            hint = "self.grad = makes a new array: use +=" if name != "dx" else \
                "np.zeros(shape) is float64: use np.zeros_like(x) or dtype=dy.dtype" if array.dtype == np.float64 else \
                "make it with np.zeros_like(x) or dtype=dy.dtype"
            seen.problems["dtype", name] = Diagnosis("dtype", [name], None, f"{exercise.shown(name)} is {array.dtype} where "
                                                     f"everything is float32 ({hint})")
    return seen


class _Run:
    """One forward of the student's class."""

    def __init__(self, exercise, cls, file, situation):
        self.exercise, self.file, self.situation, self.name = exercise, file, situation, cls.__name__
        with students_code(file, f"{self.name}.__init__", situation):
            try:
                self.layer = situation.make(cls)
            except UserError as error:
                wanted = ", ".join(f"{name} {array.shape}" for name, array in situation.params.items())
                raise StudentError(f"{self.name}.__init__ was changed: it must make {wanted or 'no parameters'} at "
                                   f"{situation.case.name}, as minires exercise start wrote it") from error
        self.x, self.dy = situation.x.copy(), situation.dy.copy()
        with students_code(file, f"{self.name}.forward", situation):
            self.y = self.layer.forward(self.x)
        close_enough = TOLERANCE if situation.dtype == np.float64 else 1e-3
        if not (isinstance(self.y, np.ndarray) and self.y.shape == situation.y.shape
                and np.abs(self.y - situation.y).max(initial=0) <= close_enough * np.abs(situation.y).max(initial=0)):
            raise StudentError(f"forward was changed: at {situation.case.name} it no longer gives "
                               f"{' '.join(exercise.formula.split())} (write backward only)")

    def gradients(self):
        """{"dx": ..., parameter: ...} after backward."""
        y, exercise, situation = self.y.copy(), self.exercise, self.situation
        parameters = dict(self.layer.named_parameters())
        data = {name: parameter.data.copy() for name, parameter in parameters.items()}
        kept = [(array.copy(), array) for array in _kept(self.layer.loss if exercise.target else self.layer)]
        with students_code(self.file, f"{self.name}.backward", situation):
            dx = self.layer.backward(self.dy)
        must, own = f"return {exercise.shown('dx')}, {shape(exercise.letters['x'])}", exercise.parameters
        if dx is None:
            raise StudentError(f"backward returns nothing: it must {must}")
        if isinstance(dx, tuple | list):
            grads = ", ".join(f"self.{name}.grad" for name in own)
            raise StudentError(f"backward returns a {type(dx).__name__} of {len(dx)}: it must {must} alone"
                               + (f", and add the others to {grads}" if own else ""))
        got = {"dx": dx, **{name: parameter.grad for name, parameter in parameters.items()}}
        must = f"backward must {'; '.join(exercise.required())}"
        got = {name: numbers(f"{exercise.shown(name)} is", array, must, "dy") for name, array in got.items()}
        names = ("dL", "y", "loss") if exercise.target else ("dy", "x", "y")
        arrays = (situation.dy, self.dy), (situation.x, self.x), (y, self.y)
        # Of what changed the last is named: a kept array that is x, y or dy goes by that name.
        self.belongings = [*(("what forward kept", *pair) for pair in kept),
                           *((name, *pair) for name, pair in zip(names, arrays, strict=True)),
                           *((f"self.{name}.data", data[name], parameter.data) for name, parameter in parameters.items())]
        return got


def _kept(keeper):
    """The arrays that a layer or a loss holds, alone or in a tuple; its parameters' are not among them."""
    values = [part for value in vars(keeper).values() for part in (value if isinstance(value, tuple) else (value,))]
    return [value for value in values if isinstance(value, np.ndarray)]
