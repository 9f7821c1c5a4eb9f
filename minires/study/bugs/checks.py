"""Which check notices a bug: difference quotients, the contract, or the adjoint."""
from dataclasses import dataclass

import numpy as np

from minires.backends import use_backend
from minires.study.bugs.inject import inject
from minires.study.forward_mode import adjoint_errors
from minires.study.forward_mode.adjoint import TOLERANCE as ADJOINT_TOLERANCE
from minires.study.gradcheck import distinct_nonzero, measure_gradients, randomise_parameters

DIFFERENCE_TOLERANCE = 1e-6
SAMPLE = {"complete": 60, "sample": 12}  # of a larger tensor, with the slope along a direction that feels every entry
BACKEND = "reference"
# How measure_gradients says that the contract is broken, and the words for a table.
CONTRACT = {"expected": "shape or dtype", "second backward": "not added to grad", "second run": "differs in a second run",
            "change of": "writes into dy", "not finite": "not finite"}


@dataclass(frozen=True)
class Detection:
    """What the checks say of a bug, over all cases of its layers.

    cases, noticed: how many rows of `minires.study.subjects` were checked, and in how many any check failed.
    difference: the worst relative error against difference quotients, of the tensors that could be compared.
    contract: None, or what is wrong with a gradient beside its value; said: the check's own words for the worst failure.
    adjoint: the worst relative error of <Jv, u> = <v, J^T u>.
    """

    cases: int
    noticed: int
    difference: float
    contract: str | None
    adjoint: float
    said: str

    @property
    def by_difference(self):
        return self.difference > DIFFERENCE_TOLERANCE

    @property
    def by_contract(self):
        return self.contract is not None

    @property
    def by_adjoint(self):
        return not self.adjoint <= ADJOINT_TOLERANCE

    @property
    def killed(self):
        """Whether any check noticed."""
        return self.by_difference or self.by_contract or self.by_adjoint


def detect(bug, seed=0):
    """Check every case of the bug's layers with it planted, in float64 by the reference back end; returns a Detection."""
    with use_backend(BACKEND), inject(bug, (BACKEND,)), np.errstate(all="ignore"):
        found = [_check(name, make, shape, seed) for name, (make, shape) in bug.cases().items()]
    difference, contract, adjoint, said = zip(*found, strict=True)
    noticed = [bool(words) for words in said]
    worst = max(range(len(found)), key=lambda index: (noticed[index], difference[index], adjoint[index]))
    return Detection(len(found), sum(noticed), float(max(difference)), next((words for words in contract if words), None),
                     float(max(adjoint)), said[worst])


def _check(name, make, shape, seed):
    """(worst difference, broken contract or None, worst adjoint error, the failure in words or "") of one case."""
    rng = np.random.default_rng(seed)
    layer = randomise_parameters(make(rng).astype(np.float64), rng)
    x = distinct_nonzero(shape, rng)
    report = measure_gradients(layer, x, rng, DIFFERENCE_TOLERANCE, **SAMPLE)
    measured = [check for check in report.tensors if check.entries]
    broken = [check for check in report.tensors if check.problem and not check.entries]
    difference = max((check.error for check in measured), default=0.0)
    # A layer of its own: a broken gradient may have changed the shape of the first one's.
    rng = np.random.default_rng(seed)
    adjoint = adjoint_errors(randomise_parameters(make(rng).astype(np.float64), rng), x, rng)
    worst = max(adjoint, key=adjoint.get)
    said = [f"{name}: {check.tensor} {check.problem}" for check in sorted(report.tensors, key=lambda check: -check.error)
            if check.problem]
    if not adjoint[worst] <= ADJOINT_TOLERANCE:
        said.append(f"{name}: {worst} has adjoint error {adjoint[worst]:.1e}, not {ADJOINT_TOLERANCE:.0e}")
    return difference, _contract(broken), adjoint[worst], said[0] if said else ""


def _contract(broken):
    for check in broken:
        return next((words for part, words in CONTRACT.items() if part in check.problem), check.problem)
    return None
