"""One case, worked out by the engine: inputs, right gradients, and what a named mistake may want to know."""
from functools import cached_property, lru_cache

import numpy as np

from minires.study.gradcheck import LossLayer, distinct_nonzero, randomise_parameters


class LossSubject(LossLayer):
    """A loss with the interface of a layer; backward returns what the loss's returned, dL = 1."""

    def backward(self, dy):
        return self.loss.backward()


class Situation:
    """One case with the engine's answer.

    x, y, dy: input, output, dL/dy; right: {"dx": array, parameter's name: array}; params: {name: array};
    dims: {"N": 3, ...} of the exercise's letters; options: the case's; target: a loss's; state: the engine's state_dict
    """

    def __init__(self, exercise, case, seed, dtype=np.float64):
        self.exercise, self.case, self.seed, self.dtype = exercise, case, seed, dtype
        self.options = case.options
        draw = np.random.default_rng((seed, 1))
        self.x = (case.scale * distinct_nonzero(case.shape, draw)).astype(dtype)
        self.target = None if exercise.target is None else exercise.target(draw, case.shape)
        if exercise.target is not None and self.target.dtype.kind == "f":
            self.target = self.target.astype(dtype)
        layer = self.make(exercise.engine)
        if self.target is None:
            randomise_parameters(layer, draw)
        self.state = None if self.target is not None else layer.state_dict()
        self.params = {name: parameter.data for name, parameter in layer.named_parameters()}
        self.layer = layer
        self.right = self.answer(draw)

    def answer(self, draw):
        """What is right: {"dx": ..., name: ...}."""
        layer, dtype = self.layer, self.dtype
        self.y = layer.forward(self.x.copy()).copy()
        self.dy = np.ones(1, dtype) if self.exercise.target else draw.standard_normal(self.y.shape).astype(dtype)
        return self._gradients(layer, layer.backward(self.dy.copy()))

    def make(self, cls):
        """A new instance of the engine's or the student's class with this case's parameters, drawn numbers and dtype."""
        made = self.exercise.make(cls, np.random.default_rng((self.seed, 2)), **self.options)
        if self.target is not None:
            return LossSubject(made, self.target)
        made.astype(self.dtype)
        if getattr(self, "state", None) is not None:
            made.load_state_dict(self.state)
        return made

    def gradients(self, backward=None, dy=None):
        """{"dx": ..., name: ...} of the engine after backward(layer, dy), by default its own, and another dy."""
        layer = self.make(self.exercise.engine)
        layer.forward(self.x.copy())
        dy = self.dy.copy() if dy is None else dy
        return self._gradients(layer, layer.backward(dy) if backward is None else backward(layer, dy))

    @staticmethod
    def _gradients(layer, dx):
        return {"dx": dx.copy(), **{name: parameter.grad.copy() for name, parameter in layer.named_parameters()}}

    @cached_property
    def dims(self):
        """{"N": 3, "C": 7, ...}: the sizes of this case's letters."""
        shapes = self.sizes()
        return {letter: size for name, letters in self.exercise.letters.items()
                for letter, size in zip(letters.split(), shapes.get(name, ()), strict=False) if letter.isalpha()}

    def sizes(self):
        """{tensor: its shape}."""
        return {"x": self.x.shape, "y": self.y.shape, **{name: array.shape for name, array in self.params.items()}}

    def letters(self, shape):
        """A shape in letters, such as " = (N, C)", or nothing where a size has no letter or two."""
        names = [[letter for letter, size in self.dims.items() if size == want] for want in shape]
        if not shape or any(len(found) != 1 for found in names):
            return ""
        return f" = ({', '.join(found[0] for found in names)}{',' if len(names) == 1 else ''})"


@lru_cache(maxsize=64)
def situations(exercise, dtype):
    """The exercise's cases, worked out."""
    return [exercise.situation(exercise, case, seed, dtype) for seed, case in enumerate(exercise.cases)]
