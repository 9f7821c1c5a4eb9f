"""The program of a step: the operators of a trace in order, and who makes and reads each value."""
from collections import defaultdict

from minires.backends.trace import WRITES, Step

IMPURE = {"opaque", "dropout_keep", *WRITES}  # what such a step does is more than its results


class Program:
    """Steps in order; inputs: the Arrays that the caller gives, outputs: those that it gets back.

    constant: steps that read nothing but what the model has, and need not run each time (see `part_constant`).
    """

    def __init__(self, steps, inputs, outputs):
        self.steps, self.inputs, self.outputs, self.constant = list(steps), tuple(inputs), tuple(outputs), []

    def makers(self):
        """{Array: the Step that makes it}."""
        return {array: step for step in self.steps for array in step.results if array is not None}

    def readers(self):
        """{Array: the Steps that read it, in order}; None among them stands for the caller."""
        found = defaultdict(list)
        for step in self.steps:
            for array in dict.fromkeys(step.reads):
                found[array].append(step)
        for array in self.outputs:
            found[array].append(None)
        return found

    def rewrite(self, changes):
        """Put other steps in the place of some: {Step: the steps that follow in its place, none to leave it out}."""
        self.steps = [new for step in self.steps for new in changes.get(step, (step,))]

    def drop_unread(self):
        """Leave out the steps of which nobody reads a result."""
        needed, kept = set(self.outputs), []
        for step in reversed(self.steps):
            if step.operator in IMPURE or any(array in needed for array in step.results):
                kept.append(step)
                needed.update(step.reads)
        self.steps = kept[::-1]

    def part_constant(self):
        """Move the steps that read nothing but parameters and statistics from `steps` to `constant`."""
        known, others = set(), []
        for step in self.steps:
            if step.operator in IMPURE or step.operator == "numpy" or any(array not in known for array in step.reads):
                others.append(step)
            else:
                self.constant.append(step)
                known.update(step.results)
        self.steps = others


def like(step, operator, arguments, results):
    """A Step of another operator in the place of `step`."""
    return Step(operator, tuple(arguments), tuple(results), step.layer, step.backward)


def root(array):
    """The Array whose memory a value lies in."""
    return array if array.base is None else array.base
