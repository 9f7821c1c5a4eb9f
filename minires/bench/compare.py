"""minires beside PyTorch: the same network, weights, batch, data and threads, in turns.

A *cell* is a network, a kind of work (training: zero_grad, forward, cross-entropy, backward, SGD step; inference: forward
in evaluation mode, nothing kept) and a batch size. Each cell starts fresh processes, one an engine, so that a process's
peak memory is that of its cell. Before a cell is timed its engines must agree on the first step.

A ratio is minires' time over PyTorch's of the same round, and the median over the rounds: both meet the same weather.
"""
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from minires.bench.networks import build_network, parts
from minires.bench.workers import Worker, WorkerError, spread, take_turns

WORK = ("training", "inference")
CACHES = ("NUMBA_CACHE_DIR", "CUPY_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")  # of compiled kernels
LOGITS_TOLERANCE = 1e-3  # of the largest logit, or absolute where all are below 1
LOSS_TOLERANCE = 1e-4  # of the loss
# Of a gradient's norm. Of millions of pre-activations some lie within rounding of zero and pass the ReLU in one engine
# only: PyTorch's own two layouts differ by 1 % in the same place.
GRADIENT_TOLERANCE = 5e-2


class Disagreement(RuntimeError):
    """The engines computed different things, so their times say nothing."""


def write_inputs(folder, model, batch):
    """Write a batch of shapes and a network's weights, for both engines; -> the paths, as entries of a worker's setup.

    The running statistics are those of the batch, so that evaluation sees numbers like a trained network's.
    """
    from minires.data import Standardise, channel_statistics, make_shapes
    from minires.interop.torch import to_torch_state_dict
    from minires.layer import inference_mode
    from minires.layers import BatchNorm2d
    from minires.models.own import is_own, short

    shapes, size = make_shapes(max(batch, 16), seed=0), parts(model)[2]
    near = np.arange(size) * shapes.images.shape[1] // size  # the nearest pixel
    x = np.ascontiguousarray(Standardise(*channel_statistics(shapes.images), np.float32)(shapes.images[:, near][:, :, near]))
    network = build_network(model, np.random.default_rng(0))
    normalisations = [layer for _, layer in network.named_layers() if isinstance(layer, BatchNorm2d)]
    for layer in normalisations:
        layer.momentum = 1.0
    with inference_mode():
        network.forward(x[:32])
    setup = {name: str(Path(folder) / f"{name}-{short(model)}-{batch}.npz") for name in ("data", "weights", "torch_weights")}
    np.savez(setup["data"], x=x[:batch], target=shapes.labels[:batch])
    np.savez(setup["weights"], **network.state_dict())
    np.savez(setup["torch_weights"], **({} if is_own(model) else to_torch_state_dict(network)))
    return setup


def differences(found, expected):
    """{"loss", "logits", "gradients"}: how far two engines' first results are apart, relative, the worst gradient's."""
    if found.keys() != expected.keys():
        raise Disagreement(f"results differ in kind: {sorted(found.keys() ^ expected.keys())}")
    apart = {}
    for name, value in expected.items():
        own = np.asarray(found[name], np.float64)
        if own.shape != value.shape:
            raise Disagreement(f"{name} has shape {own.shape}, expected {value.shape}")
        gap = own - value
        if name.startswith("grad "):
            relative = float(np.linalg.norm(gap) / (np.linalg.norm(value) or 1))
        else:
            relative = float(np.abs(gap).max() / max(1.0, np.abs(value).max()))
        kind = "gradients" if name.startswith("grad ") else name
        apart[kind] = float(np.maximum(apart.get(kind, 0.0), relative))  # np.maximum keeps a NaN
    return apart


def require_agreement(apart, other):
    """Disagreement unless every difference is within its tolerance."""
    tolerances = {"loss": LOSS_TOLERANCE, "logits": LOGITS_TOLERANCE, "gradients": GRADIENT_TOLERANCE}
    wrong = [f"{kind} by {size:.2g} (tolerance {tolerances[kind]:g})" for kind, size in apart.items()
             if not size <= tolerances[kind]]
    if wrong:
        raise Disagreement(f"minires and {other} differ in {', '.join(wrong)}: nothing was timed")


