"""Finding exercises: every NAME.py in this package's folder, and in a teacher's."""
import importlib.util
from dataclasses import replace
from pathlib import Path

from minires.errors import UserError
from minires.files import write_atomically
from minires.study.exercises.checker.exercise import Exercise

FOLDER = Path(__file__).resolve().parents[1]
ORDER = ("relu", "linear", "mse", "cross_entropy", "cross_entropy_forward", "sgd", "adamw", "global_avgpool", "avgpool",
         "maxpool", "conv1x1", "conv_forward", "conv3x3", "batchnorm_forward", "batchnorm_eval", "batchnorm_steps",
         "batchnorm", "layernorm", "dropout", "basic_block", "bottleneck")


def find_exercises(folder=None):
    """{name: path}: the exercises that ship, easiest first, then other files beside them, then those in `folder`.

    UserError when `folder` is none, or holds no .py file.
    """
    paths = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if path.stem != "__init__"}
    found = {name: paths.pop(name) for name in ORDER if name in paths} | paths
    if folder is None:
        return found
    own = {path.stem: path for path in sorted(Path(folder).glob("*.py")) if not path.stem.startswith("_")}
    if not own:
        raise UserError(f"--folder {folder} holds no exercise: expected a folder with a file NAME.py in it")
    return found | own


def find_exercise(name, folder=None):
    """The Exercise of that name; UserError for an unknown one."""
    found = find_exercises(folder)
    if name not in found:
        raise UserError(f"unknown exercise {name!r}: choose one of {', '.join(found)}")
    return load_exercise(found[name])


def load_exercise(path):
    """The Exercise in a file; UserError when the file fails to load or has none."""
    path = Path(path)
    spec = importlib.util.spec_from_file_location(f"minires_exercise_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"the exercise file {path} cannot be loaded: {type(error).__name__}: {error}") from error
    exercise = getattr(module, "EXERCISE", None)
    if not isinstance(exercise, Exercise):
        raise UserError(f"the exercise file {path} defines no EXERCISE = Exercise(...): see the package "
                        "minires.study.exercises")
    return replace(exercise, name=path.stem)


def start_exercise(name, out=None, folder=None):
    """Write the student's file and return its path, `out` or NAME.py here; UserError if there is such a file already, or
    none can be written."""
    exercise = find_exercise(name, folder)
    path = Path(f"{name}.py" if out is None else out)
    try:
        if path.exists():
            raise UserError(f"{path} exists already and is left as it is: choose another place with --out")
        if not path.parent.is_dir():
            raise UserError(f"{path} cannot be written: there is no folder {path.parent}")
        write_atomically(path, exercise.text(path).encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another place with --out") from error
    return path
