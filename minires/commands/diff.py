"""The command `minires study diff`."""
from pathlib import Path
from typing import Annotated

import typer

from minires.commands.options import Threads, require_picture, use_threads
from minires.errors import UserError


def diff(
    context: typer.Context,
    a: Annotated[str, typer.Argument(help="cpu, reference, planned, reference:planned, cpu:direct, cpu:winograd2, "
                                          "cpu:winograd4, torch, or a run's folder.")],
    b: Annotated[str, typer.Argument(help="Likewise.")],
    model: Annotated[str, typer.Option(help="The network to train; this and the next four are not for runs.")] = "resnet20",
    steps: Annotated[int, typer.Option(help="Training steps, all on one batch.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Images in it.")] = 8,
    seed: Annotated[int, typer.Option(help="Of weights and batch.", min=0)] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    tolerance_ulp: Annotated[float, typer.Option(help="How far tensors may be apart, in units of the last place of their "
                                                      "largest element.", min=0)] = 256,
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option(help="A picture of the growth, by step and layer.", show_default=False)] = None,
):
    """Find the first step, layer and tensor in which two back ends, engines or saved runs part.

    What is planned (minires.compile) has no layers' outputs: loss, logits, gradients and updated weights are compared.

    Exit code 0: equal within the tolerance; 1: they part; 2: wrong input.
    """
    from minires.study.divergence import compare_sides, random_batch
    from minires.study.runs import compare_runs, compare_settings

    use_threads(threads)
    if not tolerance_ulp < float("inf"):
        raise UserError(f"--tolerance-ulp {tolerance_ulp} is no tolerance: expected a number such as 256")
    if out is not None:
        require_picture(out)
    runs = [Path(name).is_dir() for name in (a, b)]
    if any(runs):
        if not all(runs):
            raise UserError(f"{a if runs[0] else b} is a run's folder and {b if runs[0] else a} is not: compare two runs, "
                            "or two back ends")
        for name in ("model", "steps", "batch_size", "seed", "dtype"):
            if context.get_parameter_source(name).name == "COMMANDLINE":
                raise UserError(f"--{name.replace('_', '-')} is for training two sides, and {a} and {b} are runs that were "
                                "trained: leave it out")
        for line in compare_settings(a, b):
            typer.echo(f"config.toml differs in {line}")
        result, unit = compare_runs(a, b), "epoch"
    else:
        kind = _dtype(dtype)
        batch = random_batch(batch_size, seed, kind)
        result, unit = compare_sides(_side(a, model, seed, kind), _side(b, model, seed, kind), *batch, steps), "step"
    _print_growth(result, unit)
    if out is not None:
        from minires.plots.divergence import draw_divergence

        draw_divergence(result.gaps, (a, b), tolerance_ulp, out)
        typer.echo(f"drew {out}")
    first = result.first(tolerance_ulp)
    if first is None:
        worst = max(gap.ulps for gap in result.gaps)
        typer.echo(f"{a} and {b} agree within {tolerance_ulp:g} units of the last place: {len(result.gaps):,} tensors, "
                   f"{worst:.3g} at most")
        return
    typer.echo(f"{a} and {b} part in {unit} {first.step}, {first.key.phase}, at {first.key}: {_amount(first)}")
    for gap in result.flips(first.step):
        typer.echo(f"  {gap.key}: {gap.note}")
    raise typer.Exit(1)


def _side(name, model, seed, dtype):
    from minires.study.divergence import make_side

    if name != "torch":
        return make_side(name, model, seed, dtype)
    try:
        from minires.bench.torch_trace import TorchSide
    except ImportError as error:
        raise UserError("torch is not installed: install minires[torch], or compare two of minires' back ends") from error
    return TorchSide(model, seed, dtype)


def _dtype(name):
    import numpy as np

    if name not in ("float32", "float64"):
        raise UserError(f"dtype {name!r} is unknown: choose float32 or float64")
    return getattr(np, name)


def _amount(gap):
    parts = [f"{gap.ulps:,.0f} units in the last place of its largest element",
             f"{gap.differing:.2%} of its elements differ", gap.note]
    return "; ".join(part for part in parts if part)


def _print_growth(result, unit):
    """A line for each step and phase: the tensor that is furthest apart."""
    head = (unit, "phase", "furthest apart", "ulp of largest", "ulp elementwise", "differ")
    rows = [head, *((str(step), phase, str(gap.key) if gap.ulps else "-", f"{gap.ulps:,.0f}" if gap.ulps else "0",
                     f"{gap.elementwise:,}", f"{gap.differing:.1%}") for (step, phase), gap in result.growth().items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.rjust(width) if place in (0, 3, 4, 5) else cell.ljust(width)
                             for place, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip())
