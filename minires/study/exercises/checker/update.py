"""Exercises that ask for an optimiser's step: the parameters after each of a few steps are compared with the engine's."""
from dataclasses import dataclass

import numpy as np

from minires.layer import Parameter
from minires.study.exercises.checker.exercise import Case, Exercise
from minires.study.exercises.checker.observe import Observation
from minires.study.exercises.checker.report import Diagnosis
from minires.study.exercises.checker.student import numbers, students_code
from minires.study.exercises.checker.words import describe, shape

STEPS = 4
RATES = (0.1, 0.1, 0.05, 0.025)  # a schedule: who keeps a step that was scaled by an old rate is found out
SHAPES = {"weight": (4, 3), "bias": (3,)}


class Settings(Case):
    """The options of an optimiser, such as momentum=0.9."""

    def __init__(self, **options):
        super().__init__((), **options)

    @property
    def name(self):
        return ", ".join(describe(key, value) for key, value in self.options.items())


class Steps:
    """A case, worked out by the engine: a weight and a bias, their gradients in each of STEPS steps, and where they stand
    after each. right: {"weight": (T, C, K), "bias": (T, K)}."""

    target = None

    def __init__(self, exercise, case, seed, dtype=np.float64):
        self.exercise, self.case, self.dtype, self.options = exercise, case, dtype, case.options
        draw = np.random.default_rng(seed)
        self.start = {name: draw.standard_normal(size).astype(dtype) for name, size in SHAPES.items()}
        self.grads = {name: draw.standard_normal((STEPS, *size)).astype(dtype) for name, size in SHAPES.items()}
        self.x = self.start["weight"]
        self.dims = dict(zip("TCK", (STEPS, *SHAPES["weight"]), strict=True))
        self.right, _ = self.run(exercise.engine)

    def make(self, cls):
        """({name: Parameter}, the optimiser)."""
        parameters = {}
        for name, array in self.start.items():
            parameters[name] = Parameter(np.zeros(array.shape, np.float32))
            parameters[name].data, parameters[name].grad = array.copy(), np.zeros_like(array)
        return parameters, self.exercise.make(cls, list(parameters.values()), RATES[0], **self.options)

    def run(self, cls):
        """({name: where it stands after each step}, what is wrong besides: a Diagnosis or None)."""
        parameters, optimiser = self.make(cls)
        arrays, problem = {name: parameter.data for name, parameter in parameters.items()}, None
        found = {name: [] for name in parameters}
        for step, rate in enumerate(RATES):
            optimiser.lr = rate
            for name, parameter in parameters.items():
                parameter.grad[...] = self.grads[name][step]
            optimiser.step()
            for name, parameter in parameters.items():
                must = f"step must {'; '.join(self.exercise.required())}"
                found[name].append(numbers(f"parameter.data of the {name} becomes", parameter.data, must, "parameter.data"))
                if not np.array_equal(parameter.grad, self.grads[name][step]):
                    problem = Diagnosis("input changed", [], None, f"step changes {name}.grad in place, and others still "
                                        "read it: make a new array, as in g = g + a for g += a")
                elif parameter.data is not arrays[name]:
                    problem = Diagnosis("not in place", [name], None, f"step gives {name} a new array, and whoever holds "
                                        "the old one never sees it move: write parameter.data -= ..., in place")
        return {name: np.array(each) for name, each in found.items()}, problem

    def follow(self, rule):
        """{name: where it stands after each step} by rule(p, g, memory, lr, t, options) -> p, memory a dict for each, and t
        the step, counted from 1."""
        found = {}
        for name, p in self.start.items():
            memory, places = {}, []
            for t, (g, lr) in enumerate(zip(self.grads[name], RATES, strict=True), 1):
                p = rule(p, g, memory, lr, t, self.options)
                places.append(p)
            found[name] = np.array(places)
        return found

    def letters(self, size):
        return {SHAPES["weight"]: " = (C, K)", SHAPES["bias"]: " = (K,)"}.get(tuple(size), "")


def observe_steps(exercise, cls, file, situation, single):
    """The Observation of a case; single: the same case in float32."""
    with students_code(file, f"{cls.__name__}.step", situation):
        got, problem = situation.run(cls)
    seen = Observation(situation, got)
    if problem is not None:
        seen.problems["inputs", None] = problem
    with students_code(file, f"{cls.__name__}.step", single):
        got, _ = single.run(cls)
    for name, array in got.items():
        if array.dtype != np.float32:
            seen.problems["dtype", name] = Diagnosis("dtype", [name], None, f"{name} becomes {array.dtype} where everything "
                                                     "is float32: change parameter.data in place")
    return seen


@dataclass(frozen=True, eq=False, kw_only=True)
class UpdateExercise(Exercise):
    """An optimiser's step to write: the fields of Exercise. make(cls, parameters, lr, **options): an optimiser; cases are
    Settings; a mistake's formula gets Steps, whose `follow` runs a wrong rule."""

    letters: dict = None

    method, value, given = "step", "value", ()
    situation = Steps
    observe = staticmethod(observe_steps)

    def axes(self, tensor):
        return {"weight": ["T", "C", "K"], "bias": ["T", "K"]}[tensor]

    def shown(self, tensor):
        return f"{tensor} after each step"

    def required(self):
        return ["move parameter.data by its rule, in place", "read parameter.grad, and leave it unchanged"]

    def derivation(self):
        return (self.engine.__doc__ or "").split("Source:")[0].replace("\n    ", "\n").strip()

    def task(self):
        return (f"Write what step does with a parameter: it must\n{self.listed()}\nself.lr may change between steps. Each "
                "parameter has a memory of its own, which stays\nfrom step to step. Keep the dtype: float32 stays float32.")

    def about(self):
        return f"weight: {shape('C K')}; bias: {shape('K')}"
