"""What a training step costs a GPU at the least: operations and bytes of each CUDA kernel, and the time they imply.

    python -m benchmarks.cuda_floor             print every kernel and shape
    python -m benchmarks.cuda_floor --readme README.md    and put the table of kernels between the README's markers

A computed floor, not a measurement. The operators of one training step are recorded as they are called, on a CPU, and each
is written down as the kernels that the CUDA back end launches for it (a test holds this list against what it does launch).
Operations: a multiplication and an addition each count, of products only, by the direct formula. Bytes: every operand and
result once. A launch takes at least the longer of operations / peak and bytes / bandwidth. Left out: launching (some
microseconds each), parts of sums, what the last kernel left in L2, which can beat the memory's bandwidth, and the small
updates that CuPy itself computes (gradients added up and set to zero).
"""
import importlib
import json
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer

from benchmarks import run
from benchmarks.table import insert
from minires.bench.tables import milliseconds
from minires.errors import UserError
from minires.files import write_atomically

START, END = "<!-- cuda:start -->", "<!-- cuda:end -->"


class Device(NamedTuple):
    """Of a data sheet: float32 operations a second outside the tensor cores, bytes a second of its memory."""

    name: str
    flops: float
    bandwidth: float


DEVICES = (Device("A100", 19.5e12, 2.039e12), Device("H100", 66.9e12, 3.35e12))  # SXM, 80 GB


class Launch(NamedTuple):
    """A kernel on arrays of some shape: operations and bytes."""

    kernel: str
    shape: str
    flops: float
    bytes: float

    def seconds(self, device):
        """The least it can take."""
        return max(self.flops / device.flops, self.bytes / device.bandwidth)


def _size(*arrays):
    """Bytes of arrays, those inside tuples and lists too."""
    return sum(_size(*value) if isinstance(value, tuple | list) else value.nbytes for value in arrays if value is not None)


def _image(x):
    return f"{x.shape[3]} channels at {x.shape[1]}x{x.shape[2]}"


def _product(weight, y):
    """Operations of a convolution, and its name: the same for its two gradients."""
    KH, KW, C, O = weight.shape
    return 2 * y.size * KH * KW * C, f"{KH}x{KW} {C}->{O}, y {y.shape[1]}x{y.shape[2]}"


def _small(kernel):
    return Launch(kernel, "parts of sums, channels", 0, 0)


def _conv2d_forward(y, x, weight, *_):
    flops, shape = _product(weight, y)
    yield Launch("conv2d_forward", shape, flops, _size(x, weight, y))


def _moments(results, x, prologue, weight, *_):
    yield from _conv2d_forward(results[0], x, weight)
    yield _small("finish_moments")


def _add_relu_moments(results, z, prologue, residual, weight, *_):
    y, *moments = results
    yield from _normalise_add_relu(y, z, prologue, residual)
    yield from _moments(moments, y, None, weight)


def _unit_gradient(results, g, z, _, x, prologue, weight, stride, padding, residual_gradient, need_dx, front, add_to,
                   shortcut, _fresh):
    if shortcut is not None:
        yield from _normalise_add_relu(x, x, prologue, shortcut)
        front, prologue = (x, prologue[0]), None
    dx, (flops, shape) = results[0], _product(weight, g)
    yield Launch("normalisation_gradient", _image(g), 0, _size(g, z) + g.nbytes)
    yield Launch("conv2d_weight_gradient", shape, flops, _size(g, x, weight))  # dweight is as large
    yield _small("sum_splits")
    if need_dx:
        yield Launch("conv2d_input_gradient", shape, flops,
                     _size(g, weight, dx, residual_gradient) + (x.nbytes if prologue else 0))
        if front:
            yield from _add_relu_gradient(results, dx, x, front[0], front[1])
        elif prologue:
            yield _small("finish_sums")


def _add_relu_gradient(results, dy, y, z, mean, prologue=None, residual=None):
    if y is None:
        y = z  # of its shape
        yield from _normalise_add_relu(y, z, prologue, residual)
    yield Launch("gate_and_sums", _image(y), 0, _size(dy, y, z, results[0]))
    yield _small("finish_sums")


def _linear_forward(y, x, weight, bias):
    N, K = y.shape
    yield Launch("conv2d_forward", f"({N}, {len(weight)}) @ ({len(weight)}, {K})", 2 * y.size * len(weight),
                 _size(x, weight, y))
    yield Launch("add_bias_relu", f"({N}, {K})", 0, 2 * y.nbytes)


