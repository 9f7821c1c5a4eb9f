"""The same computation again and again, without its Python: what tinygrad calls a JIT and CUDA a graph.

    step = capture(gradients, model)         # gradients(x, target) -> loss, y: plain code over layers
    for x, target in loader:
        loss, y = step(x, target)

Layers are Python: for each batch they ask for shapes, look for memory and launch kernels, always the same ones. A captured
function does so for the first batches only. For each shape of its arguments the first call runs the function as it is, the
second notes every launch, the third runs the function and, beside it, what was noted (given the same batch again, on its
negative too); from the fourth on only what was noted is run, if the third found the same bits. If it did not, or nothing
could be noted, the function is run as it is for good, and `refused` says why. While somebody listens to a layer
(or its `forward` or `backward` was replaced) nothing is recorded.
"""
import zlib
from operator import is_

import numpy as np

from minires.backends import NotRecordable, ops_for, to_numpy
from minires.layer import Parameter, in_inference_mode, inference_cache

MOST_SHAPES = 4  # of arguments that one function is recorded for; it runs as it is for others


def capture(function, model):
    """A function that returns what `function` returns, and after its first calls runs without Python.

    function: of NumPy or CuPy arrays, returning one value or a tuple of arrays and losses. What else it reads and changes
    must be the parameters, gradients and buffers of `model`, through its layers and this project's losses; no optimiser's
    step, whose learning rate would be frozen, as a loss's own numbers are. Whatever is set on a layer afterwards (train(),
    eval(), astype, a replaced `forward`) is noticed, and the function recorded anew.

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
            plans.clear()
        return results


class _Plan:
    """One function for one shape of its arguments: how far it is on the way to being run from its recording."""

    def __init__(self, function, model, recording, memory):
        self._function, self._model, self._record, self._memory = function, model, recording, memory
        self._next, self._recording, self.refused = _Plan._first, None, None

    def __call__(self, inputs):
        if self._recording is not None and not (self._recording.usable and self._as_recorded()):
            self._next, self._recording = _Plan._first, None
        return self._next(self, inputs)

    def _first(self, inputs):
        layers = [layer for _, layer in self._model.named_layers()]
        drawing = next((layer for layer in layers if layer.draws and layer.training), None)
        if drawing is not None:
            self.refused = f"{type(drawing).__name__} draws new random numbers each time"
        # Else somebody listens to every step.
        if not any(layer.listeners or {"forward", "backward"} & vars(layer).keys() for layer in layers):
            self._next = _Plan._second
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
        self._layers = [layer for _, layer in self._model.named_layers()]
        if not all(hasattr(result, "ndim") and not isinstance(result, np.generic) for result in _several(self._results)):
            self.refused = "it returns something else than arrays and losses"
        elif any(isinstance(layer._kept, tuple) for layer in self._layers):
            self.refused = "it keeps for a backward pass what no recording renews: call backward in it, or inference_mode"
        self._recording, self._made_of, self._next = recording, _made_of(self._layers), _Plan._third
        return _own(self._results)

    def _third(self, inputs):
        again = all(map(_same_bits, self._inputs, inputs))
        expected = self._compare(inputs, keep=True)
        if again and not self.refused:  # another batch may tell what this one cannot
            self._compare([-x if x.dtype.kind == "f" else x for x in inputs], keep=False)
        if not self._as_recorded():
            self.refused = "a layer is given attributes as it computes"
        self._next = _Plan._fourth
        return expected

    def _compare(self, inputs, keep):
        """What the function returns, `refused` set unless what was noted computes the same. keep: the model is changed."""
        constant, changing = _state(self._layers)
        untouched, before = _digest(constant), [array.copy() for array in changing]
        expected = _own(self._plain(inputs))
        if _digest(constant) != untouched:
            self.refused = "it changes what is no gradient and no buffer of the model"
            return expected
        found_state, after = _digest(changing), []
        for index, array in enumerate(changing):
            after.append(array.copy() if keep else None)
            array[...] = before[index]
            if keep:
                before[index] = None  # large networks: one copy at a time
        for result in _several(self._results):
            result[...] = -1  # what nothing noted computes stays so
        found = self._fourth(inputs)
        same = all(map(_same_bits, _several(found), _several(expected))) and _digest(changing) == found_state
        if not same or _digest(constant) != untouched:
            self.refused = "it does something that cannot be recorded: what was noted computes other values"
        if not (keep and same):
            _fill(changing, after if keep else before)
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
    """Arrays of some layers: those that a captured function must leave as they are, and those that it may change."""
    weights, gradients, buffers = [], [], []
    for layer in layers:
        buffers += [getattr(layer, name) for name in layer.buffers]
        for value in vars(layer).values():
            if isinstance(value, Parameter):
                weights.append(value.data)
                gradients.append(value.grad)
    return (weights + gradients + buffers, []) if in_inference_mode() else (weights, gradients + buffers)


def _digest(arrays):
    return [zlib.crc32(np.ascontiguousarray(to_numpy(array)).view(np.uint8)) for array in arrays]


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
