"""The command line: minires train | eval | predict | summary | plan | gradcheck | xray | exercise | study | plot | bench |
warmup | doctor.

Exit codes: 0 done, 1 a fault of ours, a gradient that is wrong or a mistake that `doctor RUN` found, 2 wrong input, 128 and
the signal's number stopped by it (130 by Ctrl-C). Each command imports what it needs when it runs, so that `minires --help`
is quick.
"""
import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from minires.bench.command import bench
from minires.commands.doctor import doctor
from minires.commands.exercise import exercise
from minires.commands.gradcheck import gradcheck
from minires.commands.options import DataDir, Device, Shortcut, Threads, use_threads
from minires.commands.plan import plan
from minires.commands.plot import plot
from minires.commands.study import study
from minires.commands.warmup import warmup
from minires.commands.xray import xray
from minires.errors import UserError

app = typer.Typer(help="A from-scratch, autograd-free ResNet engine.", no_args_is_help=True, add_completion=False,
                  pretty_exceptions_enable=False)
_UsageError = typer.BadParameter.__base__  # typer shows this class under no name of its own


@app.command()
def train(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="resnet20 32 44 56 110, plain20 .. plain110, resnet18 34 50 101 152, or "
                                                   "speedrun; by default the recipe's, else resnet20.",
                                              show_default=False)] = None,
    dataset: Annotated[str, typer.Option(help="shapes, cifar10, or a folder.")] = "shapes",
    data_dir: DataDir = None,
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
    from minires.losses import CrossEntropyLoss
    from minires.plan import compile
    from minires.training.metrics import evaluate as score_of
    from minires.training.recipes import make_recipe, parse_changes, run_of
    from minires.training.run import Settings, begin_run, build_run, read_config
    from minires.training.stopping import Stopped
    from minires.training.views import over_views

    use_threads(threads)
    save_every = arguments.seconds("--save-every", save_every)
    if resume is not None:
        resume = arguments.path("--resume", resume)
        given = [name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"]
        refused = [name for name in given if name not in ("resume", "threads", "device", "save_every")]
        if refused:
            raise UserError(f"--{refused[0].replace('_', '-')} cannot be combined with --resume: a resumed run keeps "
                            f"the settings in {resume}/config.toml")
        settings, folder = read_config(resume), resume
    else:
        run = run_of(recipe, dataset, model=model, batch_size=batch_size, epochs=epochs)
        data_dir = None if data_dir is None else str(arguments.path("--data-dir", data_dir).absolute())
        out = None if out is None else arguments.path("--out", out)
        if dataset not in ("shapes", "cifar10") and arguments.path("--dataset", dataset).is_dir():
            dataset = str(arguments.path("--dataset", dataset).absolute())  # so that the run can be resumed from anywhere
        chosen = make_recipe(recipe, lr, weight_decay, **parse_changes(changes))
        settings = Settings(run["model"], dataset, recipe, chosen, run["epochs"], run["batch_size"], seed, validation,
                            shortcut, data_dir, on_nonfinite)
        folder = None
    trainer, card = build_run(settings, folder, device, save_every=save_every)
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
            score = score_of(trainer.model, CrossEntropyLoss(), trainer.test, device,
                             over_views(compile(trainer.model), settings.recipe.tta))
        over = f", {score.accuracy:.2%} over views ({settings.recipe.tta})"
    typer.echo(f"test accuracy {rows[-1]['test_accuracy']:.2%} after {len(rows)} epochs{over}; weights, metrics and "
               f"curves.png are in {folder}")


@app.command("eval")
def evaluate(
    checkpoint: Annotated[Path, typer.Option(help="A .safetensors file of a run, or PyTorch's .pth or .th.")],
    dataset: Annotated[str | None, typer.Option(help="By default what the checkpoint was trained on, else cifar10.",
                                                show_default=False)] = None,
    data_dir: DataDir = None,
    records: Annotated[Path | None, typer.Option(help="A file of CIFAR-10 records (.bin), instead of a data set.",
                                                 show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="For a checkpoint that does not name its network.",
                                              show_default=False)] = None,
    shortcut: Shortcut = None,
    mean: Annotated[str | None, typer.Option(help="Of each channel, pixels in [0, 1], as 0.485,0.456,0.406; "
                                                  "for a checkpoint that does not say.", show_default=False)] = None,
    std: Annotated[str | None, typer.Option(help="Likewise.", show_default=False)] = None,
    tta: Annotated[str, typer.Option(help="Views that logits are averaged over: none, mirror, or crops (six passes)."
                                     )] = "none",
    threads: Threads = None,
    device: Device = "cpu",
):
    """Evaluate a checkpoint: loss, accuracy, and the accuracy of each class."""
    from minires.backends import require_device
    from minires.evaluation import open_checkpoint, open_test_set
    from minires.losses import CrossEntropyLoss
    from minires.plan import compile
    from minires.training.metrics import evaluate as score_of
    from minires.training.views import over_views

    use_threads(threads)
    require_device(device)
    network, card = open_checkpoint(checkpoint, model, shortcut, mean, std)
    test = open_test_set(card, dataset, data_dir, records)
    network = network.to(device)
    score = score_of(network, CrossEntropyLoss(), card.loader(test), device, over_views(compile(network), tta))
    width = max(map(len, test.classes))
    for name, accuracy, seen in zip(test.classes, score.class_accuracy, score.seen, strict=True):
        typer.echo(f"{name:{width}}  {accuracy:7.2%}  of {seen:,}" if seen else f"{name:{width}}     none here")
    typer.echo(f"loss {score.loss:.4f}")
    typer.echo(f"accuracy {score.accuracy:.2%} ({score.correct.sum():,} of {score.images:,})")


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Picture files.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights of minires train; by default the newest run's in "
                                                         "runs/.", show_default=False)] = None,
    threads: Threads = None,
):
    """Name what is on pictures: the three most likely classes of each."""
    from minires.evaluation import predict_classes, read_image
    from minires.training.card import load_model
    from minires.training.run import newest_weights

    use_threads(threads)
    if checkpoint is None:
        checkpoint = newest_weights()
        typer.echo(f"using {checkpoint}", err=True)
    network, card = load_model(checkpoint)
    pictures = [read_image(path, card.image_size) for path in images]  # all of them before the first is shown
    for path, (pixels, note) in zip(images, pictures, strict=True):
        best = "   ".join(f"{name} {p:.1%}" for name, p in predict_classes(network, card, pixels)[:3])
        typer.echo(f"{path}: {best}{f'   ({note})' if note else ''}")


