"""One recipe in both engines, on the same batches in the same order from the same weights: accuracy over time.

    python -m benchmarks.same_batches --data-dir DIR --recipe budget --out same_batches.json

Epoch by epoch the two take turns, so that a machine that slows down slows both. What differs is rounding, and time: the two
curves lie over each other against the epoch, and apart against the clock. Time is of steps alone: batches are made before,
evaluation is not counted.
"""
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks import run, write_json
from minires import CrossEntropyLoss, compile
from minires.bench.machine import describe_machine
from minires.bench.torch_resnet import build_torch_model
from minires.data import Loader, channel_statistics, load_dataset
from minires.errors import UserError
from minires.interop.torch import to_torch_state_dict
from minires.models import build_model
from minires.training import evaluate, make_recipe
from minires.training.recipes import parse_changes, run_of


class Minires:
    """This engine: the plan of a step, and the recipe's optimiser."""

    def __init__(self, model, recipe, steps):
        self.model, self.loss = model, CrossEntropyLoss(recipe.label_smoothing)
        self.step, self.predict = compile(model, self.loss), compile(model)
        self.optimiser = recipe.make_optimiser(model.parameters())
        self.schedule = recipe.make_schedule(self.optimiser, steps)

    def learn(self, x, target):
        """One update."""
        self.step(x, target)
        self.optimiser.step()
        self.schedule.step()

    def accuracy(self, loader):
        """Of a loader's images."""
        return evaluate(self.model, self.loss, loader, predict=self.predict).accuracy


class Torch:
    """PyTorch: its optimiser with a group for each parameter, whose rate and decay are what ours has."""

    def __init__(self, name, ours, recipe):
        state = to_torch_state_dict(ours.model)
        self.module = build_torch_model(name, state).to(memory_format=torch.channels_last)
        self.loss, self.schedule = torch.nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing), ours.schedule
        kept, groups = dict(ours.model.named_parameters()), []
        for key, parameter in self.module.named_parameters():
            decay = recipe.weight_decay * kept[key].decay_factor if recipe.decay_all or kept[key].decays else 0.0
            groups.append({"params": [parameter], "weight_decay": decay, "factor": kept[key].lr_factor})
        self.optimiser = torch.optim.SGD(groups, recipe.lr, recipe.momentum, nesterov=recipe.nesterov)
        self.steps = 0

    def learn(self, x, target):
        """One update."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.lr_at(self.steps) * group["factor"]
        self.optimiser.zero_grad(set_to_none=True)
        self.loss(self.module(_tensor(x)), torch.from_numpy(target)).backward()
        self.optimiser.step()
        self.steps += 1

    def accuracy(self, loader):
        """Of a loader's images."""
        self.module.eval()
        with torch.inference_mode():
            right = [(self.module(_tensor(x)).argmax(1).numpy() == target).sum() for x, target in loader]
        self.module.train()
        return int(sum(right)) / len(loader.dataset)


def _tensor(x):
    """(N, H, W, C) as PyTorch's channels_last: a view of the same memory."""
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def main(
    data_dir: Annotated[Path | None, typer.Option(help="Where CIFAR-10 lies.")] = None,
    recipe: Annotated[str, typer.Option(help="A recipe by SGD, without an average.")] = "budget",
    changes: Annotated[list[str] | None, typer.Option("--set", help="As of minires train.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    images: Annotated[int | None, typer.Option(help="Of the training set, the first so many.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights and batches.")] = 0,
    threads: Annotated[int | None, typer.Option(help="PyTorch's; minires takes all.")] = None,
    out: Annotated[str | None, typer.Option(help="A file of benchmarks/results for the curves, NAME.json.")] = None,
):
    """Train both, and print accuracy and seconds of each after every epoch."""
    chosen, planned = make_recipe(recipe, **parse_changes(changes)), run_of(recipe, "cifar10", epochs=epochs)
    if chosen.optimiser != "sgd" or chosen.average or chosen.accumulate > 1 or chosen.whiten or chosen.dirac:
        raise UserError(f"recipe {recipe} is more than SGD on a ResNet, which is all that PyTorch does here: choose "
                        "budget, quick, he2015, onecycle or cosine")
    if threads is not None:
        torch.set_num_threads(threads)
    train, test = load_dataset("cifar10", data_dir)
    train = train if images is None else train.subset(np.arange(len(train)) < images)
    mean, std = channel_statistics(train.images)
    weights, batches = np.random.default_rng(seed).spawn(2)
    model = build_model(planned["model"], len(train.classes), rng=weights)
    chosen.prepare(model, train.images, mean, std)
    loader = Loader(train, planned["batch_size"], mean=mean, std=std, augment=chosen.augmentation, shuffle=True, rng=batches)
    tests = Loader(test, planned["batch_size"], mean=mean, std=std)
    ours = Minires(model, chosen, planned["epochs"] * len(loader))
    engines = {"minires": ours, "torch": Torch(planned["model"], ours, chosen)}
    curves, seconds = {name: [] for name in engines}, dict.fromkeys(engines, 0.0)
    x, target = next(iter(Loader(train, planned["batch_size"], mean=mean, std=std)))
    start = model.state_dict()
    for _ in range(2):  # plans, kernels, threads
        ours.step(x, target)
    model.load_state_dict(start)  # running statistics too
    for epoch in range(1, planned["epochs"] + 1):
        made = list(loader)
        for name, engine in engines.items():
            began = time.perf_counter()
            for x, target in made:
                engine.learn(x, target)
            seconds[name] += time.perf_counter() - began
            row = {"epoch": epoch, "seconds": seconds[name], "test_accuracy": engine.accuracy(tests)}
            curves[name].append(row)
            typer.echo(f"epoch {epoch:3}  {name:8} {row['test_accuracy']:7.2%}  {row['seconds']:8.1f} s")
    if out is not None:
        write_json(out, {"machine": describe_machine(), "recipe": recipe, **planned, "curves": curves})


if __name__ == "__main__":
    run(main)
