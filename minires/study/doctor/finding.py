"""What the doctor says."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """name: of the mistake, in a word or two. text: what was seen, and what to do."""

    name: str
    text: str

    def __str__(self):
        return f"{self.name}: {self.text}"
