"""The certificate: every layer, block and loss and a whole network, on each back end, held against its derivative."""
from dataclasses import dataclass, replace

import numpy as np

from minires.backends import use_backend
from minires.errors import UserError
from minires.models import MODELS, RESNETS, build_model
from minires.study.forward_mode import adjoint_errors, step_curve
from minires.study.forward_mode.adjoint import TOLERANCE as ADJOINT_TOLERANCE
from minires.study.gradcheck import distinct_nonzero, measure_gradients, randomise_parameters
from minires.study.planned import Planned
from minires.study.subjects import BLOCKS, LAYERS, LOSSES, PLANNED, thawed

OPERATOR_TOLERANCE = 1e-6
NETWORK_TOLERANCE = 1e-5
NETWORK_INPUT = (2, 8, 8, 3)  # 2 x 2 pixels in the last stage: every border, and 8 values per channel for its statistics
LARGE_INPUT = (2, 16, 16, 3)  # the same for the ImageNet family, which halves the image once more
SPEEDRUN_INPUT = (2, 25, 25, 3)  # 3 x 3 pixels in the last stage, which its last pooling needs
NETWORK_COMPLETE, NETWORK_SAMPLE = 64, 16
PLANNED_SAMPLE = 6  # the same function, which a test holds equal to the other; here each tensor's slope once more
# Rounding grows with depth where nothing is added back: resnet110 stays at 4e-14, plain110 is at 8e-9, resnet50 at 1e-12.
DEEP_ADJOINT_TOLERANCE = 1e-7
STEP_CURVES = ("Conv2d", "BatchNorm2d", "CrossEntropyLoss", "BasicBlock")  # shown when no target is named


@dataclass(frozen=True)
class Row:
    """One tensor on one back end. entries of size were checked, kinks had no derivative; error: the worst relative
    error; adjoint: that of <Jv, u> = <v, J^T u>, or None when it was left out; problem: None, or why it failed."""

    subject: str
    backend: str
    tensor: str
    entries: int
    size: int
    kinks: int
    error: float
    tolerance: float
    adjoint: float | None
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


def certificate(target=None, backends=("reference", "cpu"), rng=None, progress=None, adjoint=True):
    """Check what `target` names and return the Certificate; a gradient that fails is a row, not an exception.

    target: None for everything with a whole resnet20; "layers" for all layers, blocks and losses; the name of a layer or
    loss class; or a model, checked whole, layer by layer and planned, after the layers it is made of.
    rng: draws inputs, weights and samples (seed 0 when None), the same for each back end.
    progress(done, total, subject) is called after each tensor. adjoint: hold each tensor against forward mode too, to
    1e-12, and 1e-7 for a plain or an ImageNet network.
    UserError for an unknown target or back end.
    """
    subjects = _subjects(target)
    seed = int((np.random.default_rng(0) if rng is None else rng).integers(2**31))
    total, done, rows = _count(subjects) * len(backends), 0, []
    for backend in backends:
        with use_backend(backend):
            for index, (name, (make, shape, tolerance, strict, options)) in enumerate(subjects.items()):
                draw = np.random.default_rng((seed, index))
                layer, x = _drawn(make, shape, draw)

                def tick(name=name):
                    nonlocal done
                    done += 1
                    if progress is not None:
                        progress(done, total, name)

                report = measure_gradients(layer, x, draw, tolerance, progress=tick, **options)
                errors = adjoint_errors(layer, x, draw) if adjoint else {}
                rows += [Row(name, backend, check.tensor, check.entries, check.size, check.kinks, check.error, tolerance,
                             errors.get(check.tensor), _problem(check.problem, errors.get(check.tensor), strict))
                         for check in report.tensors]
    return Certificate(tuple(rows))


def _drawn(make, shape, rng):
    """A layer in float64 with random parameters, and an x for it that is away from kinks and ties."""
    layer = randomise_parameters(make(rng).astype(np.float64), rng)
    return layer, distinct_nonzero(shape, rng)


def _problem(problem, adjoint, tolerance):
    found = [] if problem is None else [problem]
    if adjoint is not None and not adjoint <= tolerance:
        found.append(f"has adjoint error {adjoint:.1e}, not {tolerance:.0e}")
    return " and ".join(found) or None


