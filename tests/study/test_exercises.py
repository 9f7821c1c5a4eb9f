"""The exercises' machinery: files that fail in every way, the process with its time limit, the command."""
import json
import os
import textwrap
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from exercise_answers import RIGHT
from test_exercise_answers import EXERCISES, write

from minires.errors import UserError
from minires.study.exercises import Report, check_file, find_exercises, grade, start_exercise
from minires.study.exercises.checker.report import Check, Diagnosis
from minires.study.exercises.checker.where import where
from minires.study.exercises.checker.words import BLANK

LINEAR, KEYS = EXERCISES["linear"], ["exercise", "file", "status", "passed", "message", "checks_passed", "checks_total",
                                     "checks", "diagnoses", "printed"]


TOP = LINEAR.text("linear.py").split("import numpy")[0].count("\n") + 2  # the lines that a file's `top` and body stand in
BODY = LINEAR.text("linear.py").split(BLANK)[0].count("\n") + 2


def linear(folder, body=RIGHT["linear"], top="", **changes):
    """A file for exercise linear, with `top` as its first statement and pieces of text exchanged."""
    path = write(LINEAR, body, folder)
    text = path.read_text().replace("import numpy as np\n", f"import numpy as np\n{top}\n", 1)
    for old, new in changes.get("pieces", ()):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


# --- files that cannot be judged: one sentence each ---

BROKEN = {
    "syntax": ({"top": "def oops(:"}, f"the file has a syntax error in line {TOP}: "),
    "null bytes": ({"top": "\0"}, "the file "),
    "import": ({"top": "import no_such_module"}, f"the file cannot import in line {TOP}: No module named 'no_such_module'"),
    "raises": ({"top": "1 / 0"}, f"the file raises ZeroDivisionError in line {TOP}: division by zero"),
    "exit": ({"top": "raise SystemExit(0)"}, f"the file ends the program in line {TOP}: remove exit() or sys.exit()"),
    "exit in backward": ({"body": "raise SystemExit"}, f"Linear.backward ends the program in line {BODY}: remove"),
    "keyboard": ({"top": "input()"}, f"the file waits for the keyboard in line {TOP}: remove input()"),
    "no class": ({"pieces": [("class Linear", "class Lienar")]}, "the file defines no class Linear: keep the class"),
    "no Layer": ({"pieces": [("Linear(Layer)", "Linear")]},
                 "Linear is no longer a Layer: keep the line class Linear(Layer)"),
    "no backward": ({"pieces": [("def backward", "def backwards")]}, "Linear has no function backward: keep its line"),
    "the engine's": ({"body": BLANK, "top": "import minires.layers", "pieces": [
        ("class Linear(Layer)", "class Unused(Layer)"), ("EXERCISE =", "Linear = minires.layers.Linear\nEXERCISE =")]},
        "Linear.backward is not written in this file but in "),
    "other parameters": ({"pieces": [("self.bias = ", "self.b = "), ("self.bias.data", "self.b.data")]},
                         "Linear.__init__ was changed: it must make weight (7, 5), bias (5,) at N = 1, features (7, 5), as"),
    "other forward": ({"pieces": [("x @ self.weight.data +", "x @ self.weight.data * 2 +")]},
                      "forward was changed: at N = 1, features (7, 5) it no longer gives y = x @ weight + bias"),
    "nothing returned": ({"body": "pass"}, "backward returns nothing: it must return dx, (N, C)"),
    "tuple": ({"body": "return dy @ self.weight.data.T, x.T @ dy, dy.sum(0)"},
              "backward returns a tuple of 3: it must return dx, (N, C) alone, and add the others to self.weight.grad, "
              "self.bias.grad"),
    "objects": ({"body": "return dy.astype(object)"}, "dx is an array of object, not of numbers: make it of the dtype of"),
    "list of numbers": ({"body": "return 'dx'"}, "dx is a str, not a NumPy array: backward must add dweight"),
    "raises in backward": ({"body": "return dy @ x"},
                           f"Linear.backward raises ValueError in line {BODY} at N = 1, features (7, 5): matmul: "),
    }


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_judged_is_one_sentence(name, tmp_path):
    changes, message = BROKEN[name]
    report = grade(LINEAR, linear(tmp_path, **changes))
    assert report.status == "error" and not report.passed and not report.checks
    assert report.message.startswith(message)
    assert "\n" not in report.message and "Traceback" not in report.message


