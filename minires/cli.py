"""The command line: minires train | eval | predict | export | summary | plan | gradcheck | xray | exercise | study | plot |
bench | warmup | doctor.

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
from minires.commands.evaluate import evaluate
from minires.commands.exercise import exercise
from minires.commands.export import export
from minires.commands.gradcheck import gradcheck
from minires.commands.options import CHECKPOINT, DataDir, Device, Mean, Shortcut, Std, Stem, Threads, use_threads
from minires.commands.plan import plan
from minires.commands.plot import plot
from minires.commands.predict import predict
from minires.commands.study import study
from minires.commands.summary import summary
from minires.commands.tune import begin_from, require_head
from minires.commands.warmup import warmup
from minires.commands.xray import xray
from minires.errors import UserError

app = typer.Typer(help="A from-scratch, autograd-free ResNet engine.", no_args_is_help=True, add_completion=False,
                  pretty_exceptions_enable=False)
_UsageError = typer.BadParameter.__base__  # typer shows this class under no name of its own


@app.command()
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
    from minires.losses import CrossEntropyLoss
    from minires.models.own import absolute
    from minires.plan import compile
    from minires.training.metrics import evaluate as score_of
    from minires.training.recipes import make_recipe, parse_changes, run_of
    from minires.training.run import Settings, begin_run, build_run, read_config
    from minires.training.stopping import Stopped
    from minires.training.views import over_views

    use_threads(threads)
    save_every, source = arguments.seconds("--save-every", save_every), None
    if resume is not None:
        resume = arguments.path("--resume", resume)
        given = [name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"]
        refused = [name for name in given if name not in ("resume", "threads", "device", "save_every")]
        if refused:
            option = {"start": "from"}.get(refused[0], refused[0].replace("_", "-"))
            raise UserError(f"--{option} cannot be combined with --resume: a resumed run keeps "
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
        settings, source = begin_from(settings, start, model, head, mean, std)
        folder = None
    trainer, card = build_run(settings, folder, device, save_every=save_every, source=source, new_head=head is not None)
    require_head(head, card)
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


app.command("eval")(evaluate)
for command in (predict, summary, export, plan, gradcheck, bench, warmup, doctor, xray):
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
