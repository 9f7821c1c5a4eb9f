"""The command `minires gradcheck`."""
from typing import Annotated

import typer

from minires.commands.options import Threads, use_threads


def gradcheck(
    target: Annotated[str | None, typer.Argument(help="A layer, a model, or layers; by default everything.")] = None,
    details: Annotated[bool, typer.Option("--details", help="A line for each tensor.")] = False,
    threads: Threads = None,
):
    """Prove the gradients: print the certificate, exit 1 when any is not the derivative."""
    from rich.console import Console
    from rich.progress import Progress

    from minires.study.certificate import certificate, render

    use_threads(threads)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def show(done, total, subject):
            bar.update(task, completed=done, total=total, description=subject)

        result = certificate(target, progress=show)
    typer.echo(render(result, details))
    if not result.passed:
        raise typer.Exit(1)