NO_NUMBERS = {
    "text in y": ("batchnorm_forward", "return x.astype(str)", "forward returns an array of <U32, not of numbers: make it "
                  "of the dtype of x, as np.zeros_like does"),
    "text for y": ("batchnorm_forward", "return 'y'", "forward returns a str, not a NumPy array: forward must return y, "),
    "objects in a buffer": ("batchnorm_forward", "self.running_mean = self.running_mean.astype(object); return x",
                            "self.running_mean is an array of object, not of numbers: make it of the dtype of x"),
    "no loss": ("cross_entropy_forward", "pass", "forward returns nothing: it must return the loss, a number"),
    "a loss in words": ("cross_entropy_forward", "return 'low'", "CrossEntropyLoss.forward raises ValueError"),
    "objects in the weights": ("sgd", "for p in self.parameters: p.data = p.data.astype(object)", "parameter.data of the "
                               "weight becomes an array of object, not of numbers: make it of the dtype of parameter.data"),
    "no weights": ("sgd", "for p in self.parameters: p.data = None", "parameter.data of the weight becomes a NoneType, not "
                   "a NumPy array: step must move parameter.data by its rule, in place"),
}


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_what_is_no_numbers_is_one_sentence(name, tmp_path):
    exercise, body, message = NO_NUMBERS[name]
    report = grade(EXERCISES[exercise], write(EXERCISES[exercise], body, tmp_path))
    assert report.status == "error" and report.message.startswith(message)


def test_a_parameter_that_is_made_on_the_way_is_none_of_the_exercises(tmp_path):
    body = "from minires.layer import Parameter\nself.other = Parameter(np.ones(2))\n"
    body += textwrap.dedent(RIGHT["batchnorm_forward"])
    assert grade(EXERCISES["batchnorm_forward"], write(EXERCISES["batchnorm_forward"], body, tmp_path)).passed


