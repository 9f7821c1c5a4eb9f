"""Judging a student's file in this process: the checks in their order, and the report."""
import warnings

import numpy as np

from minires.backends import use_backend
from minires.study.exercises.checker.diagnose import diagnose
from minires.study.exercises.checker.report import Check, Diagnosis, Report
from minires.study.exercises.checker.situation import situations
from minires.study.exercises.checker.student import StudentError, blank_message, captured, load_class, students_code
from minires.study.gradcheck import LossLayer, distinct_nonzero, measure_gradients

ENTRIES, SAMPLE = 24, 6  # of a tensor, against numerical differences: the engine has been compared entry by entry by then


def grade(exercise, file):
    """The Report on a student's file, which is run in this process: see `process.check_file` for one that is not trusted."""
    with warnings.catch_warnings(), np.errstate(all="ignore"), use_backend("reference"), captured() as printed:
        warnings.simplefilter("ignore")
        try:
            report = _graded(exercise, str(file))
        except StudentError as error:
            message = f"{error}: {blank_message(exercise)}" if error.status == "blank" else str(error)
            report = Report(exercise.name, str(file), error.status, message)
    report.printed = printed.text
    return report


def _graded(exercise, file):
    cls = load_class(exercise, file)
    seen, failures = [], []
    for situation, single in zip(situations(exercise, np.float64), situations(exercise, np.float32), strict=True):
        try:
            seen.append(exercise.observe(exercise, cls, file, situation, single))
        except StudentError as error:
            if error.status == "blank":
                raise
            failures.append((situation, error))
    if not seen:
        raise failures[0][1]
    diagnoses = diagnose(exercise, seen)
    named = {(problem.mistake, tuple(problem.tensors)): problem for one in seen for problem in one.problems.values()}
    diagnoses += named.values()
    diagnoses += [(exercise.explain_error and exercise.explain_error(situation, str(error)))
                  or Diagnosis("raises", [], situation.case.name, str(error)) for situation, error in failures[:1]]
    checks = [Check("runs", situation.case.name, None, False) for situation, _ in failures]
    checks += [check for one in seen for check in _checks(exercise, one)]
    if not diagnoses and exercise.method == "backward":
        with students_code(file, f"{cls.__name__} in the numerical check"):
            for one in seen:
                checks += (numerical := list(_numerical(exercise, cls, one.situation)))
                diagnoses += [Diagnosis("not the derivative", [check.tensor], None, f"{check.tensor} agrees with the "
                              "exercise's solution, but not with numerical differences: tell whoever wrote the exercise")
                              for check in numerical if not check.passed]
    status = "wrong" if diagnoses else "passed"
    return Report(exercise.name, file, status, diagnoses[0].sentence if diagnoses else _praise(exercise), checks, diagnoses)


def _checks(exercise, seen):
    case, right = seen.situation.case.name, seen.situation.right
    yield Check("inputs", case, None, ("inputs", None) not in seen.problems)
    for tensor, array in right.items():
        shown = exercise.shown(tensor)
        yield Check("shape", case, shown, seen.got[tensor].shape == array.shape)
        yield Check(exercise.value, case, shown, seen.right(tensor))
        yield Check("dtype", case, shown, ("dtype", tensor) not in seen.problems)
        if tensor != "dx" and exercise.method == "backward":
            yield Check("accumulation", case, shown, ("accumulation", tensor) not in seen.problems)


def _numerical(exercise, cls, situation):
    layer = situation.make(cls)
    if situation.target is not None:
        layer = LossLayer(layer.loss, situation.target)
    draw = np.random.default_rng(3)
    report = measure_gradients(layer, distinct_nonzero(situation.x.shape, draw), draw, complete=ENTRIES, sample=SAMPLE)
    for found in report.tensors:
        yield Check("numerical", situation.case.name, exercise.shown(found.tensor), found.passed)


def _praise(exercise):
    module = exercise.engine.__module__
    agree = "values, shapes and dtypes agree with the engine"
    if exercise.method == "backward":
        agree = "values, shapes, dtypes and accumulation agree with the engine and with numerical differences"
    return f"right: {agree}; compare with {exercise.engine.__name__} in {module}"