def fill_cache(setup):
    """Run a step in a process that ends, so that compiled kernels are on disk and no measured peak is a compiler's."""
    with Worker(setup) as worker:
        worker.start()
        worker.first_step()


def measure_cell(model, work, batch, engines, threads, repetitions, tick=lambda: None, device="cpu"):
    """One cell as a dict: model, work, batch, agreement, engines {name: seconds, spread, peak memory, ratio}, left_out,
    roofline_seconds of minires' plan (on a CPU).

    engines: "minires" and names of engines.VARIANTS. Raises Disagreement before anything is timed.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        least = least_of(model, work, batch, threads) if device == "cpu" else None
        files = write_inputs(folder, model, batch)
        workers, results, left_out = {}, {}, {}
        for name in engines:
            setup = {"engine": name, "model": model, "work": work, "batch": batch, "threads": threads,
                     "device": device, **files}
            out = Path(folder) / f"{name}.npz"
            worker = None
            try:
                if name not in ("eager", "channels_last"):
                    fill_cache(setup)
                worker = stack.enter_context(Worker(setup))
                worker.start()
                worker.tell("check", out=str(out), work=work)
                worker.tell("time", steps=1)
            except WorkerError as error:
                if not name.startswith("compiled"):
                    raise
                left_out[name] = str(error)  # a compiler is missing or cannot do this network
                if worker is not None:
                    worker.close()
                continue
            workers[name] = worker
            with np.load(out) as found:
                results[name] = dict(found)
        agreement = {name: differences(results["minires"], results[name]) for name in workers if name != "minires"}
        for name, apart in agreement.items():
            require_agreement(apart, f"PyTorch {name}")
        seconds = take_turns(workers, repetitions, tick)
        memory = {name: worker.tell("memory") for name, worker in workers.items()}
    rows = {name: {**spread(seconds[name]), "seconds": seconds[name], **memory[name]} for name in workers}
    for name in agreement:
        ratios = np.array(seconds["minires"]) / np.array(seconds[name])
        rows[name]["minires_ratio"] = spread(ratios)
    best = min(agreement, key=lambda name: rows[name]["median"], default=None)
    return {"model": model, "work": work, "batch": batch, "agreement": agreement, "engines": rows, "left_out": left_out,
            "best": best, "roofline_seconds": least}


def least_of(model, work, batch, threads):
    """The seconds that the roofline allows for the plan of a cell, measured now and here (minires.bench.roofline)."""
    from minires.backends import set_num_threads
    from minires.bench.roofline import least_seconds
    from minires.losses import CrossEntropyLoss
    from minires.plan import compile

    set_num_threads(threads)
    network, size = build_network(model), parts(model)[2]
    compiled = compile(network, CrossEntropyLoss()) if work == "training" else compile(network)
    return float(sum(least_seconds(compiled.plan((batch, size, size, 3)).steps)))


def measure_first_steps(model, batch, engines, threads, launches, cold=False, device="cpu"):
    """{engine: {"ready": [...], "first_step": [...]}}: seconds from a new process's start until its engine is built and
    until its first training step is done, for each of `launches`. cold: with empty caches of compiled kernels.
    """
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        files = write_inputs(folder, model, batch)
        for name in engines:
            times = {"ready": [], "first_step": []}
            for launch in range(launches):
                caches = Path(folder) / f"cache-{name}-{launch}"
                environment = {variable: str(caches) for variable in CACHES}
                setup = {"engine": name, "model": model, "work": "training", "batch": batch, "threads": threads,
                         "device": device, **files}
                with Worker(setup, environment if cold else None) as worker:
                    try:
                        ready, done = worker.start(), worker.first_step()
                    except WorkerError:
                        if not name.startswith("compiled"):
                            raise
                        break
                times["ready"].append(ready)
                times["first_step"].append(done)
            if times["ready"]:
                found[name] = times
    return found


def usable_threads(threads):
    """The number of threads to use: as given, or all cores."""
    from minires.errors import UserError
    from minires.machine import cores

    most = cores()
    if threads is None:
        return most
    if not 1 <= threads <= (os.cpu_count() or most):
        raise UserError(f"cannot use {threads} threads: choose 1 to {most}, the cores of this machine")
    return threads
