"""The command `minires study sharpness`."""
from pathlib import Path
from typing import Annotated

import typer

from minires.commands.options import Threads, require_picture, use_threads


def sharpness(
    depth: Annotated[int, typer.Option(help="Of the CIFAR ResNet: 8, 14, 20 or another 6n + 2.")] = 8,
    plain: Annotated[bool, typer.Option("--plain", help="Its twin without shortcuts.")] = False,
    images: Annotated[int, typer.Option(help="Shapes of 16 x 16 pixels, all of them in every step.")] = 128,
    lr: Annotated[float, typer.Option(help="Rate of plain gradient descent.")] = 0.1,
    steps: Annotated[int, typer.Option(help="Of gradient descent.")] = 150,
    measurements: Annotated[int, typer.Option(help="How often the eigenvalue is measured, evenly.")] = 11,
    seed: Annotated[int, typer.Option(help="Of weights, images and start vectors.")] = 0,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("sharpness.png"),
):
    """Train by gradient descent and watch the loss's largest Hessian eigenvalue rise to 2 / learning rate."""
    from minires.plots.certificate import draw_sharpness
    from minires.study.sharpness import sharpness_along_training, small_batch, small_network

    use_threads(threads)
    require_picture(out)
    network = small_network(depth, plain, seed)
    x, target = small_batch(images, seed)
    name = f"{'plain' if plain else 'resnet'}{depth}"
    rows = []
    for row in sharpness_along_training(network, x, target, lr, steps, measurements, seed):
        if not rows:
            typer.echo(f"{name} on {images} shapes by gradient descent, 2 / learning rate = {2 / lr:.4g}")
            typer.echo(f"{'step':>6}{'loss':>9}{'largest eigenvalue':>20}{'smallest met':>14}{'products':>10}")
        rows.append(row)
        typer.echo(f"{row['step']:6}{row['loss']:9.4f}{row['top']:20.2f}{row['bottom']:14.2f}{row['products']:10}")
    draw_sharpness(rows, lr, name, out)
    peak = max(rows, key=lambda row: row["top"])
    typer.echo(f"the largest eigenvalue peaks at {peak['top']:.2f} at step {peak['step']}, {peak['top'] * lr / 2:.2f} times "
               f"2 / learning rate; drew it into {out}")