@app.command()
def summary(
    model: Annotated[str, typer.Argument(help="A model's name, such as resnet20.")],
    shortcut: Shortcut = None,
    stem: Annotated[str | None, typer.Option(help="cifar or imagenet, for resnet18 to resnet152.",
                                             show_default=False)] = None,
    num_classes: Annotated[int, typer.Option(help="Outputs of the last layer.")] = 10,
    image_size: Annotated[int | None, typer.Option(help="Pixels a side; by default 32, with the imagenet stem 224.",
                                                   show_default=False)] = None,
):
    """List a network's layers: output shapes, parameters, multiply-adds."""
    from rich.console import Console
    from rich.table import Table

    from minires.models import build_model
    from minires.study.summary import summarise

    size = image_size if image_size is not None else 224 if stem == "imagenet" else 32
    layers = summarise(build_model(model, num_classes, shortcut, stem), size)
    table = Table(box=None, pad_edge=False, show_footer=True)
    table.add_column("layer", footer="total", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("output H x W x C", justify="right", no_wrap=True)
    totals = f"{sum(row.parameters for row in layers):,}", f"{sum(row.multiply_adds for row in layers):,}"
    for name, total in zip(("parameters", "multiply-adds"), totals, strict=True):
        table.add_column(name, justify="right", footer=total, no_wrap=True)
    for row in layers:
        shape = " x ".join(map(str, row.output_shape))
        table.add_row(row.name, row.kind, shape, f"{row.parameters:,}" if row.parameters else "",
                      f"{row.multiply_adds:,}" if row.multiply_adds else "")
    console = Console(highlight=False)
    # A pipe has no width of its own, and a table cut off at 80 columns would lose its numbers.
    console.print(table, width=None if console.is_terminal else 120)
    console.print(f"{model} on one {size} x {size} image; convolutions and linear layers are counted", style="dim")


for command in (plan, gradcheck, bench, warmup, doctor, xray):
    app.command()(command)
app.add_typer(exercise, name="exercise")
app.add_typer(plot, name="plot")
app.add_typer(study, name="study")


def main(arguments=None):
    """Run the command line and exit with its code. A user's mistake is one sentence on stderr."""
    try:
        code = app(args=arguments, prog_name="minires", standalone_mode=False)
    except (UserError, _UsageError) as error:
        message = error.format_message() if isinstance(error, _UsageError) else str(error)
        typer.echo(f"minires: error: {message}", err=True)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("minires: stopped", err=True)
        code = 130
    sys.exit(code)
