"""How a training step scales: with threads, with the batch size, with depth. Each comparison is measured in turns.

Two threads of a shared or throttled machine are not twice as fast at anything. So beside the training steps, in the same
turns, stands arithmetic in registers, which has nothing to load and nothing to wait for: what the machine's threads give.
"""
import tempfile
import time
from contextlib import ExitStack
from typing import Annotated

import numpy as np
import typer

from benchmarks import RESULTS, run, write_json
from minires.bench.compare import usable_threads, write_inputs
from minires.bench.machine import describe_machine
from minires.bench.workers import Worker, spread, take_turns
from minires.errors import UserError

DEPTHS = (20, 32, 44, 56, 110)
BATCHES = (16, 32, 64, 128, 256, 512)


class Arithmetic:
    """A fixed number of operations in registers, shared out among `threads`; it takes turns like a Worker."""

    def __init__(self, threads):
        from minires.backends.cpu.host import lanes_of
        from minires.backends.cpu.roofline import arithmetic_kernel

        lanes = lanes_of(np.dtype(np.float32))
        self.threads, self.kernel, self.out = threads, arithmetic_kernel(lanes), np.ones(lanes * 64, np.float32)

    def tell(self, _, steps):
        """{"seconds": of one of `steps` runs}."""
        from minires.backends import set_num_threads
        from minires.backends.cpu.threads import SMALL, launch

        set_num_threads(self.threads)
        began = time.perf_counter()
        for _ in range(steps):
            launch(self.kernel, 64, SMALL, 400_000, self.out)
        return {"seconds": (time.perf_counter() - began) / steps}


def measure(points, repetitions, arithmetic=()):
    """Rows for `points`, (model, batch, threads) each: all of them in turns, each in a process of its own; and the median
    seconds of `Arithmetic` on each number of threads in `arithmetic`, in the same turns."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        workers = {}
        for model, batch, threads in points:
            worker = stack.enter_context(Worker({"engine": "minires", "model": model, "work": "training", "batch": batch,
                                                 "threads": threads, **write_inputs(folder, model, batch)}))
            worker.start()
            worker.tell("time", steps=1)
            workers[model, batch, threads] = worker
        machine = {("arithmetic", threads): Arithmetic(threads) for threads in arithmetic}
        for engine in machine.values():
            engine.tell("time", steps=1)  # compiles
        seconds = take_turns({**workers, **machine}, repetitions)
        rows = [{"model": model, "batch": batch, "threads": threads, **spread(seconds[model, batch, threads]),
                 "peak_bytes": worker.tell("memory")["peak_bytes"]}
                for (model, batch, threads), worker in workers.items()]
        return rows, [spread(seconds[key])["median"] for key in machine]


def line(head, row, ratio):
    print(f"  {head:12}{row['median'] * 1e3:>9.1f} ms  iqr {row['iqr'] * 1e3:>6.1f}"
          f"{row['batch'] / row['median']:>9.0f} images/s{row['peak_bytes'] / 1e6:>8.0f} MB   {ratio}")


def main(
    repetitions: Annotated[int, typer.Option(help="Rounds.")] = 9,
    threads: Annotated[int | None, typer.Option(help="The most threads; all by default.", show_default=False)] = None,
    batch: Annotated[int, typer.Option(help="Images a step where threads and depth vary.")] = 128,
    largest_batch: Annotated[int, typer.Option(help="The end of 16, 32, .. 512.")] = 512,
    deepest: Annotated[int, typer.Option(help="The end of 20, 32, 44, 56, 110.")] = 110,
    stem: Annotated[str, typer.Option(help="Name of the .json and .png in benchmarks/results.")] = "scaling",
):
    """Measure training steps by threads, batch size and depth."""
    from benchmarks.pictures import draw_scaling

    most = usable_threads(threads)
    batches, depths = [size for size in BATCHES if size <= largest_batch], [depth for depth in DEPTHS if depth <= deepest]
    if len(batches) < 2 or len(depths) < 2 or repetitions < 2:
        raise UserError("a comparison needs two points and two rounds: choose --largest-batch 32 or more, --deepest 32 or "
                        "more, --repetitions 2 or more")
    counts = sorted({count for count in (1, 2, 4, 8, 16, 32, 64) if count <= most} | {most})
    result = {"machine": describe_machine(), "repetitions": repetitions, "threads": {}}
    for model in ("resnet20", f"resnet{depths[-1]}"):
        rows, machine = measure([(model, batch, count) for count in counts], repetitions, counts)
        print(f"threads, {model}, batch {batch}")
        for row, seconds in zip(rows, machine, strict=True):
            row["arithmetic"] = machine[0] / seconds
            line(f"{row['threads']}", row, f"{rows[0]['median'] / row['median']:.2f} times as fast as on one, arithmetic in "
                                           f"registers {row['arithmetic']:.2f}")
        result["threads"][model] = rows
    rows, _ = measure([("resnet20", size, most) for size in batches], repetitions)
    result["batches"] = rows
    best = max(row["batch"] / row["median"] for row in rows)
    print(f"batch size, resnet20, {most} threads")
    for row in rows:
        line(f"{row['batch']}", row, f"{row['batch'] / row['median'] / best:.0%} of the highest rate")
    rows, _ = measure([(f"resnet{depth}", batch, most) for depth in depths], repetitions)
    result["depths"] = [{"depth": depth, **row} for depth, row in zip(depths, rows, strict=True)]
    print(f"depth, batch {batch}, {most} threads")
    for row in result["depths"]:
        # 2 layers, stem and linear, are outside the blocks that depth multiplies.
        relative = row["median"] / rows[0]["median"] / ((row["depth"] - 2) / (depths[0] - 2))
        line(row["model"], row, f"{relative:.2f} of time proportional to the blocks")
    write_json(f"{stem}.json", result)
    draw_scaling(result, RESULTS / f"{stem}.png")


if __name__ == "__main__":
    run(main)
