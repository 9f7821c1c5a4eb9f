"""The command `minires gradcheck`."""
from pathlib import Path
from typing import Annotated

import typer

from minires.commands.options import Threads, require_picture, use_threads


def gradcheck(
    target: Annotated[str | None, typer.Argument(help="A layer, a model, or layers; by default everything.")] = None,
    details: Annotated[bool, typer.Option("--details", help="A line for each tensor.")] = False,
    adjoint: Annotated[bool, typer.Option(help="Hold each gradient against forward mode too, with no step size: "
                                               "<Jv, u> = <v, backward(u)> to 1e-12.")] = True,
    vcurve: Annotated[Path | None, typer.Option(help="Also draw the error of difference quotients against their step "
                                                     "into this PNG.", show_default=False)] = None,
    threads: Threads = None,
):
    """Prove the gradients: print the certificate, exit 1 when any is not the derivative."""
    from rich.console import Console
    from rich.progress import Progress

    from minires.study.certificate import certificate, render, step_curves

    use_threads(threads)
    curves = {}
    if vcurve is not None:  # before the certificate, which may take minutes: a name that cannot be written shows at once
        from minires.plots.certificate import draw_step_curves

        require_picture(vcurve, "--vcurve")
        curves = step_curves(target)
        draw_step_curves(curves, vcurve)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.file.isatty()) as bar:
        task = bar.add_task("", total=None)

        def show(done, total, subject):
            bar.update(task, completed=done, total=total, description=subject)

        result = certificate(target, progress=show, adjoint=adjoint)
    typer.echo(render(result, details))
    for name, curve in curves.items():
        kinds = [kind for kind in ("forward", "central", "complex") if getattr(curve, kind) is not None]
        best = ", ".join(f"{kind} {curve.best(kind)[1]:.0e} at step {curve.best(kind)[0]:.0e}" for kind in kinds)
        typer.echo(f"best difference quotients of {name}: {best}")
    if curves:
        typer.echo(f"drew their errors at every step into {vcurve}")
    if not result.passed:
        raise typer.Exit(1)