def step_curves(target=None, rng=None):
    """{name: StepCurve} of what `target` names (as for `certificate`; four telling layers by default), by the reference.

    A model stands for itself alone, whole, along one random direction. rng: seed 0 when None.
    """
    subjects = _subjects(target)
    if target in (None, "layers"):
        chosen = STEP_CURVES
    else:
        chosen = [target] if target in MODELS else [name for name in subjects if name not in PLANNED]  # y is no plan's
    seed, curves = int((np.random.default_rng(0) if rng is None else rng).integers(2**31)), {}
    with use_backend("reference"):
        for index, name in enumerate(chosen):
            draw = np.random.default_rng((seed, index))
            curves[name] = step_curve(*_drawn(*subjects[name][:2], draw), draw)
    return curves


def _subjects(target):
    """{name: (make, shape of x, tolerance, tolerance of adjoints, options)} of what `target` names."""
    tables = {**LAYERS, **BLOCKS, **PLANNED, **LOSSES}
    operators = {name: (*row, OPERATOR_TOLERANCE, ADJOINT_TOLERANCE, {}) for name, row in tables.items()}
    classes = list(dict.fromkeys(name.split()[0] for name in tables))
    if target == "layers":
        return operators
    if target in classes:
        return {name: row for name, row in operators.items() if name.split()[0] == target}
    if target is not None and target not in MODELS:
        raise UserError(f"unknown target {target!r}: choose layers, one of {', '.join(classes)}, "
                        f"or a model: {', '.join(MODELS)}")
    model = target or "resnet20"
    options, sampled = {"complete": NETWORK_COMPLETE, "sample": NETWORK_SAMPLE}, {"complete": 0, "sample": PLANNED_SAMPLE}
    cifar = model in RESNETS and len(RESNETS[model]["blocks"]) == 3
    strict = ADJOINT_TOLERANCE if cifar and model.startswith("resnet") else DEEP_ADJOINT_TOLERANCE
    image = NETWORK_INPUT if cifar else SPEEDRUN_INPUT if model == "speedrun" else LARGE_INPUT
    row = (image, NETWORK_TOLERANCE, strict)
    network = {
        model: (lambda rng: thawed(build_model(model, rng=rng)), *row, options),
        f"{model} planned": (lambda rng: Planned(thawed(build_model(model, rng=rng))), *row, sampled),
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
    rows = list(certificate.rows if details else _worst(certificate.rows))
    head = ("subject", "back end", "tensor" if details else "worst tensor", "checked", "error", "tolerance", "adjoint", "")
    table = [head, *((row.subject, row.backend, row.tensor, f"{row.entries:,} of {row.size:,}", f"{row.error:.1e}",
                      f"{row.tolerance:.0e}", _adjoint(row), "ok" if row.passed else "FAILED") for row in rows)]
    if all(row.adjoint is None for row in rows):
        table = [(*line[:6], line[7]) for line in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.rjust(width) if 3 <= place <= len(widths) - 2 else cell.ljust(width)
                       for place, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip() for line in table]
    failures = [row for row in certificate.rows if not row.passed]
    lines += [f"FAILED {row.subject} on {row.backend}: {row.tensor} {row.problem}" for row in failures]
    checked, kinks = sum(row.entries for row in certificate.rows), sum(row.kinks for row in certificate.rows)
    wrong = f"{len(failures)} of {len(certificate.rows)} gradients are wrong"
    verdict = wrong if failures else "every gradient is the derivative"
    lines.append(f"{verdict}: {len(certificate.rows):,} tensors, {checked:,} entries, worst relative error "
                 f"{max(row.error for row in certificate.rows):.1e}, {kinks} entries at a kink left out")
    adjoints = [row.adjoint for row in certificate.rows if row.adjoint is not None]
    if adjoints:
        lines.append(f"adjoint errors, <Jv, u> against <v, backward(u)> with no step size: {max(adjoints):.1e} at most")
    return "\n".join(lines)


def _adjoint(row):
    return "" if row.adjoint is None else f"{row.adjoint:.1e}"


def _worst(rows):
    """For each subject and back end the tensor closest to failing, with the entries of all its tensors added up and the
    largest of their adjoint errors."""
    groups = {}
    for row in rows:
        groups.setdefault((row.subject, row.backend), []).append(row)
    for group in groups.values():
        worst = max(group, key=lambda row: (not row.passed, row.error))
        totals = {name: sum(getattr(row, name) for row in group) for name in ("entries", "size", "kinks")}
        adjoints = [row.adjoint for row in group if row.adjoint is not None]
        yield replace(worst, **totals, adjoint=max(adjoints, default=None))
