"""Training with and without fused blocks from one seed: the loss curves follow each other.

Fused and unfused kernels round differently, and training amplifies any difference. So a third run shows how fast: unfused,
its first weights changed by one part in ten million, the size of a rounding. The fused run must not be farther away.
"""
from typing import Annotated

import numpy as np
import typer

from benchmarks import RESULTS, run, write_json
from minires.bench.compare import usable_threads
from minires.bench.machine import describe_machine
from minires.errors import UserError


def train(model, dataset, steps, batch, lr, seed, fused, perturbation=0.0):
    """The loss of each of `steps` training steps: a list of floats."""
    from minires.data import Loader, channel_statistics
    from minires.layers.fused import fuse
    from minires.losses import CrossEntropyLoss
    from minires.models import build_model
    from minires.optim import SGD

    weights_rng, batch_rng = np.random.default_rng(seed).spawn(2)
    mean, std = channel_statistics(dataset.images)
    loader = Loader(dataset, batch, mean=mean, std=std, augment=True, shuffle=True, rng=batch_rng, drop_last=True)
    network = fuse(build_model(model, len(dataset.classes), rng=weights_rng), fused)
    network.input_gradient = False
    for parameter in network.parameters():
        parameter.data *= parameter.data.dtype.type(1 + perturbation)
    loss, optimiser, losses = CrossEntropyLoss(), SGD(network.parameters(), lr, 0.9, 5e-4, True), []
    while len(losses) < steps:
        for x, target in loader:
            losses.append(loss.forward(network.forward(x), target))
            optimiser.zero_grad()
            network.backward(loss.backward())
            optimiser.step()
            if len(losses) == steps:
                break
    return losses


def smooth(losses, window=20):
    """Means of `window` steps, which the chance of single batches leaves alone."""
    window = min(window, len(losses))
    return np.convolve(losses, np.ones(window) / window, "valid")


def main(
    model: Annotated[str, typer.Option(help="A network.")] = "resnet20",
    dataset: Annotated[str, typer.Option(help="shapes, cifar10 or a folder.")] = "shapes",
    data_dir: Annotated[str | None, typer.Option(help="Folder that holds CIFAR-10.", show_default=False)] = None,
    steps: Annotated[int, typer.Option(help="Updates.")] = 250,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 128,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.02,
    seed: Annotated[int, typer.Option(help="Of weights, batches and augmentation.")] = 0,
    threads: Annotated[int | None, typer.Option(help="All by default.", show_default=False)] = None,
    stem: Annotated[str, typer.Option(help="Name of the .json and .png in benchmarks/results.")] = "fusion",
):
    """Train with and without fusion and compare the losses."""
    from benchmarks.pictures import draw_fusion
    from minires.backends import set_num_threads
    from minires.data import load_dataset

    if steps < 1:
        raise UserError(f"--steps {steps} is too small: expected 1 or more")
    set_num_threads(usable_threads(threads))
    images, _ = load_dataset(dataset, data_dir)
    settings = (model, images, steps, batch, lr, seed)
    losses = {"unfused": train(*settings, fused=False), "fused": train(*settings, fused=True),
              "unfused, perturbed": train(*settings, fused=False, perturbation=1e-7)}
    print(f"{model} on {dataset}, {steps} steps of {batch} images, learning rate {lr}, seed {seed}")
    print(f"{'step':>6}" + "".join(f"{name:>20}" for name in losses))
    for step in sorted({1, 2, 5, 10, 20, *range(50, steps, 50), steps}):
        if step <= steps:
            print(f"{step:>6}" + "".join(f"{values[step - 1]:>20.6f}" for values in losses.values()))
    differences = {}
    for name in ("fused", "unfused, perturbed"):
        gap = np.abs(np.subtract(losses[name], losses["unfused"]))
        smoothed = float(np.abs(smooth(losses[name]) - smooth(losses["unfused"])).max())
        differences[name] = {"first_10_steps": float(gap[:10].max()), "largest": float(gap.max()),
                             "largest_of_means": smoothed}
        print(f"{name} against unfused: at most {gap[:10].max():.2g} in the first 10 steps, {gap.max():.2g} in all, "
              f"{smoothed:.2g} between means of 20 steps")
    result = {"machine": describe_machine(), "model": model, "dataset": dataset, "steps": steps, "batch": batch, "lr": lr,
              "seed": seed, "losses": losses, "differences": differences}
    write_json(f"{stem}.json", result)
    draw_fusion(result, RESULTS / f"{stem}.png")


if __name__ == "__main__":
    run(main)
