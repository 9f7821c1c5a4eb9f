"""Judging a student's file in a process of its own, with a time limit: whatever it does, one report comes back.

The process keeps a student's mistakes apart, it is no sandbox: files of people you do not trust belong into a container.
"""
import contextlib
import faulthandler
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import minires
from minires.errors import UserError
from minires.study.exercises.checker.catalogue import find_exercises, load_exercise
from minires.study.exercises.checker.grade import grade
from minires.study.exercises.checker.report import Report
from minires.study.exercises.checker.student import read_exercise_name

LONGEST = 86_400  # seconds, a day: what a timer can count is not much more
STARTUP = 60  # seconds for a slow machine to start Python and import the engine


def check_file(file, exercise=None, folder=None, time_limit=20.0):
    """The Report on a student's file, run in another process for at most `time_limit` seconds.

    exercise: its name, by default the one the file names; folder: a teacher's, with more exercises
    UserError when there is no such file, exercise or folder, or the limit is not positive or more than a day.
    """
    file = Path(file)
    if not 0 < time_limit <= LONGEST:
        raise UserError(f"--time-limit is in seconds and must be positive, got {time_limit:g}: expected at most {LONGEST:,}")
    named = read_exercise_name(file) if exercise is None else exercise
    if not file.is_file():
        raise UserError(f"{file} is not a file: give the one that minires exercise start wrote")
    found = find_exercises(folder)
    if named not in found:
        raise UserError(f"unknown exercise {named!r}: choose one of {', '.join(found)}")
    load_exercise(found[named])  # a teacher's mistake is said here, by name
    with tempfile.TemporaryDirectory() as scratch:
        answer, trace = Path(scratch) / "report.json", Path(scratch) / "trace"
        code = _run([str(found[named]), str(file), str(time_limit), str(answer), str(trace)], time_limit)
        if answer.exists():
            return Report.from_json(json.loads(answer.read_text()))
        traced = trace.read_text("utf-8", "replace") if trace.exists() else ""
    status, message = _ended(code, traced, file, time_limit)
    return Report(named, str(file), status, message)


def _run(arguments, time_limit):
    """The exit code of the judging process; None when it had to be killed."""
    # The package's folder comes last, and this folder not at all: no file of the student's takes the place of a module.
    start = (f"import sys; sys.path.append({str(Path(minires.__file__).parents[1])!r}); "
             "from minires.study.exercises.checker.process import judge; judge(*sys.argv[1:])")
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    process = subprocess.Popen([sys.executable, "-P", "-B", "-c", start, *arguments], env=os.environ | threads,
                               start_new_session=True, **quiet)
    try:
        return process.wait(time_limit + STARTUP)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # and whatever the student's file has started
        process.wait()


def judge(exercise, file, time_limit, answer, trace):
    """In the other process: write the report to `answer`, or, when time is up, where the file was to `trace`."""
    loaded = load_exercise(exercise)
    with Path(trace).open("w") as place:
        faulthandler.enable(place)
        faulthandler.dump_traceback_later(float(time_limit), exit=True, file=place)  # needs no word from a busy interpreter
        report = grade(loaded, file)
        faulthandler.cancel_dump_traceback_later()
    partial = Path(f"{answer}.part")
    partial.write_text(json.dumps(report.as_json()))
    partial.replace(answer)


def _ended(code, traced, file, time_limit):
    """(status, message) for a process that left no report."""
    place = re.search(rf'File "{re.escape(str(file))}", line (\d+)', traced)
    at = f" in line {place[1]}" if place else ""
    if code is None or "Timeout" in traced:
        return "timeout", f"not done after {time_limit:g} s{at}: a loop without an end, or far too slow"
    if code < 0:
        return "error", f"the file crashes Python ({signal.Signals(-code).name}){at}"
    return "error", f"the file ends the program with exit code {code}{at}: remove os._exit()"
