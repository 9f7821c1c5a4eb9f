"""The certificate: every layer, block and loss and a whole network, on each back end, held against its derivative."""
from dataclasses import dataclass, replace

import numpy as np

from minires.backends import use_backend
from minires.errors import UserError
from minires.layers.fused import fuse
from minires.models import MODELS, build_model
from minires.study.gradcheck import distinct_nonzero, measure_gradients, randomise_parameters
from minires.study.subjects import LAYERS, LOSSES

OPERATOR_TOLERANCE = 1e-6
NETWORK_TOLERANCE = 1e-5
NETWORK_INPUT = (2, 8, 8, 3)  # 2 x 2 pixels in the last stage: every border, and 8 values a channel for its statistics
NETWORK_COMPLETE, NETWORK_SAMPLE = 64, 16
FUSED_SAMPLE = 6  # the same function, which a test holds equal to the other; here each tensor's slope once more


@dataclass(frozen=True)
class Row:
    """One tensor on one back end. entries of size were checked, kinks had no derivative; error: the worst relative
    error; problem: None, or why it failed."""

    subject: str
    backend: str
    tensor: str
    entries: int
    size: int
    kinks: int
    error: float
    tolerance: float
    problem: str | None

    @property
    def passed(self):
        return self.problem is None


@dataclass(frozen=True)
class Certificate:
    """The rows, and whether all of them passed."""

    rows: tuple

    @property
    def passed(self):
        return all(row.passed for row in self.rows)


def certificate(target=None, backends=("reference", "cpu"), rng=None, progress=None):
    """Check what `target` names and return the Certificate; a gradient that fails is a row, not an exception.

    target: None for everything with a whole resnet20; "layers" for all layers, blocks and losses; the name of a layer or
    loss class; or a model, checked whole, plain and fused, after the layers it is made of.
    rng: draws inputs, weights and samples (seed 0 when None), the same for each back end.
    progress(done, total, subject) is called after each tensor.
    UserError for an unknown target or back end.
    """
    subjects = _subjects(target)
    seed = int((np.random.default_rng(0) if rng is None else rng).integers(2**31))
    total, done, rows = _count(subjects) * len(backends), 0, []
    for backend in backends:
        with use_backend(backend):
            for index, (name, (make, shape, tolerance, options)) in enumerate(subjects.items()):
                draw = np.random.default_rng((seed, index))
                layer = randomise_parameters(make(draw).astype(np.float64), draw)

                def tick(name=name):
                    nonlocal done
                    done += 1
                    if progress is not None:
                        progress(done, total, name)

                report = measure_gradients(layer, distinct_nonzero(shape, draw), draw, tolerance, progress=tick, **options)
                rows += [Row(name, backend, check.tensor, check.entries, check.size, check.kinks, check.error, tolerance,
                             check.problem) for check in report.tensors]
    return Certificate(tuple(rows))


def _subjects(target):
    """{name: (make, shape of x, tolerance, options)} of what `target` names."""
    tables = {**LAYERS, **LOSSES}
    operators = {name: (*row, OPERATOR_TOLERANCE, {}) for name, row in tables.items()}
    classes = list(dict.fromkeys(name.split()[0] for name in tables))
    if target == "layers":
        return operators
    if target in classes:
        return {name: row for name, row in operators.items() if name.split()[0] == target}
    if target is not None and target not in MODELS:
        raise UserError(f"unknown target {target!r}: choose layers, one of {', '.join(classes)}, "
                        f"or a model: {', '.join(MODELS)}")
    model = target or "resnet20"
    options, sampled = {"complete": NETWORK_COMPLETE, "sample": NETWORK_SAMPLE}, {"complete": 0, "sample": FUSED_SAMPLE}
    network = {
        model: (lambda rng: build_model(model, rng=rng), NETWORK_INPUT, NETWORK_TOLERANCE, options),
        f"{model} fused": (lambda rng: fuse(build_model(model, rng=rng)), NETWORK_INPUT, NETWORK_TOLERANCE, sampled),
    }
    if target is None:
        return operators | network
    parts = {type(part).__name__ for _, part in build_model(model).named_layers()} | {"CrossEntropyLoss"}
    return {name: row for name, row in operators.items() if name.split()[0] in parts} | network


def _count(subjects):
    """The number of tensors that will be checked on one back end."""
    return sum(1 + len(row[0](np.random.default_rng(0)).parameters()) for row in subjects.values())


def render(certificate, details=False):
    """The certificate as text: a line for each subject and back end, its worst tensor named; with `details` for each
    tensor. Failures are always listed, with their reasons."""
    rows = certificate.rows if details else _worst(certificate.rows)
    head = ("subject", "back end", "tensor" if details else "worst tensor", "checked", "error", "tolerance", "")
    table = [head, *((row.subject, row.backend, row.tensor, f"{row.entries:,} of {row.size:,}", f"{row.error:.1e}",
                      f"{row.tolerance:.0e}", "ok" if row.passed else "FAILED") for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.rjust(width) if 3 <= place <= 5 else cell.ljust(width)
                       for place, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip() for line in table]
    failures = [row for row in certificate.rows if not row.passed]
    lines += [f"FAILED {row.subject} on {row.backend}: {row.tensor} {row.problem}" for row in failures]
    checked, kinks = sum(row.entries for row in certificate.rows), sum(row.kinks for row in certificate.rows)
    wrong = f"{len(failures)} of {len(certificate.rows)} gradients are wrong"
    verdict = wrong if failures else "every gradient is the derivative"
    lines.append(f"{verdict}: {len(certificate.rows):,} tensors, {checked:,} entries, worst relative error "
                 f"{max(row.error for row in certificate.rows):.1e}, {kinks} entries at a kink left out")
    return "\n".join(lines)


def _worst(rows):
    """For each subject and back end the tensor closest to failing, with the entries of all its tensors added up."""
    groups = {}
    for row in rows:
        groups.setdefault((row.subject, row.backend), []).append(row)
    for group in groups.values():
        worst = max(group, key=lambda row: (not row.passed, row.error))
        totals = {name: sum(getattr(row, name) for row in group) for name in ("entries", "size", "kinks")}
        yield replace(worst, **totals)
