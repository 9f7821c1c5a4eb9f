"""The verdict on a file: as text for the student and as JSON for an autograder."""
from dataclasses import asdict, dataclass, field

STATUSES = ("passed", "wrong", "blank", "error", "timeout")


@dataclass
class Check:
    """One thing that was checked. kind: runs, inputs, shape, gradient (value), dtype, accumulation or numerical;
    case: the input, in words; tensor: what was looked at, as the student calls it, or None."""

    kind: str
    case: str
    tensor: str | None
    passed: bool


@dataclass
class Diagnosis:
    """What is wrong. mistake: a stable name; tensors: where it shows; where: the cases it shows in when it does not in
    others, else None; sentence: for the student."""

    mistake: str
    tensors: list
    where: str | None
    sentence: str


@dataclass
class Report:
    """The verdict. status: one of STATUSES; message: one sentence; printed: the first of what the file printed.

    `as_json()` has the keys exercise, file, status, passed, message, checks_passed, checks_total, checks (kind, case,
    tensor, passed), diagnoses (mistake, tensors, where, sentence) and printed: they stay.
    """

    exercise: str
    file: str
    status: str
    message: str
    checks: list = field(default_factory=list)
    diagnoses: list = field(default_factory=list)
    printed: str = ""

    @property
    def passed(self):
        return self.status == "passed"

    def as_json(self):
        """A dict of JSON values."""
        head = {"exercise": self.exercise, "file": self.file, "status": self.status, "passed": self.passed,
                "message": self.message, "checks_passed": sum(check.passed for check in self.checks),
                "checks_total": len(self.checks)}
        return head | {name: asdict(self)[name] for name in ("checks", "diagnoses", "printed")}

    @classmethod
    def from_json(cls, said):
        """The Report that `as_json` was made of."""
        return cls(said["exercise"], said["file"], said["status"], said["message"],
                   [Check(**check) for check in said["checks"]],
                   [Diagnosis(**diagnosis) for diagnosis in said["diagnoses"]], said["printed"])

    def text(self):
        """Lines for the terminal: the verdict, a line a tensor with what was wrong with it, and the sentences."""
        tensors = {}
        for check in self.checks:
            tensors.setdefault(check.tensor or check.kind, {}).setdefault(check.kind, []).append(check.passed)
        width, lines = max(map(len, tensors), default=0), []
        for name, kinds in tensors.items():
            wrong = [f"{kind} in {passed.count(False)} of {len(passed)} cases" for kind, passed in kinds.items()
                     if not all(passed)]
            said = f"wrong: {', '.join(wrong)}" if wrong else f"right: {', '.join(kinds)}" if name not in kinds else "right"
            lines.append(f"  {name:{width}}  {said}")
        # The message is the first diagnosis where there is one.
        lines += [f"- {diagnosis.sentence}" for diagnosis in self.diagnoses] or [self.message]
        if self.printed:
            lines.append(f"(the file prints: {self.printed.splitlines()[0][:100]})")
        verdict = "passed" if self.passed else f"not yet right ({self.status})"
        return "\n".join([f"{self.exercise} in {self.file}: {verdict}", *lines])
