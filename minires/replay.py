"""The same computation again and again, without its Python: what tinygrad calls a JIT and CUDA a graph.

    step = capture(gradients, model)         # gradients(x, target) -> loss, y: plain code over layers
    for x, target in loader:
        loss, y = step(x, target)

Layers are Python: for each batch they ask for shapes, look for memory and launch kernels, always the same ones. A captured
function does so for the first batches only. For each shape of its arguments the first call runs the function as it is, the
second notes every launch, the third runs the function and, beside it, what was noted; from the fourth on only what was
noted is run, if the third found the same bits. If it did not, or nothing could be noted, the function is run as it is for
good, and `refused` says why.
"""
from operator import is_

import numpy as np

from minires.backends import NotRecordable, ops_for, to_numpy
from minires.layer import Parameter, in_inference_mode, inference_cache

MOST_SHAPES = 4  # of arguments that one function is recorded for; it runs as it is for others


def capture(function, model):
    """A function that returns what `function` returns, and after its first calls runs without Python.

    function: of NumPy or CuPy arrays, returning one value or a tuple of arrays and losses. What else it reads and changes
    must be the parameters, gradients and buffers of `model`, through its layers and this project's losses; no optimiser's
    step, whose learning rate would be frozen. Whatever is set on a layer afterwards (train() and eval(), astype, a replaced
    `forward`) is noticed, and the function recorded anew.

    The result has an attribute `refused`: None, or a sentence: why the function runs as it is.
    """
    return Captured(function, model)


class Captured:
    """See `capture`."""

    def __init__(self, function, model):
        self.refused, self._function, self._model = None, function, model
        self._plans, self._memory = {}, {}

    def __call__(self, *inputs):
        ops = ops_for(inputs[0])
        if self.refused or not hasattr(ops, "Recording"):
            return self._function(*inputs)
        plans = inference_cache().setdefault(self, {}) if in_inference_mode() else self._plans
        key = ops, *((x.shape, x.dtype) for x in inputs)
        if key not in plans:
            if len(plans) == MOST_SHAPES:
                return self._function(*inputs)
            if ops not in self._memory:
                self._memory[ops] = ops.Recording.new_memory()
            plans[key] = _Plan(self._function, self._model, ops.Recording, self._memory[ops])
        plan = plans[key]
        results = plan(inputs)
        if plan.refused:
            self.refused, self._plans, self._memory = plan.refused, {}, {}
        return results


class _Plan:
    """One function for one shape of its arguments: how far it is on the way to being run from its recording."""

    def __init__(self, function, model, recording, memory):
        self._function, self._model, self._record, self._memory = function, model, recording, memory
        self._next, self._recording, self.refused = self._first, None, None

    def __call__(self, inputs):
        if self._recording is not None and not (self._recording.usable and self._as_recorded()):
            self._next, self._recording = self._first, None
        return self._next(inputs)

    def _first(self, inputs):
        self._next = self._second
        for name, layer in self._model.named_layers():
            if layer.draws and layer.training:
                self.refused = f"{type(layer).__name__} {name} draws new random numbers each time"
        return _own(self._plain(inputs))

    def _second(self, inputs):
        recording = self._record(self._memory)
        self._inputs = [x.copy() for x in inputs]
        try:
            with recording.memory(), recording:
                self._results = self._function(*self._inputs)
            recording.finish()
        except NotRecordable as reason:  # nothing was computed
            self.refused = str(reason)
            self._model.forget()
            return _own(self._plain(inputs))
        if not all(hasattr(result, "ndim") for result in _several(self._results)):
            self.refused = "it returns something else than arrays and losses"
        self._layers = [layer for _, layer in self._model.named_layers()]
        self._recording, self._made_of, self._next = recording, _made_of(self._layers), self._third
        return _own(self._results)

    def _third(self, inputs):
        state = _state(self._layers)
        before = [array.copy() for array in state]
        expected = _own(self._plain(inputs))
        after = [array.copy() for array in state]
        _fill(state, before)
        found = self._fourth(inputs)
        pairs = [*zip(state, after, strict=True), *zip(_several(found), _several(expected), strict=True)]
        if not all(_same_bits(*pair) for pair in pairs):
            _fill(state, after)
            self.refused = "it does something that cannot be recorded: what was noted computes other values"
        self._next = self._fourth
        return expected

    def _fourth(self, inputs):
        _fill(self._inputs, inputs)
        self._recording.run()
        return _own(self._results)

    def _plain(self, inputs):
        with self._record(self._memory).memory():
            return self._function(*inputs)

    def _as_recorded(self):
        found = _made_of(self._layers)
        return len(found) == len(self._made_of) and all(map(is_, found, self._made_of))


def _several(results):
    return results if isinstance(results, tuple) else (results,)


def _own(results):
    """Results in memory of their own; a loss on the host as a float."""
    if isinstance(results, tuple):
        return tuple(map(_own, results))
    if isinstance(results, np.ndarray) and results.ndim == 0:
        return float(results)
    return results.copy() if hasattr(results, "copy") else results


def _fill(arrays, values):
    for array, value in zip(arrays, values, strict=True):
        array[...] = value


def _same_bits(found, expected):
    if isinstance(found, float):
        return found == expected or found != found != expected != expected
    return to_numpy(found).tobytes() == to_numpy(expected).tobytes()


def _state(layers):
    """Every array of some layers that a function may change."""
    arrays = []
    for layer in layers:
        arrays += [getattr(layer, name) for name in layer.buffers]
        for value in vars(layer).values():
            if isinstance(value, Parameter):
                arrays += [value.data, value.grad]
    return arrays


def _made_of(layers):
    """All that is set on some layers, but for what forward keeps; and the arrays of their parameters."""
    values = []
    for layer in layers:
        for name, value in vars(layer).items():
            if name != "_kept":
                values.append(value)
                if type(value) is Parameter:
                    values += value.data, value.grad
    return values
