"""Fine-tuning on few images: a published ResNet-20 with a new last layer, against training from scratch.

    python -m benchmarks.finetune --data-dir DIR --weights resnet20-12fca82f.th

500 training images of CIFAR-10 in two super-classes, animal and vehicle, 50 of each of its ten classes; accuracy on the
10,000 test images; one network a seed, which draws the images, the batches and what is new. Three ways, the same number of
epochs: all from scratch, all from the published weights, and only the last layer on top of them (the rest frozen). The
published weights were trained on all 50,000 training images with their ten labels, so this says what a good beginning is
worth, and nothing of images that such weights have never seen. Writes benchmarks/results/finetune.json, and prints a table.
"""
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks import run, write_json
from minires.bench.machine import describe_machine
from minires.data import Dataset, Loader, channel_statistics, load_dataset
from minires.evaluation import evaluated, open_checkpoint
from minires.losses import CrossEntropyLoss
from minires.models import build_model
from minires.training import Trainer, make_recipe
from minires.training.tuning import freeze, take_over

CLASSES = ("animal", "vehicle")
VEHICLES = (0, 1, 8, 9)  # airplane, automobile, ship, truck
BATCH_SIZE = 50
WAYS = {  # begins from weights, what is frozen, the recipe's peak learning rate
    "from scratch": (False, (), 0.05), "fine-tuned": (True, (), 0.01), "last layer only": (True, ("*",), 0.1),
}


def two_classes(dataset):
    """The data set with animal or vehicle as labels."""
    return Dataset(dataset.images, np.isin(dataset.labels, VEHICLES).astype(np.int64), CLASSES)


def few(dataset, count, rng):
    """`count` of the images, as many of each class."""
    chosen = [rng.choice(np.flatnonzero(dataset.labels == k), count // len(dataset.classes), replace=False)
              for k in range(len(dataset.classes))]
    return dataset.subset(np.concatenate(chosen))


def trained(way, train, test, published, seed, epochs):
    """(the Evaluation of one network on the test images, seconds of training)."""
    begins, frozen, lr = WAYS[way]
    weights_rng, batch_rng = np.random.default_rng(seed).spawn(2)
    network = build_model("resnet20", len(CLASSES), "A", rng=weights_rng)
    mean, std = channel_statistics(train.images)
    if begins:
        source, card = published
        take_over(network, source)
        mean, std = card.mean, card.std
    freeze(network, frozen)
    loader = Loader(train, BATCH_SIZE, mean=mean, std=std, augment=True, shuffle=True, rng=batch_rng)
    recipe = make_recipe("onecycle", lr=lr)
    optimiser = recipe.make_optimiser(network.parameters())
    trainer = Trainer(network, optimiser, loader, None, schedule=recipe.make_schedule(optimiser, epochs * len(loader)),
                      progress=False)
    began = time.perf_counter()
    trainer.fit(epochs)
    seconds = time.perf_counter() - began
    return evaluated(network, CrossEntropyLoss(), Loader(test, 128, mean=mean, std=std)), seconds


def table(result):
    """The Markdown table of a result."""
    lines = [f"{result['images']} training images, {result['epochs']} epochs, {result['test_images']:,} test images, "
             f"{len(result['seeds'])} seeds.", "", "| way | test accuracy, % | mean | training, s |", "|:--|--:|--:|--:|"]
    for way, rows in result["ways"].items():
        accuracies = [row["accuracy"] for row in rows]
        lines.append(f"| {way} | {', '.join(f'{100 * a:.2f}' for a in accuracies)} | **{100 * np.mean(accuracies):.2f}** | "
                     f"{np.median([row['seconds'] for row in rows]):.0f} |")
    return "\n".join(lines)


def main(
    weights: Annotated[Path, typer.Option(help="The published ResNet-20 with option A shortcuts.")],
    data_dir: Annotated[str | None, typer.Option(help="The folder that holds CIFAR-10; else it is downloaded.")] = None,
    images: Annotated[int, typer.Option(help="Training images, a multiple of 10.", min=20)] = 500,
    epochs: Annotated[int, typer.Option(help="Of every way.", min=1)] = 15,
    seeds: Annotated[int, typer.Option(help="Networks of every way.", min=1)] = 3,
):
    """Fine-tune a published ResNet-20 on few images, against training from scratch."""
    whole, test = load_dataset("cifar10", data_dir)
    test, published = two_classes(test), open_checkpoint(weights, "resnet20", "A")
    result = {"machine": describe_machine("cpu"), "images": images, "epochs": epochs, "test_images": len(test),
              "seeds": list(range(seeds)), "ways": {way: [] for way in WAYS}}
    for seed in result["seeds"]:
        train = two_classes(few(whole, images, np.random.default_rng(seed)))
        for way, rows in result["ways"].items():
            found, seconds = trained(way, train, test, published, seed, epochs)
            rows.append({"accuracy": found.accuracy, "interval": found.interval, "loss": found.loss, "seconds": seconds})
            print(f"seed {seed}, {way}: {found.accuracy:.2%}, {seconds:.0f} s", flush=True)
    write_json("finetune.json", result)
    print(table(result))


if __name__ == "__main__":
    run(main)
