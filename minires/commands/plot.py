"""The command `minires plot`."""
from pathlib import Path
from typing import Annotated

import typer

from minires.errors import UserError


def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("comparison.png"),
):
    """Draw the curves of several runs into one picture."""
    from minires.plots import draw_comparison
    from minires.training.metrics import read_metrics

    curves = {str(run): read_metrics(run / "metrics.jsonl") for run in runs}
    empty = [name for name, rows in curves.items() if not rows]
    if empty:
        raise UserError(f"{empty[0]}/metrics.jsonl holds no epoch yet: there is nothing to draw")
    draw_comparison(curves, out)
    typer.echo(f"drew {len(curves)} {'run' if len(curves) == 1 else 'runs'} into {out}")
