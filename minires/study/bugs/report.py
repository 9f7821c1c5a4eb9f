"""Every bug: what notices it and what training would have shown, as rows, as text and as JSON."""
import math
from dataclasses import asdict, dataclass, replace

import numpy as np

from minires.study.bugs.checks import Detection, detect
from minires.study.bugs.inject import Bug
from minires.study.bugs.training import CLEAN_SEEDS, FINE, NETWORKS, SAME, Outcome, train_clean, train_with, verdict

BARS = "▁▂▃▄▅▆▇█"
SPARKS = 12  # characters of a loss curve


@dataclass(frozen=True)
class BugRow:
    """One bug. outcome, clean: its training and the clean ones of its network, or None without training."""

    bug: Bug
    detection: Detection
    outcome: Outcome | None = None
    clean: tuple | None = None

    @property
    def verdict(self):
        """One of `training.VERDICTS`, or None without training."""
        return None if self.outcome is None else verdict(self.outcome, self.clean)


@dataclass(frozen=True)
class BugReport:
    """The rows, and those that no check noticed."""

    rows: tuple

    @property
    def survivors(self):
        return tuple(row for row in self.rows if not row.detection.killed)


def study_bugs(bugs, training=True, progress=lambda done, total, what: None):
    """Plant each of `bugs`, one after the other; return the BugReport. Nothing stays planted.

    training: also train each bug's small network with it, and without. progress is called after each check and training.
    """
    networks = [name for name in NETWORKS if training and any(bug.network == name for bug in bugs)]
    total, done = len(bugs) * (1 + training) + len(networks) * len(CLEAN_SEEDS), 0

    def tick(what):
        nonlocal done
        done += 1
        progress(done, total, what)

    rows = []
    for bug in bugs:
        rows.append(BugRow(bug, detect(bug)))
        tick(bug.name)
    if training:
        clean = {name: train_clean(name, lambda name=name: tick(f"{name}, no bug")) for name in networks}
        for index, bug in enumerate(bugs):
            rows[index] = replace(rows[index], outcome=train_with(bug), clean=clean[bug.network])
            tick(f"training with {bug.name}")
    return BugReport(tuple(rows))


def means(losses, parts):
    """The loss curve as `parts` means, or fewer when it ended early; not finite where the loss was not."""
    return [float(part.mean()) for part in np.array_split(np.array(losses), min(parts, len(losses)))]


def sparkline(losses, top):
    """A loss curve in SPARKS characters, full height at `top` and above, ! where it is not finite."""
    return "".join("!" if not math.isfinite(mean) else BARS[round(min(mean / top, 1) * (len(BARS) - 1))]
                   for mean in means(losses, SPARKS))


def render(report, details=False):
    """The report as text: a line a bug and a summary; with `details` what was done wrong, and what the checks say."""
    trained = report.rows[0].outcome is not None
    head = ["bug", "differences", "contract", "adjoint", "cases"]
    head += ["loss", "clean", "accuracy", "loss curve", "training"] if trained else []
    table = [head, *(_cells(row) for row in report.rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    right = {"differences", "adjoint", "cases", "loss", "clean", "accuracy"}
    lines = ["  ".join(cell.rjust(width) if name in right else cell.ljust(width)
                       for cell, width, name in zip(cells, widths, head, strict=True)).rstrip() for cells in table]
    if details:
        notes = [f"    {row.bug.mistake}\n    {row.detection.said or 'no check says anything'}" for row in report.rows]
        lines = [lines[0], *(text for pair in zip(lines[1:], notes, strict=True) for text in pair)]
    lines += [f"SURVIVED {row.bug.name}: {row.bug.mistake}" for row in report.survivors]
    return "\n".join([*lines, "", *_summary(report, trained)])


def _cells(row):
    found = row.detection
    cells = [row.bug.name, f"{found.difference:.1e}" if found.by_difference else "-", found.contract or "-",
             f"{found.adjoint:.1e}" if found.by_adjoint else "-", f"{found.noticed}/{found.cases}"]
    if row.outcome is None:
        return cells
    clean = row.clean[0]
    return [*cells, f"{row.outcome.loss:.3g}", f"{clean.loss:.3g}", f"{row.outcome.accuracy:.0%}",
            sparkline(row.outcome.losses, clean.losses[0]), row.verdict]


def _summary(report, trained):
    found = [row.detection for row in report.rows]
    names = {"difference quotients": [each.by_difference for each in found],
             "the contract": [each.by_contract for each in found], "the adjoint": [each.by_adjoint for each in found]}
    by = ", ".join(f"{sum(noticed)} by {name}" for name, noticed in names.items())
    alone = sum(each.by_adjoint and not (each.by_difference or each.by_contract) for each in found)
    killed = f"{len(found) - len(report.survivors)} of {len(found)} bugs are killed"
    yield f"{'every bug is killed' if not report.survivors else killed}: {by}" + (f" ({alone} by it alone)" if alone else "")
    yield ("differences, adjoint: the worst relative error; contract: what is wrong beside the values; cases: those of the "
           "layer that notice")
    if trained:
        unseen = sum(row.verdict in (SAME, FINE) for row in report.rows)
        yield (f"{unseen} of {len(found)} would not be seen in the loss of a short training; loss and accuracy are those of "
               "its last two epochs")


def to_json(report):
    """The report as JSON values; a number that is not finite becomes None."""
    return _finite({"killed": len(report.rows) - len(report.survivors), "bugs": [_row(row) for row in report.rows]})


def _row(row):
    values = {"name": row.bug.name, "mistake": row.bug.mistake, "layers": row.bug.layers, "killed": row.detection.killed,
              **asdict(row.detection)}
    if row.outcome is not None:
        values["training"] = {"network": row.bug.network, "verdict": row.verdict, "loss": row.outcome.loss,
                              "accuracy": row.outcome.accuracy, "losses": row.outcome.losses,
                              "clean_loss": [each.loss for each in row.clean], "clean_losses": row.clean[0].losses}
    return values


def _finite(value):
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