def _linear_backward(results, dy, x, weight):
    (N, K), (dx, dweight, dbias) = dy.shape, results
    yield Launch("conv2d_input_gradient", f"({N}, {K}) @ ({K}, {len(weight)})", 2 * dx.size * K, _size(dy, weight, dx))
    yield Launch("conv2d_weight_gradient", f"({len(weight)}, {N}) @ ({N}, {K})", 2 * dweight.size * N,
                 _size(x, dy, dweight))
    yield _small("sum_splits")
    yield Launch("gradient_sums", f"({N}, {K})", 0, _size(dy, dbias))
    yield _small("finish_sums")


def _pad_shortcut_forward(y, x, out_channels, stride):
    yield Launch("pad_shortcut_forward", _image(y), 0, y.nbytes + x[:, ::stride[0], ::stride[1]].nbytes)


def _pad_shortcut_backward(dx, dy, x_shape, stride):
    yield Launch("pad_shortcut_backward", _image(dy), 0, dx.nbytes + dy[..., :x_shape[3]].nbytes)


def _once(kernel):
    """An operator that is one kernel, which reads its arrays once and writes its results once."""
    def launches(results, *arguments):
        arrays = [value for value in arguments if isinstance(value, np.ndarray)]
        shape = max(arrays, key=lambda array: array.nbytes).shape
        found = results if isinstance(results, tuple) else (results,)
        yield Launch(kernel, str(shape[1:]), 0, _size(*arrays, *(value for value in found if isinstance(value, np.ndarray))))
    return launches


def _softmax_forward(results, logits, target, _):
    yield Launch("softmax_rows", str(logits.shape), 0, _size(logits, target, results[1]))
    yield _small("scaled_sum")


def _normalise_add_relu(y, z, prologue, residual):
    yield Launch("normalise_add_relu", _image(y), 0, _size(z, residual, y))


def _sgd_update(_, parameters, grads, velocities, *__):
    yield Launch("sgd", "all parameters", 0, _size(grads) + 2 * _size(parameters, velocities))


# What the CUDA back end launches for an operator: function(its results, *its arguments).
KERNELS = {
    "conv2d_forward": _conv2d_forward, "conv2d_moments": _moments, "add_relu_conv2d_moments": _add_relu_moments,
    "conv2d_unit_gradient": _unit_gradient, "normalise_add_relu": _normalise_add_relu,
    "add_relu_gradient": _add_relu_gradient,
    "batchnorm_coefficients": lambda *_: [_small("batchnorm_coefficients")],
    "normalisation_scale": lambda *_: [_small("normalisation_scale")],
    "update_running": lambda *_: [_small("follow"), _small("follow")],
    "pad_shortcut_forward": _pad_shortcut_forward, "pad_shortcut_backward": _pad_shortcut_backward,
    "global_avgpool_forward": _once("image_means"), "global_avgpool_backward": _once("spread_means"),
    "linear_forward": _linear_forward, "linear_backward": _linear_backward,
    "softmax_cross_entropy_forward": _softmax_forward, "softmax_cross_entropy_backward": _once("softmax_gradient"),
    "sgd_update": _sgd_update,
}


@contextmanager
def _recorded(operators):
    """Inside, every operator of a back end appends its launches to the list, but for those that it calls itself."""
    launches, plain, within = [], {name: getattr(operators, name) for name in KERNELS}, []

    def wrap(name, function):
        def recorded(*arguments):
            within.append(name)
            results = function(*arguments)
            within.pop()
            if not within:
                launches.extend(KERNELS[name](results, *arguments))
            return results
        return recorded

    try:
        for name, function in plain.items():
            setattr(operators, name, wrap(name, function))
        yield launches
    finally:
        for name, function in plain.items():
            setattr(operators, name, function)


def training_step(model, batch, backend="cpu"):
    """The launches of one training step on images of 32 x 32: planned, cross-entropy, SGD."""
    from minires.backends import use_backend
    from minires.bench.engines import SGD
    from minires.losses import CrossEntropyLoss
    from minires.models import build_model
    from minires.optim import SGD as Optimiser
    from minires.plan import compile

    rng = np.random.default_rng(0)
    network = build_model(model)
    optimiser = Optimiser(network.parameters(), **SGD)
    x, target = rng.standard_normal((batch, 32, 32, 3), np.float32), rng.integers(0, 10, batch)
    with use_backend(backend), _recorded(importlib.import_module(f"minires.backends.{backend}")) as launches:
        compile(network, CrossEntropyLoss())(x, target)
        optimiser.step()
    return launches


