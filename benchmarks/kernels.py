"""Each kernel against the roofline of the machine: GFLOP/s, GB/s, and the fraction of what the machine allows.

Operations are those of the direct formula, 2 N OH OW O KH KW C for each product of a convolution, whatever a method does to
get there: Winograd's, which multiplies less, may pass the roof. Bytes are what must move at least: each operand and result
once, and twice what a formula must read twice. The error is the largest against float64, relative to the largest value.
"""
import time
from functools import partial
from typing import Annotated, NamedTuple

import numpy as np
import typer

from benchmarks import RESULTS, run, write_json
from benchmarks.methods import METHODS
from minires.backends import cpu
from minires.bench.compare import usable_threads
from minires.bench.machine import describe_machine
from minires.bench.roofline import bandwidth, peak_flops

REST, TURN = 0.08, 0.02  # seconds a method works in a round before it is timed, and while it is
SLOWEST_BATCH = 16  # images that the naive loops get at most: they take seconds for more


class Shape(NamedTuple):
    """A convolution of H x H images."""

    H: int
    C: int
    O: int
    kernel: int
    stride: int

    def __str__(self):
        step = f" stride {self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}x{self.kernel}{step} {self.C}->{self.O} at {self.H}x{self.H}"


SHAPES = (Shape(32, 16, 16, 3, 1), Shape(16, 32, 32, 3, 1), Shape(8, 64, 64, 3, 1), Shape(32, 16, 32, 3, 2),
          Shape(16, 32, 64, 3, 2), Shape(16, 64, 64, 1, 1), Shape(32, 64, 128, 1, 2), Shape(16, 128, 128, 3, 1),
          Shape(8, 256, 256, 3, 1), Shape(4, 512, 512, 3, 1), Shape(14, 256, 1024, 1, 1))
ALONE = tuple(shape for shape in SHAPES if shape.C >= 64)  # measured on one image, too: both processors on one convolution
MAPS = ((32, 16), (16, 32), (8, 64))  # H, C


class Work(NamedTuple):
    """What a kernel does: operations and bytes."""

    flops: float
    bytes: float

    def least_seconds(self, peak):
        """What the roofline allows."""
        return max(self.flops / peak, self.bytes / bandwidth(int(self.bytes)))