def test_an_error_in_one_case_does_not_hide_what_the_others_show(tmp_path):
    body = RIGHT["linear"].replace("return dy", "assert len(x) == 1; return -dy")
    report = grade(LINEAR, linear(tmp_path, body))
    assert [found.mistake for found in report.diagnoses] == ["negated", "raises"]
    assert report.diagnoses[1].where == "N = 3, features (4, 4)"
    assert [check.kind for check in report.checks if not check.passed][:2] == ["runs", "runs"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minires.study.exercises.checker.catalogue.write_atomically", full)
    with pytest.raises(UserError, match=r"relu.py cannot be written \(No space left on device\): choose another place"):
        start_exercise("relu", tmp_path / "relu.py")


@pytest.mark.parametrize(("dtype", "hint"), [("float64", "np.zeros(shape) is float64: use"), ("complex64", "make it with")])
def test_a_dtype_that_is_wrong_is_explained(dtype, hint, tmp_path):
    report = grade(LINEAR, linear(tmp_path, RIGHT["linear"].replace("return dy @", f"return np.{dtype}(1) * dy @")))
    assert [found.mistake for found in report.diagnoses] == ["dtype"]
    assert report.message.startswith(f"dx is {dtype} where") and hint in report.message


def test_shapes_in_an_error_are_told_in_letters(tmp_path):
    report = grade(LINEAR, linear(tmp_path, "return dy + x @ np.ones((7, 7))"))
    assert "shapes (1,5) = (N, K) (1,7) = (N, C)" in report.message


def test_gradients_that_change_from_pass_to_pass(tmp_path):
    body = RIGHT["linear"].replace("dy.sum(0)", "dy.sum(0) + self.bias.grad")
    report = grade(LINEAR, linear(tmp_path, body))
    assert [found.mistake for found in report.diagnoses] == ["not accumulated"]
    assert not any(check.passed for check in report.checks if (check.kind, check.tensor) == ("accumulation", "dbias"))


def test_what_a_file_prints_is_kept_apart_and_cut(tmp_path, capsys):
    report = grade(LINEAR, linear(tmp_path, top="print('here I am'); print('x' * 10**6)"))
    assert report.passed and capsys.readouterr() == ("", "")
    assert report.printed.startswith("here I am\nxxx") and len(report.printed) == 2000
    assert "(the file prints: here I am)" in report.text()


@pytest.mark.parametrize(("got", "sentence"), [
    (lambda right: right * np.arange(1, 5), "each channel is off by a factor of its own (1, 2, 3, 4); "),
    (lambda right: right * 1.7, "every entry is 1.7 times the right one; "),
    (lambda right: right + np.arange(1, 5), "in each channel the same number is added to every entry"),
    (lambda right: np.pad(right[:, 1:-1, 1:-1], ((0, 0), (1, 1), (1, 1), (0, 0))), "only in the border pixels at N = 3"),
    (lambda right: np.concatenate([right[:, :, :-1], right[:, :, -1:] + 1], 2), "only in the last column (W = 1)"),
    (lambda right: right * np.linspace(1, 2, right.size).reshape(right.shape), "in 143 of 144 entries at N = 3"),  # W is 2
    (lambda right: np.concatenate([right[:1] + 1, right[1:]]), "only in the first image (N = 0) at N = 3"),
    (lambda right: np.concatenate([right[:, :-2], right[:, -2:] + 1], 1), "only in the last 2 rows (H = 4, 5)"),
])
def test_where_an_unknown_difference_sits(got, sentence):
    from minires.study.exercises.checker.observe import Observation
    from minires.study.exercises.checker.situation import situations

    exercise = EXERCISES["batchnorm"]
    case = situations(exercise, np.float64)[-1]
    if "border" in sentence:  # needs an interior
        case = situations(exercise, np.float64)[0]
        sentence = sentence.replace("N = 3", "N = 1")
    seen = Observation(case, case.right | {"dx": got(case.right["dx"])})
    name, said = where(exercise, "dx", seen)
    assert name == "unknown" and sentence in said
    assert "and should be" in said


# --- the process ---


def run(folder, **changes):
    limit = changes.pop("time_limit", 20)
    return check_file(linear(folder, **changes), time_limit=limit)


def test_a_right_file_passes_in_its_process(tmp_path):
    report = run(tmp_path, top="print('hello')")
    assert report.status == "passed" and report.printed == "hello\n"
    assert report.message.startswith("right: ") and "Linear in minires.layers.linear" in report.message


def test_an_endless_loop_is_stopped_and_its_line_named(tmp_path):
    start = time.monotonic()
    report = run(tmp_path, body="while True: pass", time_limit=1)
    assert time.monotonic() - start < 30
    assert report.status == "timeout"
    assert report.message == f"not done after 1 s in line {BODY}: a loop without an end, or far too slow"


@pytest.mark.parametrize(("top", "message"), [
    ("import os; os._exit(0)", "the file ends the program with exit code 0"),
    ("import ctypes; ctypes.string_at(0)", f"the file crashes Python (SIGSEGV) in line {TOP}"),
    ("import sys; sys.exit('done')", f"the file ends the program in line {TOP}: remove"),
])
def test_a_file_that_ends_its_process_is_one_sentence(tmp_path, top, message):
    report = run(tmp_path, top=top)
    assert (report.status, report.exercise) == ("error", "linear") and report.message.startswith(message)


def test_nothing_that_a_file_starts_outlives_it(tmp_path):
    top = "import subprocess; print(subprocess.Popen(['sleep', '120']).pid)"
    report = run(tmp_path, top=top)
    pid = int(report.printed.split()[0])
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return  # ended, and waits for its new parent to notice
        time.sleep(0.05)
    os.kill(pid, 9)
    pytest.fail("the process that the file started still runs")


def test_a_students_files_do_not_take_the_place_of_modules(tmp_path, monkeypatch):
    """A helper beside the file is found; a json.py or numpy.py beside it is not."""
    (tmp_path / "numpy.py").write_text("raise SystemExit")
    (tmp_path / "json.py").write_text("raise SystemExit")
    (tmp_path / "my_helper.py").write_text("WHO = 'mine'")
    monkeypatch.chdir(tmp_path)
    linear(tmp_path, top="import json, my_helper; print(my_helper.WHO)")
    report = check_file("linear.py")
    assert report.passed and report.printed == "mine\n"
    assert not (tmp_path / "__pycache__").exists()


# --- the commands ---


@pytest.fixture
def command(command, tmp_path, monkeypatch):
    """command("start", "square") -> (exit code, stdout, stderr) of minires exercise, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return partial(command, "exercise")


def test_list_names_every_exercise_in_order(command):
    code, out, error = command("list")
    assert (code, error) == (0, "")
    assert [line.split()[1] for line in out.splitlines()] == list(find_exercises())
    assert len(out.splitlines()) >= 13 and "bottleneck" in out.splitlines()[-1]


def test_hints_lead_from_the_contract_to_the_derivation(command):
    code, out, _ = command("hint", "batchnorm_steps")
    assert code == 0 and "- return dx, (N, H, W, C)" in out and "x reaches the loss in three ways" in out
    code, out, _ = command("hint", "linear", "--derivation")
    assert code == 0 and "dx = dy @ weight^T" in out and "minires.layers.linear.Linear" in out
    assert command("hint", "nothing")[0] == 2


@pytest.mark.parametrize("name", EXERCISES)
def test_each_exercise_has_a_derivation(name):
    told = EXERCISES[name].derivation()
    backward = EXERCISES[name].method == "backward"
    assert told.lower().startswith("backward") == (backward and name != "bottleneck")
    assert told and "Source:" not in told


def test_start_then_check(command, tmp_path):
    assert command("start", "relu")[0] == 0
    code, out, error = command("check", "relu.py")
    assert (code, error) == (1, "") and "ReLU.backward is still blank in line " in out
    path = Path("relu.py")
    before = path.read_text()
    code, out, error = command("start", "relu")
    assert (code, out) == (2, "")
    assert error == "minires: error: relu.py exists already and is left as it is: choose another place with --out\n"
    assert path.read_text() == before
    path.write_text(before.replace(BLANK, "return dy * (y > 0)"))
    code, out, error = command("check", "relu.py")
    assert (code, error) == (0, "") and out.startswith("relu in relu.py: passed\n")
    assert "  dx      right: shape, gradient, dtype, numerical\n" in out and "  inputs  right\n" in out
    assert sorted(path.name for path in Path().iterdir()) == ["exercises.json", "relu.py"]


def test_json_has_the_keys_it_promises(command, tmp_path):
    body = RIGHT["linear"].replace("x.T @ dy", "x.T @ dy / len(x)")
    code, out, error = command("check", linear(tmp_path, body), "--json")
    said = json.loads(out)
    assert (code, error) == (1, "") and list(said) == KEYS
    assert (said["exercise"], said["status"], said["passed"]) == ("linear", "wrong", False)
    assert said["message"] == said["diagnoses"][0]["sentence"]
    assert said["diagnoses"] == [{
        "mistake": "divided by N", "tensors": ["weight"], "where": None, "sentence":
        "dweight is exactly N = 3 times too small: you averaged over the batch, the loss already did"}]
    assert said["checks_total"] == len(said["checks"]) == 3 * 12
    assert said["checks_passed"] == sum(check["passed"] for check in said["checks"]) == 3 * 12 - 2
    assert all(list(check) == ["kind", "case", "tensor", "passed"] for check in said["checks"])


def test_a_report_survives_json():
    report = Report("a", "b", "wrong", "c", [Check("shape", "N = 1", "dx", True)], [Diagnosis("m", ["dx"], None, "s")], "p")
    assert Report.from_json(json.loads(json.dumps(report.as_json()))) == report


@pytest.mark.parametrize(("arguments", "message"), [
    (("start", "relo"), "unknown exercise 'relo': choose one of relu, linear, "),
    (("start", "relu", "--out", "no/where.py"), "no/where.py cannot be written: there is no folder no"),
    (("check", "none.py"), "none.py cannot be read (No such file or directory): give the file that minires exercise start"),
    (("check", "none.py", "--exercise", "relu"), "none.py is not a file: give the one that minires exercise start wrote"),
    (("check", "."), ". cannot be read (Is a directory)"),
    (("check", "empty.py"),
     'empty.py does not say which exercise it is: keep the line EXERCISE = "..." or give --exercise'),
    (("check", "empty.py", "--exercise", "x"), "unknown exercise 'x': choose one of relu, "),
    (("check", "empty.py", "--exercise", "relu", "--time-limit", 0),
     "--time-limit is in seconds and must be positive, got 0"),
    (("check", "empty.py", "--exercise", "relu", "--time-limit", "inf"),
     "--time-limit is in seconds and must be positive, got inf: expected at most 86,400"),
    (("start", "relu", "--out", "x" * 300 + ".py"), f"{'x' * 300}.py cannot be written (File name too long): choose"),
    (("list", "--folder", "none"), "--folder none holds no exercise: expected a folder with a file NAME.py in it"),
])
def test_wrong_input_is_one_sentence(command, arguments, message):
    Path("empty.py").touch()
    code, out, error = command(*arguments)
    assert (code, out) == (2, "") and error.startswith(f"minires: error: {message}") and error.count("\n") == 1


def test_the_catalogue_lists_what_ships():
    from minires.study.exercises.checker.catalogue import ORDER

    assert tuple(find_exercises()) == ORDER
