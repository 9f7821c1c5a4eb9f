"""What each rewrite of a plan earns: a training step with all of them beside steps that each leave one out, in turns.

A rewrite that others build on takes them with it: without `split_normalisation` nearly nothing is left.
"""
import time
from statistics import median
from typing import Annotated

import numpy as np
import typer

from benchmarks import run, write_json
from minires.bench.compare import usable_threads
from minires.bench.machine import describe_machine
from minires.errors import UserError


def variants():
    """{name: the rewrites that are left}: all, all but one, none."""
    from minires.plan.rewrites import TRAINING

    without = {f"without {one.__name__}": tuple(other for other in TRAINING if other is not one) for one in TRAINING}
    return {"all": TRAINING, **without, "none": ()}


def measure(model, batch, repetitions, seed=0):
    """{variant: {"ratio": median time over that with all, "seconds": median, "peak_bytes"}}."""
    from minires.losses import CrossEntropyLoss
    from minires.models import build_model
    from minires.plan.compiled import TrainingStep

    rng = np.random.default_rng(seed)
    x, target = rng.standard_normal((batch, 32, 32, 3), np.float32), rng.integers(0, 10, batch)
    steps, seconds = {}, {}
    for name, rewrites in variants().items():
        steps[name], seconds[name] = TrainingStep(build_model(model), CrossEntropyLoss(), rewrites=rewrites), []
        for _ in range(2):
            steps[name](x, target)
    for _ in range(repetitions):
        for name, step in steps.items():
            step(x, target)  # brings the caches and threads back
            began = time.perf_counter()
            step(x, target)
            seconds[name].append(time.perf_counter() - began)
    return {name: {"ratio": median(a / b for a, b in zip(seconds[name], seconds["all"], strict=True)),
                   "seconds": median(seconds[name]), "peak_bytes": step.plan(x.shape).peak_bytes}
            for name, step in steps.items()}


def main(
    model: Annotated[str, typer.Option(help="A network.")] = "resnet20",
    batch: Annotated[int, typer.Option(help="Images a step.")] = 128,
    repetitions: Annotated[int, typer.Option(help="Rounds.")] = 15,
    threads: Annotated[int | None, typer.Option(help="All by default.", show_default=False)] = None,
    stem: Annotated[str, typer.Option(help="Name of the .json in benchmarks/results.")] = "rewrites",
):
    """Time a training step with all rewrites, and with all but each of them."""
    from minires.backends import set_num_threads

    if repetitions < 1 or batch < 1:
        raise UserError(f"--repetitions {repetitions} and --batch {batch} must be 1 or more")
    set_num_threads(usable_threads(threads))
    rows = measure(model, batch, repetitions)
    print(f"{model}, batch {batch}, {usable_threads(threads)} threads, medians of {repetitions} rounds in turns")
    for name, row in rows.items():
        print(f"  {name:42}{row['seconds'] * 1e3:>9.1f} ms{row['ratio']:>7.2f} of all{row['peak_bytes'] / 2**20:>8.1f} MiB")
    write_json(f"{stem}.json", {"machine": describe_machine(), "model": model, "batch": batch,
                                "repetitions": repetitions, "rows": rows})


if __name__ == "__main__":
    run(main)
