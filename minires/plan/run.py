"""A program for arrays of one shape, placed, and run: operator by operator the first time, then without Python."""
from contextlib import nullcontext
from operator import call
from types import SimpleNamespace

import numpy as np

from minires.backends import ops_for
from minires.backends.trace import Array
from minires.plan.program import root


class Runner:
    """Runs a Program. The first run notes what each operator launches; the following repeat that.

    What is constant runs once, and again when `renew` is called.
    """

    def __init__(self, program, memory):
        self._program, self._memory, self._steps = program, memory, program.steps
        self._values, self._launches = {}, None

    def __call__(self, inputs):
        """The program's outputs for some inputs, as arrays that the next run overwrites."""
        if self._launches is None or not self._launches.usable:
            self._first(inputs)
        else:
            for array, value in zip(self._program.inputs, inputs, strict=True):
                self._values[array][...] = value
            self._launches.run()
        return [self._known(array) for array in self._program.outputs]

    def renew(self):
        """Compute again what was computed from weights alone."""
        for step in self._program.constant:
            for array, value in zip(step.results, self._compute(step), strict=True):
                self._values.setdefault(array, value)[...] = value

    def operators(self):
        """[(Step, functions that run it)] of all steps that run each time, after the first run."""
        return list(zip(self._steps, self._launches.operators(), strict=True))

    def _first(self, inputs):
        self._ops, offsets = ops_for(inputs[0]), self._memory.offsets
        self._values = {array: value.copy() for array, value in zip(self._program.inputs, inputs, strict=True)}
        self.renew()
        launches = getattr(self._ops, "Launches", _unnoted)(self._memory.peak_bytes)
        by = getattr(launches, "call", call)  # a device's Launches call operators themselves: some they call each time
        last = {root(array): index for index, step in enumerate(self._steps) for array in [*step.reads, *step.results]
                if array is not None}
        kept = {*self._values, *map(root, self._program.outputs)}
        with launches.noting([(step.operator, step.arguments) for step in self._steps], len(inputs[0])):
            for index, step in enumerate(self._steps):
                launches.expect([(array.nbytes, offsets[array]) for array in step.results if array in offsets])
                for array, value in zip(step.results, self._compute(step, by), strict=True):
                    if array is not None:
                        self._values[array] = value
                        if isinstance(value, np.ndarray) and not launches.lies_well(value, offsets.get(root(array))):
                            raise RuntimeError(f"a result of {step.operator} lies in memory that others will use")
                for array in [*step.reads, *step.results]:  # a device's memory is free when nobody has it
                    if array is not None and last[root(array)] == index and root(array) not in kept:
                        self._values.pop(array, None)
        self._launches = launches

    def _compute(self, step, by=call):
        ops, arguments = self._ops, self._known(step.arguments)
        if step.operator == "reshape":
            results = arguments[0].reshape(arguments[1])
        elif step.operator in ("numpy", "opaque"):
            results = by(getattr(ops, "here", call), call, *arguments)
        else:
            results = by(getattr(ops, step.operator), *arguments)
        return results if isinstance(results, tuple) else (results,) if step.results else ()

    def _known(self, value):
        if isinstance(value, Array):
            return self._values[value]
        return tuple(map(self._known, value)) if isinstance(value, tuple) else value


def _unnoted(slab_bytes):
    """In the place of `Launches` for a back end that notes nothing (the reference): every run is a first one."""
    return SimpleNamespace(usable=False, noting=lambda *_: nullcontext(), expect=lambda offsets: None,
                           lies_well=lambda *_: True)
