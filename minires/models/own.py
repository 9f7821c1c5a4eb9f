"""Networks of the user's own: what a function in a Python file makes, by the name FILE.py:function.

    def make(num_classes, rng=None):           # in mine.py; rng only if it is wanted
        return Sequential(Conv2d(3, 16, 3, padding=1, rng=rng), ReLU(), GlobalAvgPool2d(), Linear(16, num_classes, rng=rng))

    build_model("mine.py:make", num_classes=10)             # minires train --model mine.py:make
"""
import hashlib
import importlib.util
import inspect
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

from minires.arguments import path as path_of
from minires.errors import UserError, note
from minires.init import default_rng, seeded
from minires.layer import Layer

_modules = {}  # of the files that were run, by path and time of the last change


def is_own(name):
    """Whether a model's name is of a file's function."""
    return isinstance(name, str) and ".py:" in name


def absolute(name):
    """The name with the file's whole path, which means the same from any folder; other names as they are."""
    if not is_own(name):
        return name
    file, function = _parts(name)
    return f"{file.absolute()}:{function}"


def short(name):
    """The name without what no file's name may hold: mine-make of DIR/mine.py:make."""
    if not is_own(name):
        return name
    file, function = _parts(name)
    return f"{file.stem}-{function}"


def digest(name):
    """What the file of an own model's name holds, as a short hash; "" for other names and for a file that is not there."""
    file = _parts(name)[0] if is_own(name) else None
    return hashlib.blake2b(file.read_bytes(), digest_size=12).hexdigest() if file is not None and file.is_file() else ""


def build_own(name, num_classes, rng):
    """The Layer that FILE.py:function makes of num_classes, and of `rng` where it takes one.

    The file is run, which is said on stderr. Without a parameter `rng` what it makes is drawn from `rng` all the same.
    UserError for a file or a function that is not there, one that fails, and one that returns no Layer.
    """
    file, function_name = _parts(name)
    if not file.is_file():
        raise UserError(f"model {name} is in a file that is not there: expected FILE.py:function, the name of a file and of "
                        "a function in it that makes the network")
    with _failures_told(name, file):
        function = getattr(_module(file), function_name, None)
    if not callable(function):
        raise UserError(f"{file} defines no function {function_name!r}: expected one that takes num_classes and returns a "
                        "Layer")
    with _failures_told(name, file):
        parameters = inspect.signature(function).parameters
        takes = "rng" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        if takes:
            network = function(num_classes, rng=rng)
        else:
            with seeded(int(default_rng(rng).integers(2**32))):
                network = function(num_classes)
    if not isinstance(network, Layer):
        raise UserError(f"{name} returned a {type(network).__name__}: expected a minires Layer, such as a Sequential")
    return network


def _parts(name):
    file, _, function = name.rpartition(":")
    return path_of("model", file), function


def _module(file):
    key = (file.resolve(), file.stat().st_mtime_ns)
    if key not in _modules:
        note(f"the code of {file} is run, since it makes the network")
        spec = importlib.util.spec_from_file_location(f"minires_own_{file.stem}", file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses and pickle look themselves up there
        before = set(sys.modules)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[spec.name]
            raise
        finally:  # another file's helper may have the same name
            for name in set(sys.modules) - before:
                beside = getattr(sys.modules[name], "__file__", None)
                if beside is not None and Path(beside).resolve().is_relative_to(file.resolve().parent):
                    del sys.modules[name]
        _modules[key] = module
    return _modules[key]


@contextmanager
def _failures_told(name, file):
    """What the file raises as one sentence with its line; its folder is where it imports from, as for `python FILE`."""
    sys.path.insert(0, str(file.absolute().parent))
    try:
        yield
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if Path(frame.filename).name == file.name]
        if isinstance(error, SyntaxError) and Path(error.filename or "").absolute() == file.absolute():
            lines = [error.lineno]
        line = lines[-1] if lines else None
        reason = (str(error).splitlines() or [""])[0]
        where = f" at line {line} of {file}" if line else ""
        raise UserError(f"{name} fails{where} ({type(error).__name__}: {reason[:200]}): mend it, its function takes "
                        "num_classes and returns a Layer") from error
    finally:
        sys.path.remove(str(file.absolute().parent))