def grouped(launches, key):
    """[(key, launches, operations, bytes, {device: seconds})] in the order in which keys first appear."""
    groups = {}
    for launch in launches:
        groups.setdefault(key(launch), []).append(launch)
    return [(name, len(each), sum(launch.flops for launch in each), sum(launch.bytes for launch in each),
             {device.name: sum(launch.seconds(device) for launch in each) for device in DEVICES})
            for name, each in groups.items()]


def markdown(model, batch, launches, measured):
    """The README's table: a line a kernel, and their sum."""
    rows = grouped([launch for launch in launches if launch.bytes], lambda launch: f"`{launch.kernel}`")
    rows += grouped([launch for launch in launches if not launch.bytes], lambda _: "sums of parts, factors of channels")
    rows += [(f"**{name}**", *rest) for name, *rest in grouped(launches, lambda _: "all")]
    lines = [f"Computed floor of a training step ({model}, batch {batch}, float32): what the kernels of the CUDA back end "
             "must compute and move,", "and the time that implies by the data sheets of an A100 and an H100 (SXM, 80 GB).",
             "", "| kernel | launches | GFLOP | MB | A100, µs | H100, µs |", "|:--|--:|--:|--:|--:|--:|"]
    for name, count, flops, size, seconds in rows:
        times = " | ".join(f"{seconds[device.name] * 1e6:,.0f}" if size else "" for device in DEVICES)
        work = f"{flops / 1e9:.2f}" if flops else ""
        lines.append(f"| {name} | {count} | {work} | {f'{size / 1e6:,.1f}' if size else ''} | {times} |")
    return "\n".join([*lines, "", measured])


def measured_text(path, model, batch):
    """A sentence on the measured step, from what `minires bench --device cuda --json` wrote."""
    if path is None:
        return "No GPU was at hand: no measured time stands beside it."
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        device = result["machine"]["device"]["name"]
        cells = [cell for cell in result["cells"]
                 if (cell["model"], cell["work"], cell["batch"]) == (model, "training", batch)]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"--measured {path} is not what minires bench --device cuda --json writes: run that first") from None
    if not cells:
        raise UserError(f"--measured {path} has no training step of {model} at batch {batch}: measure one by minires bench "
                        f"--device cuda --models {model} --batches {batch} --work training --json {path}")
    engines, best = cells[0]["engines"], cells[0].get("best")
    beside = f"; PyTorch {best} {milliseconds(engines[best]['median'])} ms, in turns" if best else ""
    return f"Measured on one {device}: {milliseconds(engines['minires']['median'])} ms a step (median){beside}."


def main(
    model: Annotated[str, typer.Option(help="A network of the CIFAR family.")] = "resnet20",
    batch: Annotated[int, typer.Option(help="Images a step.")] = 128,
    readme: Annotated[Path | None, typer.Option(help=f"Put the table into this file, between {START} and {END}.",
                                                show_default=False)] = None,
    measured: Annotated[Path | None, typer.Option(help="What minires bench --device cuda --json wrote: its step is quoted.",
                                                  show_default=False)] = None,
):
    """Compute operations, bytes and least times of the CUDA kernels of a training step."""
    if batch < 1:
        raise UserError(f"--batch {batch} is too small: expected 1 or more")
    if readme is not None and not readme.is_file():
        raise UserError(f"--readme {readme} is not there: name the file that has the markers")
    told = measured_text(measured, model, batch)
    launches = training_step(model, batch)
    print(f"{model}, batch {batch}: a computed floor, by data sheets")
    print(f"{'':54}{'launches':>9}{'GFLOP':>9}{'MB':>9}" + "".join(f"{device.name + ', µs':>10}" for device in DEVICES))
    groups = grouped(launches, lambda launch: f"{launch.kernel:24}{launch.shape}") + grouped(launches, lambda _: "all")
    for name, count, flops, size, seconds in groups:
        print(f"{name:54}{count:>9}{flops / 1e9:>9.2f}{size / 1e6:>9.1f}"
              + "".join(f"{seconds[device.name] * 1e6:>10.1f}" for device in DEVICES))
    if readme is None:
        print(told)
        return
    text = insert(readme.read_text(encoding="utf-8"), markdown(model, batch, launches, told), START, END)
    write_atomically(readme, text.encode())
    print(f"wrote the table into {readme}")


if __name__ == "__main__":
    run(main)