def timed(functions, repetitions):
    """{name: median seconds} of functions without arguments, in turns.

    A turn begins with calls that do not count, for REST seconds: the threads of NumPy's matrix products wait for more work
    in a loop for tens of milliseconds before they leave the processors to others.
    """
    seconds = {name: [] for name in functions}
    for _ in range(repetitions):
        for name, function in functions.items():
            calls, began = 0, time.perf_counter()
            while calls == 0 or time.perf_counter() - began < REST:
                function()
                calls += 1
            calls = max(1, round(calls * TURN / REST))
            began = time.perf_counter()
            for _ in range(calls):
                function()
            seconds[name].append((time.perf_counter() - began) / calls)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def convolutions(shape, N, rng, repetitions, peak):
    """Rows of the three products of one convolution by every method that can do it."""
    H, C, O, kernel, stride = shape
    size, step, padding = (kernel, kernel), (stride, stride), (kernel // 2, kernel // 2)
    x, weight = rng.standard_normal((N, H, H, C), np.float32), rng.standard_normal((*size, C, O), np.float32)
    # After im2col, whose threads wait in a loop for a while, come the naive loops, which need no second processor.
    order = ("im2col", "naive", *(name for name in METHODS if name not in ("im2col", "naive")))
    methods = {name: METHODS[name] for name in order if METHODS[name].fits(x, weight, step, padding)}
    dy = rng.standard_normal(METHODS["direct"].forward(x, weight, step, padding).shape, np.float32)
    products = {
        "forward": lambda m, x, w, dy: m.forward(x, w, step, padding),
        "input gradient": lambda m, x, w, dy: m.input_gradient(dy, w, x.shape, step, padding),
        "weight gradient": lambda m, x, w, dy: m.weight_gradient(dy, x, size, step, padding),
    }
    rows = []
    for product, compute in products.items():
        expected = compute(METHODS["im2col"], *(a.astype(np.float64) for a in (x, weight, dy)))
        few = slice(0, min(N, SLOWEST_BATCH))
        images = {name: len(x[few]) if name == "naive" else N for name in methods}
        seconds = timed({name: partial(compute, method, x[:images[name]], weight, dy[:images[name]])
                         for name, method in methods.items()}, repetitions)
        for name, method in methods.items():
            n = images[name]
            reference = expected if n == N else compute(METHODS["im2col"],
                                                        *(a.astype(np.float64) for a in (x[:n], weight, dy[:n])))
            error = np.abs(compute(method, x[:n], weight, dy[:n]) - reference).max() / np.abs(reference).max()
            work = Work(2 * dy[:n].size * kernel * kernel * C, x[:n].nbytes + weight.nbytes + dy[:n].nbytes)
            rows.append(row(f"{shape}{', one image' if N == 1 else ''}", product, name, work, seconds[name], peak)
                        | {"error": float(error), "ms_per_image": seconds[name] / n * 1e3})
    return rows


def maps(H, C, N, rng, repetitions, peak):
    """Rows of what is not a convolution, and of the fused units, on (N, H, H, C)."""
    shape = (N, H, H, C)
    x, dy, residual = (rng.standard_normal(shape, np.float32) for _ in range(3))
    ones, mean = np.ones(C, np.float32), np.zeros(C, np.float32)
    weight = rng.standard_normal((3, 3, C, C), np.float32) * np.float32(0.1)
    prologue, factors = (mean, ones, mean), (mean, ones, mean, mean)
    y = cpu.relu_forward(x)
    T, product = x.nbytes, 2 * x.size * 9 * C
    kernels = {
        "relu forward": (Work(0, 2 * T), lambda: cpu.relu_forward(x)),
        "relu backward": (Work(0, 3 * T), lambda: cpu.relu_backward(dy, y)),
        "add": (Work(0, 3 * T), lambda: cpu.add(x, residual)),
        "batchnorm forward": (Work(0, 3 * T), lambda: cpu.batchnorm_forward(x, ones, mean, 1e-5)),
        "batchnorm backward": (Work(0, 5 * T), lambda: cpu.batchnorm_backward(dy, x, mean, ones, ones, 1e-5, True)),
        "normalise + add + relu": (Work(0, 3 * T), lambda: cpu.normalise_add_relu(x, prologue, residual)),
        "its gradient and sums": (Work(0, 4 * T), lambda: cpu.add_relu_gradient(dy, y, x, mean)),
        "unit forward": (Work(product, 2 * T), lambda: cpu.conv2d_moments(x, prologue, weight, (1, 1), (1, 1))),
        "unit backward": (Work(2 * product, 4 * T), lambda: cpu.conv2d_unit_gradient(
            dy, x, factors, x, prologue, weight, (1, 1), (1, 1), None, True)),
    }
    seconds = timed({name: function for name, (_, function) in kernels.items()}, repetitions)
    return [row(f"{C} channels at {H}x{H}", name, "minires", work, seconds[name], peak)
            | {"ms_per_image": seconds[name] / N * 1e3} for name, (work, _) in kernels.items()]


def row(shape, kernel, method, work, seconds, peak):
    return {"shape": shape, "kernel": kernel, "method": method, "seconds": seconds, "flops": work.flops, "bytes": work.bytes,
            "gflops": work.flops / seconds / 1e9, "gbytes": work.bytes / seconds / 1e9,
            "fraction": work.least_seconds(peak) / seconds}


def report(rows):
    """The rows as text, a heading for each shape."""
    shape = None
    for row in rows:
        if row["shape"] != shape:
            shape = row["shape"]
            print(f"\n{shape:44}{'ms/image':>10}{'GFLOP/s':>9}{'GB/s':>7}{'of roof':>9}{'error':>10}")
        flops = f"{row['gflops']:.0f}" if row["flops"] else "-"
        error = f"{row['error']:.1e}" if "error" in row else ""
        print(f"  {row['kernel']:26}{row['method']:16}{row['ms_per_image']:>10.4f}{flops:>9}{row['gbytes']:>7.1f}"
              f"{row['fraction']:>9.0%}{error:>10}")


def main(
    batch: Annotated[int, typer.Option(help="Images.")] = 128,
    repetitions: Annotated[int, typer.Option(help="Timings of each; the median counts.")] = 15,
    threads: Annotated[int | None, typer.Option(help="Of our kernels, all by default; NumPy's matrix product follows "
                                               "OPENBLAS_NUM_THREADS.", show_default=False)] = None,
    stem: Annotated[str, typer.Option(help="Name of the .json and .png in benchmarks/results.")] = "kernels",
):
    """Measure each kernel against the roofline."""
    from benchmarks.pictures import draw_roofline

    threads = usable_threads(threads)
    cpu.set_num_threads(threads)
    rng, peak = np.random.default_rng(0), peak_flops()
    print(f"{threads} threads: {peak / 1e9:.0f} GFLOP/s in registers; triad {bandwidth(1 << 28) / 1e9:.0f} GB/s on 256 MB, "
          f"{bandwidth(1 << 23) / 1e9:.0f} GB/s on 8 MB")
    rows = []
    for images, shapes in ((batch, SHAPES), (1, ALONE)):
        for shape in shapes:
            rows += convolutions(shape, images, rng, repetitions, peak)
    for H, C in MAPS:
        rows += maps(H, C, batch, rng, repetitions, peak)
    report(rows)
    result = {"machine": describe_machine(), "threads": threads, "batch": batch, "peak_flops": peak,
              "bandwidth": {size: bandwidth(size) for size in (1 << 23, 1 << 28)}, "rows": rows}
    print()
    write_json(f"{stem}.json", result)
    draw_roofline(result, RESULTS / f"{stem}.png")


if __name__ == "__main__":
    run(main)
