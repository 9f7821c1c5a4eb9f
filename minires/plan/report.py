"""What a plan says of itself: a line for each step."""


class Plan:
    """program: its steps; memory: where its values lie; peak_bytes: of the slab that they lie in."""

    def __init__(self, program, memory):
        self.program, self.memory = program, memory

    @property
    def steps(self):
        """The Steps in order."""
        return self.program.steps

    @property
    def peak_bytes(self):
        """The bytes of the slab that all values lie in."""
        return self.memory.peak_bytes

    @property
    def opaque(self):
        """[(layer, why)] of the steps that are not planned but called."""
        return [(step.layer, step.reason) for step in self.steps if step.operator == "opaque"]

    def __str__(self):
        return "\n".join(f"{step.layer:24} {step.operator}" for step in self.steps)
