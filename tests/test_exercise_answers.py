"""Right and wrong answers to every exercise: the right ones pass, the wrong ones are diagnosed by name."""
import ast
import inspect
import textwrap
from collections import Counter

import numpy as np
import pytest
from exercise_answers import RIGHT, WRONG

from minires.study.exercises import find_exercise, find_exercises, grade
from minires.study.exercises.checker.diagnose import diagnose
from minires.study.exercises.checker.exercise import BLANK
from minires.study.exercises.checker.general import general_mistakes
from minires.study.exercises.checker.observe import Observation
from minires.study.exercises.checker.situation import situations

EXERCISES = {name: find_exercise(name) for name in find_exercises()}


def write(exercise, body, folder):
    """The student's file with its blank line replaced."""
    path = folder / f"{exercise.name}.py"
    lines = textwrap.indent(textwrap.dedent(body).strip(), "        ").lstrip()
    path.write_text(exercise.text(path).replace(BLANK, lines))
    return path


def graded(name, body, folder):
    return grade(EXERCISES[name], write(EXERCISES[name], body, folder))


@pytest.mark.parametrize("name", EXERCISES)
def test_the_engines_own_class_passes(name):
    exercise = EXERCISES[name]
    report = grade(exercise, inspect.getsourcefile(exercise.engine))
    assert report.status == "passed", report.text()
    assert {check.kind for check in report.checks} >= {"inputs", "shape", "gradient", "dtype", "numerical"}
    assert all(check.passed for check in report.checks)


@pytest.mark.parametrize("name", EXERCISES)
def test_a_right_answer_passes(name, tmp_path):
    report = graded(name, RIGHT[name], tmp_path)
    assert report.status == "passed", report.text()


@pytest.mark.parametrize("name", EXERCISES)
def test_the_blank_says_what_to_write(name, tmp_path):
    exercise = EXERCISES[name]
    report = graded(name, BLANK, tmp_path)
    assert report.status == "blank" and not report.diagnoses
    line = next(number for number, line in enumerate(exercise.text("x.py").splitlines(), 1) if BLANK in line)
    assert f"still blank in line {line}: " in report.message
    assert f"return {exercise.shown('dx')}, (" in report.message
    assert all(f"self.{parameter}.grad" in report.message for parameter in exercise.parameters)


@pytest.mark.parametrize(("name", "body", "mistake", "where"), WRONG, ids=[f"{row[0]}: {row[2]}-{i}" for i, row in
                                                                         enumerate(WRONG)])
def test_a_wrong_answer_is_named(name, body, mistake, where, tmp_path):
    report = graded(name, body, tmp_path)
    assert report.status == "wrong", report.text()
    assert report.diagnoses[0].mistake == mistake, report.text()
    assert report.diagnoses[0].where == where
    assert report.message == report.diagnoses[0].sentence
    assert not all(check.passed for check in report.checks)
    assert "{" not in report.message


def test_a_factor_is_told_at_the_largest_case(tmp_path):
    report = graded("global_avgpool", "return np.zeros(x_shape, dy.dtype) + dy[:, None, None]", tmp_path)
    assert report.message.startswith("dx is exactly H*W = 18 times too large: ")


@pytest.mark.parametrize(("name", "tensor", "wanted"), [
    ("linear", "bias", "dbias is never added to: write self.bias.grad += dbias"),
    ("basic_block", "bn2.weight", "d(bn2.weight) is never added to: call self.bn2.backward")])
def test_a_gradient_that_stays_zero_says_what_to_write(name, tensor, wanted):
    found = next(general_mistakes(EXERCISES[name], tensor, situations(EXERCISES[name], np.float64)))
    assert (found.name, found.sentence) == ("zero", wanted)


def test_every_exercise_has_three_wrong_answers():
    named = Counter(name for name, _, mistake, _ in WRONG if mistake not in ("unknown", "shape", "dtype", "input changed"))
    assert set(named) == set(EXERCISES) and min(named.values()) >= 3


@pytest.mark.parametrize("name", EXERCISES)
def test_each_known_mistake_is_told_from_all_others(name):
    """What a formula predicts is diagnosed as that mistake, and is not what is right."""
    exercise = EXERCISES[name]
    cases = situations(exercise, np.float64)
    for mistake in exercise.mistakes:
        seen = []
        for case in cases:
            predicted = mistake.formula(case)
            predicted = predicted if isinstance(predicted, dict) else {"dx": predicted}
            seen.append(Observation(case, case.right | predicted))
        found = diagnose(exercise, seen)
        assert [one.mistake for one in found] == [mistake.name], (mistake.name, [one.sentence for one in found])


@pytest.mark.parametrize("name", EXERCISES)
def test_the_file_stands_alone(name):
    """It parses, names its exercise, and its lines fit a screen."""
    text = EXERCISES[name].text("mine.py")
    ast.parse(text)
    assert f'EXERCISE = "{name}"' in text and "check mine.py" in text
    assert max(map(len, text.splitlines())) <= 125
