"""Running a student's file: what it defines, and one sentence for everything that can go wrong in it."""
import inspect
import io
import re
import sys
import traceback
import types
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np

from minires.errors import UserError
from minires.layer import Layer
from minires.study.exercises.checker.words import blank

NAMED = re.compile(r"""^EXERCISE\s*=\s*["']([\w-]+)["']""", re.MULTILINE)
SHOWN = 2000  # characters of what a file prints that are kept


class StudentError(Exception):
    """The student's file cannot be judged. status: blank or error; the message is one sentence."""

    def __init__(self, message, status="error"):
        super().__init__(message)
        self.status = status


def read_exercise_name(file):
    """The exercise a student's file says it is; UserError when there is no such file, or it does not say."""
    try:
        text = Path(file).read_text("utf-8", "replace")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): give the file that minires exercise start "
                        "wrote") from error
    found = NAMED.search(text)
    if not found:
        raise UserError(f'{file} does not say which exercise it is: keep the line EXERCISE = "..." or give --exercise')
    return found[1]


class Printed(io.TextIOBase):
    """The beginning of what a file prints; an endless print must not fill the memory."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text[:SHOWN - len(self.text)]
        return len(text)


@contextmanager
def captured():
    """Inside, what is printed goes into the Printed that is given; nothing is read from the keyboard."""
    printed, keyboard = Printed(), sys.stdin
    sys.stdin = io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            yield printed
    finally:
        sys.stdin = keyboard


def numbers(said, array, must, like):
    """A copy of an array that the student's code made; StudentError when it is none, or holds no numbers.

    said: "dx is", before "a str"; must: what to do instead of no array; like: what has the right dtype."""
    if not isinstance(array, np.ndarray | np.floating):
        raise StudentError(f"{said} a {type(array).__name__}, not a NumPy array: {must}")
    if array.dtype.kind not in "biufc":
        raise StudentError(f"{said} an array of {array.dtype}, not of numbers: make it of the dtype of {like}, as "
                           "np.zeros_like does")
    return np.array(array)


@contextmanager
def students_code(file, doing, situation=None):
    """Turn whatever the student's code raises inside into a StudentError. doing: such as "backward of Linear"."""
    try:
        yield
    except StudentError:
        raise
    except SystemExit as error:
        raise StudentError(f"{doing} ends the program{_line(error, file)}: remove exit() or sys.exit()") from error
    except NotImplementedError as error:
        raise StudentError(f"{doing} is still blank{_line(error, file)}", "blank") from error
    except SyntaxError as error:
        line = f" in line {error.lineno}" if error.lineno else ""
        raise StudentError(f"the file has a syntax error{line}: {error.msg}") from error
    except EOFError as error:
        raise StudentError(f"{doing} waits for the keyboard{_line(error, file)}: remove input()") from error
    except ImportError as error:
        raise StudentError(f"{doing} cannot import{_line(error, file)}: {error}") from error
    except Exception as error:
        said = " ".join(str(error).split())
        if situation is not None:
            said = re.sub(r"\(\d+(?:,\s?\d+)*,?\)", lambda found: found[0] + _letters(found[0], situation), said)
        at = f" at {situation.case.name}" if situation is not None else ""
        raise StudentError(f"{doing} raises {type(error).__name__}{_line(error, file)}{at}: "
                           f"{said or 'without a word'}") from error


def _letters(shape, situation):
    return situation.letters([int(size) for size in re.findall(r"\d+", shape)])


def _line(error, file):
    """" in line 31", the last line of the student's file that was running."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f" in line {lines[-1]}" if lines else ""


def load_class(exercise, file):
    """The class that the student's file defines. It is run as a module; StudentError for what goes wrong."""
    name, kind = exercise.engine.__name__, Layer if issubclass(exercise.engine, Layer) else object
    folder = str(Path(file).resolve().parent)
    module = types.ModuleType(Path(file).stem)
    module.__file__ = str(file)
    sys.path.append(folder)
    try:
        with students_code(file, "the file"):
            code = compile(Path(file).read_bytes(), str(file), "exec", dont_inherit=True)
            exec(code, vars(module))
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    cls = vars(module).get(name)
    if not isinstance(cls, type):
        raise StudentError(f"the file defines no class {name}: keep the class as minires exercise start wrote it")
    if not issubclass(cls, kind):
        raise StudentError(f"{name} is no longer a Layer: keep the line class {name}(Layer)")
    for method in (*exercise.given, exercise.method):
        if getattr(cls, method, None) in (None, getattr(Layer, method, None)):
            raise StudentError(f"{name} has no function {method}: keep its line def {method}(self, ...)")
    written_in = _file_of(getattr(cls, exercise.method))
    if written_in != str(file):
        raise StudentError(f"{name}.{exercise.method} is not written in this file but in {written_in}: write your own")
    return cls


def _file_of(function):
    function = inspect.unwrap(function)  # a layer's methods are wrapped, to tell listeners
    return getattr(getattr(function, "__code__", None), "co_filename", "another one")


def blank_message(exercise):
    """What is to be written into a blank method."""
    return f"replace the line {blank('').split('(')[0]} ...; {exercise.method} must {'; '.join(exercise.required())}"
