"""Exercises that ask for a forward pass: what it returns, and the buffers that it sets, are compared with the engine's."""
from dataclasses import dataclass

import numpy as np

from minires.study.exercises.checker.exercise import Exercise
from minires.study.exercises.checker.observe import Observation
from minires.study.exercises.checker.report import Diagnosis
from minires.study.exercises.checker.situation import Situation
from minires.study.exercises.checker.student import StudentError, numbers, students_code
from minires.study.exercises.checker.words import shape


class ForwardSituation(Situation):
    """A case of a forward pass; right: {"y": array, each buffer's name: array}, of a loss {"loss": (1,)}."""

    def answer(self, draw):
        self.right = {}
        return self.results(self.layer, self.x.copy())

    def results(self, layer, x):
        """{"y": ..., buffer: ...} after layer.forward(x)."""
        if self.target is not None:
            loss = layer.loss.forward(x, self.target.copy())
            if loss is None:
                raise StudentError("forward returns nothing: it must return the loss, a number")
            return {"loss": np.atleast_1d(np.asarray(loss, self.dtype))}
        self.y = layer.forward(x)
        found = {"y": self.y, **{name: getattr(layer, name) for name in self.exercise.buffers}}
        must = f"forward must {'; '.join(self.exercise.required())}"
        return {name: numbers("forward returns" if name == "y" else f"self.{name} is", array, must, "x")
                for name, array in found.items()}

    def sizes(self):
        return {"x": self.x.shape, **{name: array.shape for name, array in (self.params | self.right).items()}}


def observe_forward(exercise, cls, file, situation, single):
    """The Observation of a case; single: the same case in float32. StudentError when there is nothing to compare."""
    x, layer = situation.x.copy(), _made(situation, cls, file)
    parameters = dict(layer.named_parameters())
    data = {name: parameter.data.copy() for name, parameter in parameters.items()}
    seen = Observation(situation, _forward(situation, cls, file, layer, x))
    belongings = [("y" if exercise.target else "x", situation.x, x),
                  *((f"self.{name}.data", data[name], parameter.data) for name, parameter in parameters.items())]
    for name, before, now in belongings:
        if not np.array_equal(before, now):
            seen.problems["inputs", None] = Diagnosis(
                "input changed", [], None, f"forward changes {name} in place, and others still read it: make a new array, "
                "as in a = a * b for a *= b")
    for name, array in _forward(single, cls, file, _made(single, cls, file), single.x.copy()).items():
        if array.dtype != np.float32 and not exercise.target:
            seen.problems["dtype", name] = Diagnosis("dtype", [name], None, f"{name} is {array.dtype} where everything is "
                                                     "float32: np.zeros(shape) is float64, give it dtype=x.dtype")
    return seen


def _made(situation, cls, file):
    with students_code(file, f"{cls.__name__}.__init__", situation):
        return situation.make(cls)


def _forward(situation, cls, file, layer, x):
    with students_code(file, f"{cls.__name__}.forward", situation):
        return situation.results(layer, x)


@dataclass(frozen=True, eq=False, kw_only=True)
class ForwardExercise(Exercise):
    """A forward pass to write: the fields of Exercise, and in `letters` those of the parameters, of "y" (of a loss "loss")
    and of the buffers that forward sets, whose names are in `buffers`."""

    buffers: tuple = ()

    method, value, given = "forward", "value", ()
    situation = ForwardSituation
    observe = staticmethod(observe_forward)

    def axes(self, tensor):
        return self.letters[tensor].split()

    def shown(self, tensor):
        return "the loss" if tensor == "loss" else tensor if tensor == "y" else f"self.{tensor}"

    def required(self):
        if self.target:
            return ["return the loss, a number"]
        return [f"return y, {shape(self.letters['y'])}",
                *(f"set self.{name}, {shape(self.letters[name])}" for name in self.buffers)]

    def derivation(self):
        """What the engine's docstring says of the forward pass."""
        told = super().derivation()
        whole = (self.engine.__doc__ or "").split("Source:")[0]
        return "\n".join(line.strip() if not line.startswith("    ") else line[4:] for line in
                         whole.split(told[:20])[0].strip("\n ").splitlines()) or told

    def task(self):
        return (f"Write forward: it gets {'y and target' if self.target else 'x'} and must\n{self.listed()}\nLeave what it "
                "gets unchanged, and keep the dtype: float32 stays float32.")
