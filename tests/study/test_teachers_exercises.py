"""A teacher's own exercise: one file."""
from functools import partial
from pathlib import Path

import pytest

from minires.errors import UserError
from minires.study.exercises import find_exercise, grade, start_exercise
from minires.study.exercises.checker.words import BLANK


@pytest.fixture
def command(command, tmp_path, monkeypatch):
    """command("start", "square") -> (exit code, stdout, stderr) of minires exercise, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return partial(command, "exercise")


TEACHERS = '''
import numpy as np

from minires.layer import Layer
from minires.study.exercises import Case, Exercise, Mistake

CODE = """
import numpy as np

from minires.layer import Layer


class Square(Layer):
    def forward(self, x):
        self._save(x)
        return x * x

    def backward(self, dy):
        (x,) = self._saved()
        raise NotImplementedError("backward is blank: write it here")
"""


class Square(Layer):
    def forward(self, x):
        self._save(x)
        return x * x

    def backward(self, dy):
        (x,) = self._saved()
        return 2 * x * dy


EXERCISE = Exercise(
    title="the square", engine=Square, make=lambda Square, rng: Square(), letters={"x": "N C", "y": "N C"},
    formula="y = x^2", keeps="x", code=CODE, cases=(Case((1, 4)), Case((3, 5))),
    mistakes=(Mistake("x for 2x", "dx is half of what it should be: the derivative of x^2 is 2x", lambda s: s.x * s.dy),),
)
'''


def test_a_teachers_file_is_an_exercise(command, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "square.py").write_text(TEACHERS)
    assert command("list", "--folder", folder)[1].splitlines()[-1].split()[1:] == ["square", "the", "square"]
    assert command("start", "square", "--folder", folder)[0] == 0
    assert "No derivation is written." in command("hint", "square", "--derivation", "--folder", folder)[1]
    path = Path("square.py")
    assert 'y = x^2' in path.read_text() and "- return dx, (N, C)" in path.read_text()
    path.write_text(path.read_text().replace(BLANK, "return x * dy"))
    code, out, _ = command("check", path, "--folder", folder)
    assert code == 1 and "- dx is half of what it should be: the derivative of x^2 is 2x" in out
    assert command("check", folder / "square.py", "--exercise", "square", "--folder", folder)[0] == 0  # its own solution
    assert command("check", path)[0] == 2  # unknown without the folder


def test_a_teachers_wrong_solution_is_found_by_the_numerical_check(tmp_path):
    (tmp_path / "square.py").write_text(TEACHERS.replace("return 2 * x * dy", "return 3 * x * dy"))
    exercise = find_exercise("square", tmp_path)
    report = grade(exercise, tmp_path / "square.py")
    assert report.status == "wrong" and report.diagnoses[0].mistake == "not the derivative"
    assert {check.kind for check in report.checks if not check.passed} == {"numerical"}


@pytest.mark.parametrize(("old", "new", "message"), [
    ("import numpy", "import nunpy", "cannot be loaded: ModuleNotFoundError: No module named 'nunpy'"),
    ("import numpy", "raise SystemExit(0)  #", "cannot be loaded: SystemExit: 0"),
    ("EXERCISE =", "OTHER =", "defines no EXERCISE = Exercise"),
    ("raise Not", "return Not", "cannot be loaded: UserError: the exercise's code has 0 lines"),
    ("cases=(Case((1, 4)), Case((3, 5)))", "cases=()", "cannot be loaded: UserError: the exercise has no cases"),
])
def test_a_teachers_mistake_is_one_sentence(tmp_path, old, new, message):
    (tmp_path / "square.py").write_text(TEACHERS.replace(old, new))
    with pytest.raises(UserError) as caught:
        start_exercise("square", tmp_path / "out.py", tmp_path)
    assert f"the exercise file {tmp_path / 'square.py'} {message}" in str(caught.value)
    assert not (tmp_path / "out.py").exists()
