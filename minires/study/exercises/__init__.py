"""Exercises: a backward pass to write, checked and diagnosed. Every file here is one exercise; `checker` is what they share.

An exercise is a file NAME.py with `EXERCISE = Exercise(...)` (see `checker.exercise`). A teacher's own may lie here or in
any folder (`--folder`). The solutions are the engine's own classes: `minires exercise check minires/layers/norm.py
--exercise batchnorm` passes.
"""
from minires.study.exercises.checker.catalogue import find_exercise, find_exercises, start_exercise
from minires.study.exercises.checker.exercise import Case, Exercise, Mistake
from minires.study.exercises.checker.grade import grade
from minires.study.exercises.checker.process import check_file
from minires.study.exercises.checker.report import Report

__all__ = ["Case", "Exercise", "Mistake", "Report", "check_file", "find_exercise", "find_exercises", "grade",
           "start_exercise"]
