"""What a student has done so far: `exercises.json` in the folder in which files are checked, to be read, kept or deleted."""
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from minires.errors import UserError
from minires.files import write_atomically

FILE = Path("exercises.json")


@dataclass
class Entry:
    """An exercise's checks so far, whether one of them passed, and the mistake that the last one named, or "", or its
    status where it named none."""

    checks: int = 0
    passed: bool = False
    last: str = ""

    def text(self):
        """Such as "passed" or "3 checks, the last: weight not transposed"."""
        if self.passed:
            return "passed"
        return f"{self.checks} check{'s' * (self.checks > 1)}, the last: {self.last}"


def read_record():
    """{exercise: Entry}, empty where nothing was checked; UserError when the file is none of ours."""
    try:
        return {name: Entry(**entry) for name, entry in json.loads(FILE.read_text("utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{FILE}, the record of your exercises, cannot be read ({error}): delete it, and a new one is "
                        "begun") from error


def note(report):
    """Add a Report to the record; in a folder that cannot be written there is none."""
    record = read_record()
    before = record.get(report.exercise, Entry())
    last = "" if report.passed else report.diagnoses[0].mistake if report.diagnoses else report.status
    record[report.exercise] = Entry(before.checks + 1, before.passed or report.passed, last)
    text = json.dumps({name: asdict(entry) for name, entry in record.items()}, indent=2)
    with suppress(OSError):
        write_atomically(FILE, f"{text}\n".encode())
