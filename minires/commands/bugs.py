"""The command `minires study bugs`."""
from pathlib import Path
from typing import Annotated

import typer

from minires.commands.options import Threads, require_picture, use_threads
from minires.errors import UserError


def bugs(
    names: Annotated[list[str] | None, typer.Argument(help="Bugs, or families such as batchnorm; by default all.",
                                                      show_default=False)] = None,
    training: Annotated[bool, typer.Option(help="Train a small network with each bug, and without.")] = True,
    details: Annotated[bool, typer.Option("--details", help="What was done wrong, and what the checks say.")] = False,
    out: Annotated[Path | None, typer.Option(help="A picture (PNG) of the loss curves.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON instead of the table.")] = False,
    catalogue: Annotated[bool, typer.Option("--list", help="Only name the bugs and say what they are.")] = False,
    threads: Threads = None,
):
    """Plant bugs into backward passes: what finds each, and what training would have shown. Exit 1 if one survives."""
    import json

    from rich.console import Console
    from rich.progress import Progress

    from minires.study.bugs import choose, render, study_bugs, to_json

    chosen = choose(names or ())
    if catalogue:
        also = [name for name, given in (("--json", as_json), ("--details", details), ("--out", out)) if given]
        if also:
            raise UserError(f"--list only names the bugs: leave out {also[0]}")
        width = max(len(bug.name) for bug in chosen)
        typer.echo("\n".join(f"{bug.name:{width}}  {bug.mistake}" for bug in chosen))
        return
    if out is not None and not training:
        raise UserError("--out draws the loss curves of training, and --no-training leaves them out: give one of the two")
    if out is not None:
        require_picture(out)
    use_threads(threads)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.file.isatty()) as bar:
        task = bar.add_task("", total=None)

        def show(done, total, what):
            bar.update(task, completed=done, total=total, description=what)

        report = study_bugs(chosen, training, show)
    typer.echo(json.dumps(to_json(report), indent=1) if as_json else render(report, details))
    if out is not None:
        _draw(report, out)
        typer.echo(f"drew {len(report.rows)} loss curves into {out}", err=as_json)
    if report.survivors:
        raise typer.Exit(1)


def _draw(report, path):
    from itertools import takewhile
    from math import isfinite

    from minires.plots.bugs import draw_bugs
    from minires.study.bugs.report import means
    from minires.study.bugs.training import BATCH, IMAGES, VERDICTS

    epoch = IMAGES // BATCH
    panels = []
    for row in report.rows:
        clean = [means(each.losses, len(each.losses) // epoch) for each in row.clean]
        finite = list(takewhile(isfinite, row.outcome.losses))
        losses = means(finite, -(-len(finite) // epoch))
        panels.append({"name": row.bug.name, "verdict": row.verdict, "losses": losses, "clean": clean, "stride": epoch,
                       "label": f"{row.outcome.loss:.2g} (clean {row.clean[0].loss:.2g})"})
    draw_bugs(panels, VERDICTS, path)
