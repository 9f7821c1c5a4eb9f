"""What a plan says of itself: a line for each step, and what all of them cost."""
from minires.backends.listing import rows, text
from minires.plan.memory import Memory
from minires.plan.program import Program


class Plan:
    """program, memory: its steps, and where their values lie; steps: those in order, before: as the layers called them;
    stages: [(name of a rewrite, the steps after it)], "traced" first; peak_bytes: of the slab that all values lie in."""

    def __init__(self, program, memory, stages):
        self.program, self.memory, self.stages = program, memory, stages
        self.steps, self.before, self.peak_bytes = program.steps, stages[0][1], memory.peak_bytes

    @property
    def opaque(self):
        """[(layer, why)] of the steps that are not planned but called."""
        return [(step.layer, step.reason) for step in self.steps if step.operator == "opaque"]

    def rows(self, steps=None):
        """A Row (see backends.listing) for each step of the plan, or of a stage."""
        return rows(self.steps if steps is None else steps, self.program.inputs)

    def after(self):
        """(name of a rewrite, operators, bytes that they move, peak bytes) for "traced" and after each rewrite."""
        for name, steps in self.stages:
            moved = sum(row.bytes for row in self.rows(steps))
            yield name, len(steps), moved, Memory(Program(steps, self.program.inputs, self.program.outputs)).peak_bytes

    def totals(self):
        """What a plan costs in all, in one line, and a line for each opaque step."""
        found, constant = self.rows(), len(self.program.constant)
        once = f", {constant} more when weights change" if constant else ""
        return "\n".join([f"{len(found)} steps{once}; {sum(row.flops for row in found) / 1e9:.2f} GFLOP, "
                          f"{sum(row.bytes for row in found) / 1e6:.2f} MB moved, memory {self.peak_bytes / 2**20:.2f} MiB",
                          *(f"opaque: {layer or 'the loss or the model'}: {why}" for layer, why in self.opaque)])

    def __str__(self):
        return f"{text(self.rows())}\n{self.totals()}"
