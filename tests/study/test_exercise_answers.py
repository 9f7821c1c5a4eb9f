"""Right and wrong answers to every exercise: the right ones pass, the wrong ones are diagnosed by name."""
import ast
import inspect
import textwrap
from collections import Counter

import numpy as np
import pytest
from exercise_answers import BASIC, BATCHNORM, BOTTLENECK, RIGHT, STEPS, WRONG, changed

from minires.study.exercises import find_exercise, find_exercises, grade
from minires.study.exercises.checker.diagnose import diagnose
from minires.study.exercises.checker.general import general_mistakes
from minires.study.exercises.checker.observe import Observation
from minires.study.exercises.checker.situation import situations
from minires.study.exercises.checker.words import blank

EXERCISES = {name: find_exercise(name) for name in find_exercises()}


def write(exercise, body, folder):
    """The student's file with its blank line replaced."""
    path = folder / f"{exercise.name}.py"
    before, after = exercise.text(path).split(blank(exercise.method))
    lines = textwrap.indent(textwrap.dedent(body).strip(), before.rpartition("\n")[2]).lstrip()
    path.write_text(before + lines + after)
    return path


def graded(name, body, folder):
    return grade(EXERCISES[name], write(EXERCISES[name], body, folder))


@pytest.mark.parametrize("name", EXERCISES)
def test_the_engines_own_class_passes(name):
    exercise = EXERCISES[name]
    report = grade(exercise, inspect.getsourcefile(exercise.engine))
    assert report.status == "passed", report.text()
    kinds = {"gradient", "numerical"} if exercise.method == "backward" else {"value"}
    assert {check.kind for check in report.checks} >= {"inputs", "shape", "dtype", *kinds}
    assert all(check.passed for check in report.checks)


@pytest.mark.parametrize("name", EXERCISES)
def test_a_right_answer_passes(name, tmp_path):
    report = graded(name, RIGHT[name], tmp_path)
    assert report.status == "passed", report.text()


@pytest.mark.parametrize("name", EXERCISES)
def test_the_blank_says_what_to_write(name, tmp_path):
    exercise = EXERCISES[name]
    report = graded(name, blank(exercise.method), tmp_path)
    assert report.status == "blank" and not report.diagnoses
    line = next(number for number, line in enumerate(exercise.text("x.py").splitlines(), 1) if "is blank: write" in line)
    assert f"still blank in line {line}: " in report.message
    if exercise.method == "backward":
        assert f"return {exercise.shown('dx')}, (" in report.message
        assert all(f"self.{parameter}.grad" in report.message for parameter in exercise.parameters)
    assert f"{exercise.method} must {exercise.required()[0]}" in report.message


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


@pytest.mark.parametrize(("name", "body", "said"), [
    ("batchnorm_steps", changed(STEPS, ("inv_std ** 2", "inv_std")),
     "but the term of the variance (a multiple of x_hat) is 1 / inv_std times what it should be; the rest is right"),
    ("batchnorm_steps", changed(STEPS, ("dmean / m", "3 * dmean / m")),
     "but the term of the mean (a number that is subtracted) is 3 times what it should be; the rest is right"),
    ("batchnorm_steps", changed(STEPS, ("g * inv_std", "g")), "but the term of g = dy * weight is 1 / inv_std times what"),
    ("batchnorm", changed(BATCHNORM, ("return inv_std * ", "return inv_std ** 3 * ")),
     "but the common factor in front is inv_std^2 times what it should be"),
    ("basic_block", changed(BASIC, ("self.shortcut.backward(g)", "g")), "the shortcut is not always the identity: at N = 2, "
     "stride 2 it is a projection, and g, (2,3,4,6), is no gradient of x, (2,5,7,4)"),
    ("basic_block", changed(BASIC, ("self.conv2.backward(self.bn2.backward(g))",
                                    "self.bn2.backward(self.conv2.backward(g))")),
     "bn2 is the first part that is wrong on the way back (it comes right after the last ReLU)"),
    ("bottleneck", changed(BOTTLENECK, ("self.bn2.backward(self.relu2.backward(branch))",
                                        "self.relu2.backward(self.bn2.backward(branch))")),
     "the other way, self.conv3.backward, then self.relu2.backward, then self.bn2.backward")])
def test_an_explanation_says_where_to_look(name, body, said, tmp_path):
    report = graded(name, body, tmp_path)
    assert said in report.message and len(report.diagnoses) == 1, report.text()


def test_what_is_no_combination_of_the_three_terms_is_not_explained_by_them(tmp_path):
    report = graded("batchnorm", changed(BATCHNORM, ("return", "x_hat = x_hat ** 2; return")), tmp_path)
    assert "three right terms" not in report.text() and report.status == "wrong"


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
