"""The command `minires plan`."""
from pathlib import Path
from typing import Annotated

import typer

from minires.commands.options import BatchSize, ImageSize, Shortcut, Stem, Threads, pixels_of, require_picture, use_threads


def plan(
    model: Annotated[str, typer.Argument(help="A model's name, such as resnet20.")],
    batch_size: BatchSize = 128,
    image_size: ImageSize = None,
    shortcut: Shortcut = None,
    stem: Stem = None,
    num_classes: Annotated[int, typer.Option(help="Outputs of the last layer.")] = 10,
    inference: Annotated[bool, typer.Option("--inference", help="Of a forward pass in evaluation mode, not of a step of "
                                                                "training.")] = False,
    rewrites: Annotated[bool, typer.Option("--rewrites", help="Operators, MB moved and memory after each rewrite.")] = False,
    time: Annotated[bool, typer.Option("--time", help="Run it, and time each step beside what the machine allows.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw memory over the step into this PNG.",
                                                 show_default=False)] = None,
    threads: Threads = None,
):
    """List what a step runs: operators, what they read and write, GFLOP, MB, kernels; memory; times."""
    from minires.losses import CrossEntropyLoss
    from minires.models import build_model
    from minires.plan import compile

    use_threads(threads)
    if picture is not None:
        require_picture(picture, "--picture")
    size = pixels_of(image_size, stem, batch_size=batch_size, number_of_classes=num_classes)
    network = build_model(model, num_classes, shortcut, stem)
    compiled = compile(network) if inference else compile(network, CrossEntropyLoss())
    found = compiled.plan((batch_size, size, size, 3))
    images = f"{batch_size} image{'s' if batch_size > 1 else ''} of {size} x {size}"
    what = f"{model}, {'inference' if inference else 'a training step'} on {images}"
    _print_steps(found, _measured(found, inference, num_classes) if time else None, what)
    if rewrites:
        _print_rewrites(found)
    if picture is not None:
        from minires.plots.plan import draw_memory

        draw_memory(found, picture, f"{what}: memory over the step")
        typer.echo(f"drew memory over the step into {picture}")


def _measured(found, inference, num_classes):
    """(seconds of each step, those of the roofline, seconds of the whole) of random images."""
    import numpy as np

    from minires.backends import memory_advice
    from minires.bench.roofline import least_seconds, step_seconds
    from minires.plan.run import Runner

    rng, shape = np.random.default_rng(0), found.program.inputs[0].shape
    inputs = rng.standard_normal(shape, np.float32), rng.integers(0, num_classes, shape[0])
    with memory_advice(shape[0]):
        seconds, whole = step_seconds(Runner(found.program, found.memory), inputs[:1] if inference else inputs)
    return seconds, least_seconds(found.steps), whole


def _print_steps(found, measured, what):
    table, rows = _table(("", "operator", "", "layer", "reads", "writes", "shape", "GFLOP", "MB", "kernel",
                          *(("ms", "roofline") if measured else ())), {0, 6, 7, 8, 10, 11}), found.rows()
    for number, row in enumerate(rows):
        times = (f"{1e3 * seconds[number]:.3f}" for seconds in measured[:2]) if measured else ()
        table.add_row(str(number + 1), *row.cells(), *times)
    _print(table)
    typer.echo(f"\n{what}\n< backward, ~ made again for it; z a convolution's, y another activation, g a gradient, "
               "w weights, +n vectors of a channel's numbers")
    typer.echo(found.totals())
    if measured:
        seconds, least, whole = measured
        typer.echo(f"{1e3 * sum(seconds):.2f} ms step by step, {1e3 * whole:.2f} ms as a whole, roofline "
                   f"{1e3 * sum(least):.2f} ms (of the direct formula: Winograd multiplies less, and may pass it)")


def _print_rewrites(found):
    table, before = _table(("rewrite", "operators", "MB moved", "memory MiB"), {1, 2, 3}), None
    for name, *numbers in found.after():
        operators, moved, peak = numbers
        if numbers != before:  # a rewrite that finds nothing to do is left out
            table.add_row(name.replace("_", " "), str(operators), f"{moved / 1e6:.1f}", f"{peak / 2**20:.1f}")
        before = numbers
    typer.echo()
    _print(table)


def _table(headings, right):
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place in right else "left", no_wrap=True)
    return table


def _print(table):
    from rich.console import Console

    # A table cut off at the width of a terminal or of a pipe would lose its numbers.
    width = Console(width=1000).measure(table).maximum
    Console(highlight=False, width=width).print(table)
