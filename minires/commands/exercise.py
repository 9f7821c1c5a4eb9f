"""The commands `minires exercise list | start | check`."""
from pathlib import Path
from typing import Annotated

import typer

exercise = typer.Typer(help="Write a backward pass, a forward pass or an optimiser's step, and have it checked and "
                            "diagnosed.", no_args_is_help=True)
Folder = Annotated[Path | None, typer.Option(help="A folder with more exercises, one file NAME.py each.",
                                             show_default=False)]


@exercise.command("list")
def list_(folder: Folder = None):
    """List the exercises, easiest first, and what you have done in this folder."""
    from minires.study.exercises.checker.catalogue import find_exercises, load_exercise
    from minires.study.exercises.checker.record import FILE, read_record

    found, record = find_exercises(folder), read_record()
    width = max(map(len, found))
    for number, (name, path) in enumerate(found.items(), 1):
        done = f" ({record[name].text()})" if name in record else ""
        typer.echo(f"{number:2}  {name:{width}}  {load_exercise(path).title}{done}")
    if record:
        typer.echo(f"{sum(entry.passed for entry in record.values())} of {len(found)} passed, by {FILE} in this folder")


@exercise.command()
def start(
    name: Annotated[str, typer.Argument(help="An exercise: see minires exercise list.")],
    out: Annotated[Path | None, typer.Option(help="The file to write; by default NAME.py.", show_default=False)] = None,
    folder: Folder = None,
):
    """Write a file with what is given, the contract and a blank function."""
    from minires.study.exercises.checker.catalogue import find_exercise, start_exercise

    path, method = start_exercise(name, out, folder), find_exercise(name, folder).method
    typer.echo(f"wrote {path}: fill in {method}, then run minires exercise check {path}")


@exercise.command()
def hint(
    name: Annotated[str, typer.Argument(help="An exercise: see minires exercise list.")],
    derivation: Annotated[bool, typer.Option("--derivation", help="The whole derivation, as maths.")] = False,
    folder: Folder = None,
):
    """Say what is to be done, and a hint; with --derivation the maths, after which only the code is missing."""
    from minires.study.exercises.checker.catalogue import find_exercise

    found = find_exercise(name, folder)
    if derivation:
        typer.echo(f"{found.derivation()}\n\nThe solution as code: {found.engine.__module__}.{found.engine.__name__}")
        return
    typer.echo("\n".join([f"{found.method} must", *(f"- {line}" for line in found.required())]))
    if found.hint:
        typer.echo(found.hint.strip())
    typer.echo(f"The derivation: minires exercise hint {name} --derivation")


@exercise.command()
def check(
    file: Annotated[Path, typer.Argument(help="Your file.")],
    exercise: Annotated[str | None, typer.Option(help="Which exercise it is; by default what the file says.",
                                                 show_default=False)] = None,
    folder: Folder = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON, for an autograder.")] = False,
    time_limit: Annotated[float, typer.Option(help="Seconds for the file.")] = 20.0,
):
    """Check what was written and say what is wrong. Exits with 0 when it is right, with 1 when it is not yet.

    What was done is kept in exercises.json in this folder, unless --exercise is given.
    """
    import json

    from minires.study.exercises.checker.process import check_file
    from minires.study.exercises.checker.record import note

    report = check_file(file, exercise, folder, time_limit)
    if exercise is None:  # the student's own file, and none that is judged by another's name
        note(report)
    typer.echo(json.dumps(report.as_json(), indent=2) if as_json else report.text())
    if not report.passed:
        raise typer.Exit(1)
