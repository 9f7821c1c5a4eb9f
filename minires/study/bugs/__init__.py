"""Bug injection: what people get wrong in a backward pass, planted into the live engine, and what finds it out.

    inject         Bug, and `inject`, which plants one and takes it away again
    windows, statistics, elementwise, paths    the bugs of convolutions and pools, of normalisations, of rectifiers, linear
                   layers, dropout and losses, and of residual blocks
    catalogue      all of them by name
    checks         which check notices a bug, and by how much
    training       what a short training looks like with it
    report         all of it together, and as text
"""
from minires.study.bugs.catalogue import BUGS, choose
from minires.study.bugs.checks import Detection, detect
from minires.study.bugs.inject import Bug, inject
from minires.study.bugs.report import BugReport, BugRow, render, study_bugs, to_json
from minires.study.bugs.training import NETWORKS, Outcome, train_clean, train_with

__all__ = [
    "BUGS", "NETWORKS", "Bug", "BugReport", "BugRow", "Detection", "Outcome", "choose", "detect", "inject", "render",
    "study_bugs", "to_json", "train_clean", "train_with",
]
