"""The command `minires bench`: its options, the order of the measurements, and the JSON."""
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from minires.errors import UserError


def _chosen(option, text, allowed):
    """The comma-separated names in `text`; UserError for one that is not allowed."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in allowed]
    if unknown or not names:
        raise UserError(f"{option} {unknown[0] if unknown else repr(text)} is unknown: choose from {', '.join(allowed)}")
    return names


def _batch_sizes(text):
    sizes = [size.strip() for size in text.split(",")]
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise UserError(f"--batches {text} is not a list of batch sizes: expected numbers such as 128,32,1")
    return [int(size) for size in sizes]


def bench(
    vs: Annotated[str | None, typer.Option(help="torch: side by side with PyTorch.", show_default=False)] = None,
    models: Annotated[str, typer.Option(help="Networks, comma-separated: any name, FILE.py:function, and resnet50@224 "
                                          "and the like with the ImageNet stem.")] = "resnet20,resnet56,resnet18",
    batches: Annotated[str | None, typer.Option(help="Batch sizes; by default 128,32,1 (64,32,1 for training resnet18 "
                                                     "to 152, 8,1 with a size).",
                                                show_default=False)] = None,
    work: Annotated[str, typer.Option(help="training, inference or both.")] = "training,inference",
    variants: Annotated[str, typer.Option(help="Of PyTorch: eager, channels_last, compiled, compiled_channels_last."
                                          )] = "eager,channels_last,compiled",
    device: Annotated[str, typer.Option(help="cpu, or cuda: of every engine, timed by device events.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads of every engine; all by default.",
                                                show_default=False)] = None,
    repetitions: Annotated[int, typer.Option(help="Rounds; an engine has one turn in each.")] = 15,
    launches: Annotated[int, typer.Option(help="New processes to time the first training step of.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="ResNet-20 at batch 32, training, without compiled PyTorch, 3 "
                                                        "rounds.")] = False,
    cold: Annotated[bool, typer.Option("--cold", help="Time the first step with empty kernel caches too.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.", show_default=False)] = None,
):
    """Time training steps and inference, alone or beside PyTorch."""
    from minires.backends import require_device
    from minires.bench import compare, tables
    from minires.bench.engines import VARIANTS
    from minires.bench.machine import describe_machine
    from minires.bench.networks import default_batches, parts
    from minires.files import write_atomically
    from minires.models.own import is_own

    if quick:
        models, batches, work, variants, repetitions = "resnet20", "32", "training", "eager,channels_last", 3
        launches = 1
    if vs not in (None, "torch"):
        raise UserError(f"--vs {vs} is unknown: choose torch, or leave it out to time minires alone")
    if repetitions < 2:
        raise UserError(f"--repetitions {repetitions} is too small: a spread needs 2 or more")
    if launches < 1:
        raise UserError(f"--launches {launches} is too small: expected 1 or more")
    if json_file is not None and not json_file.parent.is_dir():
        raise UserError(f"--json {json_file} cannot be written: the folder {json_file.parent} is not there")
    models, work = [name.strip() for name in models.split(",")], _chosen("--work", work, compare.WORK)
    for model in models:
        if vs and is_own(model):
            raise UserError(f"--models {model} is a network of your own, of which PyTorch has no twin: leave --vs out")
        parts(model)
    engines = ["minires", *(_chosen("--variants", variants, VARIANTS) if vs else ())]
    sizes = None if batches is None else _batch_sizes(batches)
    threads = compare.usable_threads(threads)
    require_device(device)
    if vs:
        _require_torch(device)
    machine = describe_machine(device)
    typer.echo(tables.machine_text(machine, threads))
    plan = [(model, kind, batch) for kind in work for model in models
            for batch in sizes or default_batches(model, kind)]
    result = {"machine": machine, "threads": threads, "repetitions": repetitions, "cells": []}
    try:
        for number, cell in enumerate(plan, 1):
            if sys.stderr.isatty():
                typer.echo(f"measuring {number} of {len(plan)}: {cell[0]}, {cell[1]}, batch {cell[2]}", err=True)
            result["cells"].append(compare.measure_cell(*cell, engines, threads, repetitions, device=device))
            typer.echo("\n" + tables.cell_text(result["cells"][-1]))
    except compare.Disagreement as error:
        typer.echo(f"minires: error: {cell[0]}, {cell[1]}, batch {cell[2]}: {error}", err=True)
        raise typer.Exit(1) from None
    batch = (sizes or default_batches(models[0], "training"))[0]
    first = (models[0], batch, engines, threads)
    steps = result["first_steps"] = {"model": models[0], "batch": batch}
    steps["warm"] = compare.measure_first_steps(*first, launches, device=device)
    if cold:
        steps["cold"] = compare.measure_first_steps(*first, 1, cold=True, device=device)
    typer.echo("\n" + tables.first_steps_text(result["first_steps"]))
    if json_file is not None:
        write_atomically(json_file, (json.dumps(result, indent=1) + "\n").encode())
        typer.echo(f"\nwrote {json_file}")


def _require_torch(device):
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise UserError("--vs torch needs PyTorch, which is not installed: pip install 'minires[torch]'")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError(f"--vs torch --device cuda needs a PyTorch that finds the GPU, and {torch.__version__} does "
                            "not: install its CUDA build, or leave --vs out to time minires alone")
