"""Exercises: a backward pass to write, a forward pass or an optimiser's step, checked and diagnosed. Every file here is one
exercise; `checker` is what they share.

An exercise is a file NAME.py with `EXERCISE = Exercise(...)`, a ForwardExercise or an UpdateExercise (see
`checker.exercise`, `forward`, `update`). A teacher's own may lie here or in any folder (`--folder`). The solutions are the
engine's own classes: `minires exercise check minires/layers/norm.py --exercise batchnorm` passes.
"""
from minires.study.exercises.checker.catalogue import find_exercise, find_exercises, start_exercise
from minires.study.exercises.checker.exercise import Case, Exercise, Mistake
from minires.study.exercises.checker.forward import ForwardExercise
from minires.study.exercises.checker.grade import grade
from minires.study.exercises.checker.process import check_file
from minires.study.exercises.checker.report import Report
from minires.study.exercises.checker.update import Settings, UpdateExercise
from minires.study.exercises.checker.words import blank

__all__ = ["Case", "Exercise", "ForwardExercise", "Mistake", "Report", "Settings", "UpdateExercise", "blank", "check_file",
           "find_exercise", "find_exercises", "grade", "start_exercise"]
