"""What a training step spends its time on: the time in each operator of the CPU back end, and what is left between them."""
import time
from typing import Annotated

import numpy as np
import typer

from benchmarks import run
from minires.bench.compare import usable_threads
from minires.errors import UserError


class Clock:
    """Wraps functions so that the time in each is added up. What a wrapped function calls itself counts as its own."""

    def __init__(self):
        self.seconds, self.calls = {}, {}

    def wrap(self, name, function):
        def timed(*arguments, **options):
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
                self.calls[name] = self.calls.get(name, 0) + 1

        return timed


def main(
    model: Annotated[str, typer.Option(help="A network.")] = "resnet20",
    batch: Annotated[int, typer.Option(help="Images a step.")] = 128,
    steps: Annotated[int, typer.Option(help="Steps to take the mean of.")] = 10,
    fused: Annotated[bool, typer.Option(help="With fused blocks, or without.")] = True,
    threads: Annotated[int | None, typer.Option(help="All by default.", show_default=False)] = None,
):
    """Print the time of each operator within a training step."""
    from minires.backends import cpu
    from minires.bench.engines import MiniresEngine
    from minires.models import build_model

    if steps < 1 or batch < 1:
        raise UserError(f"--steps {steps} and --batch {batch} must be 1 or more")
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((batch, 32, 32, 3), np.float32), rng.integers(0, 10, batch)
    engine = MiniresEngine(model, build_model(model, rng=rng).state_dict(), x, target, usable_threads(threads), fused,
                           captured=False)
    for _ in range(2):
        engine.step()
    clock, plain = Clock(), {name: getattr(cpu, name) for name in cpu.__all__}
    try:
        for name, function in plain.items():
            setattr(cpu, name, clock.wrap(name, function))
        began = time.perf_counter()
        for _ in range(steps):
            engine.step()
        total = time.perf_counter() - began
    finally:
        for name, function in plain.items():
            setattr(cpu, name, function)
    print(f"{model}, batch {batch}, {'fused' if fused else 'unfused'}: {total / steps * 1e3:.1f} ms a training step")
    for name, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        print(f"  {name:34}{clock.calls[name] / steps:>6.0f} calls{seconds / steps * 1e3:>9.2f} ms{seconds / total:>7.1%}")
    between = total - sum(clock.seconds.values())
    print(f"  {'Python and NumPy between them':34}{'':12}{between / steps * 1e3:>9.2f} ms{between / total:>7.1%}")


if __name__ == "__main__":
    run(main)
