"""The command `minires train`."""
import importlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from minires.commands.options import CHECKPOINT, DataDir, Device, Mean, Shortcut, Std, Stem, Threads, use_threads
from minires.errors import UserError


def train(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="resnet20 32 44 56 110, plain20 .. plain110, resnet18 34 50 101 152, "
                                                   "speedrun, or your own, FILE.py:function; by default the recipe's, else "
                                                   "resnet20.", show_default=False)] = None,
    dataset: Annotated[str, typer.Option(help="shapes, cifar10, or a folder.")] = "shapes",
    data_dir: DataDir = None,
    size: Annotated[int | None, typer.Option(help="Pixels a side of a folder's pictures: the shorter side is resized, the "
                                                  "middle cropped. By default they are squares of one size, and stay.",
                                             show_default=False)] = None,
    epochs: Annotated[int | None, typer.Option(help="By default the recipe's, else 8 for shapes, 30 for others.",
                                               show_default=False)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step; by default the recipe's, else 128.",
                                                   show_default=False)] = None,
    recipe: Annotated[str, typer.Option(help="onecycle, he2015, cosine, quick, budget, speedrun, speedrun_sgd, or a file "
                                             "NAME.toml.")] = "onecycle",
    changes: Annotated[list[str] | None, typer.Option("--set", help="A field of the recipe and its value, as "
                                                      "label_smoothing=0.1 or whiten=false; may be repeated.",
                                                      show_default=False)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate (the peak of onecycle) instead of the recipe's.",
                                             show_default=False)] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Instead of the recipe's.", show_default=False)] = None,
    shortcut: Shortcut = None,
    stem: Stem = None,
    start: Annotated[Path | None, typer.Option("--from", help=f"Begin from trained weights. {CHECKPOINT}",
                                               show_default=False)] = None,
    freeze: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Parameters that stay as they are, such as "
                                                     "'layer1.*', several times for several; '*' is all but the last layer.",
                                                     show_default=False)] = None,
    head: Annotated[int | None, typer.Option(help="With --from: begin with a new last layer of so many outputs, as is done "
                                                  "anyway where the classes are others.", show_default=False)] = None,
    mean: Mean = None,
    std: Std = None,
    validation: Annotated[int, typer.Option(help="Training images to hold out and choose best.safetensors by; "
                                                 "with 0 best is last.")] = 0,
    seed: Annotated[int, typer.Option(help="Of initial weights, batches, augmentation and the split.")] = 0,
    threads: Threads = None,
    device: Device = "cpu",
    save_every: Annotated[str, typer.Option(help="Time between two saves within an epoch, as 90s, 5m or 1h; 0 for none."
                                            )] = "5m",
    on_nonfinite: Annotated[str, typer.Option(help="What to do when a number is not finite any more: stop, or skip the step "
                                                   "and count it.")] = "stop",
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default a new one in runs/.",
                                             show_default=False)] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder, with its settings.",
                                                show_default=False)] = None,
):
    """Train a network and write a run: config.toml, metrics.jsonl, weights, curves.png."""
    from minires import arguments
    from minires.evaluation import evaluated
    from minires.losses import CrossEntropyLoss
    from minires.models.own import absolute
    from minires.training.recipes import make_recipe, parse_changes, run_of
    from minires.training.run import Settings, begin_run, build_run, read_config
    from minires.training.stopping import Stopped

    use_threads(threads)
    save_every, source = arguments.seconds("--save-every", save_every), None
    if resume is not None:
        resume = arguments.path("--resume", resume)
        given = [name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"]
        refused = [name for name in given if name not in ("resume", "threads", "device", "save_every")]
        if refused:
            option = next(parameter.opts[0] for parameter in context.command.params if parameter.name == refused[0])
            raise UserError(f"{option} cannot be combined with --resume: a resumed run keeps "
                            f"the settings in {resume}/config.toml")
        settings, folder = read_config(resume), resume
    else:
        run = run_of(recipe, dataset, model=model, batch_size=batch_size, epochs=epochs)
        data_dir = None if data_dir is None else str(arguments.path("--data-dir", data_dir).absolute())
        out = None if out is None else arguments.path("--out", out)
        if dataset not in ("shapes", "cifar10") and arguments.path("--dataset", dataset).is_dir():
            dataset = str(arguments.path("--dataset", dataset).absolute())  # so that the run can be resumed from anywhere
        chosen = make_recipe(recipe, lr, weight_decay, **parse_changes(changes))
        settings = Settings(absolute(run["model"]), dataset, recipe, chosen, run["epochs"], run["batch_size"], seed,
                            validation, shortcut, data_dir, on_nonfinite, {} if stem is None else {"stem": stem}, size,
                            freeze=tuple(freeze or ()))
        settings, source = _begin_from(settings, start, model, head, mean, std)
        folder = None
    trainer, card = build_run(settings, folder, device, save_every=save_every, source=source, new_head=head is not None)
    _require_head(head, card)
    if device == "cpu":
        importlib.import_module("minires.backends.cpu")  # a back end that refuses does so before a run's folder is made
    if resume is not None:
        trainer.restore()
        if trainer.epoch >= settings.epochs:
            raise UserError(f"the run in {resume} is complete after {trainer.epoch} epochs: nothing is left to resume")
    else:
        folder = begin_run(trainer, settings, card, out)
    typer.echo(f"{settings.model} on {settings.dataset}: {len(trainer.train.dataset):,} training and "
               f"{len(trainer.test.dataset):,} test images, recipe {settings.recipe_name}, run {folder}")
    try:
        rows = trainer.fit(settings.epochs)
    except KeyboardInterrupt as stop:
        done = f"{trainer.epoch} of {settings.epochs} epochs"
        if isinstance(stop, Stopped):
            done += f" and {trainer.step} steps of the next, all saved" if trainer.step else ", all saved"
        typer.echo(f"minires: stopped after {done}: go on with minires train --resume {folder}", err=True)
        raise typer.Exit(128 + stop.number if isinstance(stop, Stopped) else 130) from None
    over = ""
    if settings.recipe.tta != "none":
        with trainer.optimiser.averaged():
            score = evaluated(trainer.model, CrossEntropyLoss(), trainer.test, device, settings.recipe.tta)
        over = f", {score.accuracy:.2%} over views ({settings.recipe.tta})"
    typer.echo(f"test accuracy {rows[-1]['test_accuracy']:.2%} after {len(rows)} epochs{over}; weights, metrics and "
               f"curves.png are in {folder}")


def _begin_from(settings, start, model, head, mean, std):
    """(settings, source): the settings completed by what the weights in `start` say, and (network, card) of them, or None.

    model: the name that was given, if any. The weights' network, statistics and size of pictures are taken over.
    UserError for options that go with --from only.
    """
    if start is None:
        for name, value in (("head", head), ("mean", mean), ("std", std)):
            if value is not None:
                raise UserError(f"--{name} {value} is for training that begins from weights: give them with --from, or "
                                "leave it out")
        return settings, None
    from minires.data import has_pictures
    from minires.evaluation import open_checkpoint
    from minires.training.card import weights_file

    start = weights_file(start)
    network, card = open_checkpoint(start, model, settings.shortcut, mean, std, settings.options.get("stem"))
    size = card.image_size if settings.size is None and has_pictures(settings.dataset) else settings.size
    return replace(settings, model=card.model, shortcut=card.shortcut, options=card.options, size=size, mean=card.mean,
                   std=card.std, start=str(start.absolute())), (network, card)


def _require_head(head, card):
    """UserError where a new last layer was to have another number of outputs than the data has classes."""
    if head is not None and head != card.num_classes:
        raise UserError(f"--head {head} does not fit the data, which has {card.num_classes} classes: give that number, or "
                        "leave it out")
