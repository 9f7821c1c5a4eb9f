"""The command `minires xray`."""
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from minires.commands.options import DataDir, Mean, Model, Shortcut, Std, Stem, Threads, use_threads
from minires.errors import UserError


def xray(
    target: Annotated[str, typer.Argument(metavar="RUN|FILE|MODEL", help="A run's folder, a file of weights, or a model's "
                                          "name such as resnet56.")],
    twin: Annotated[str | None, typer.Option(metavar="RUN|MODEL", help="What to hold it against; by default its plain twin, "
                                             "with the same weights.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the page; by default xray/ in the run, or xray/MODEL.",
                                             show_default=False)] = None,
    dataset: Annotated[str | None, typer.Option(help="shapes, cifar10, or a folder; by default the run's, else shapes.",
                                                show_default=False)] = None,
    data_dir: DataDir = None,
    images: Annotated[int, typer.Option(help="Images that gradients are taken on.")] = 32,
    train_steps: Annotated[int, typer.Option(help="Train a MODEL and its twin for so many steps of 128 images.")] = 0,
    model: Model = None,
    shortcut: Shortcut = None,
    stem: Stem = None,
    mean: Mean = None,
    std: Std = None,
    seed: Annotated[int, typer.Option(help="Of a model's weights, and of the images.")] = 0,
    threads: Threads = None,
):
    """See where gradients come from: identity or branch, by path length, against depth; cut shortcuts. Writes a page."""
    from minires.models.own import short
    from minires.study.xray import Order, write_xray
    from minires.study.xray import xray as measure
    from minires.study.xray.page import require_folder
    from minires.study.xray.subject import is_run

    use_threads(threads)
    opened = None
    if Path(target).is_file():
        from minires.evaluation import open_checkpoint

        opened, shortcut = open_checkpoint(target, model, shortcut, mean, std, stem), None
    else:
        said = {"model": model, "stem": stem, "mean": mean, "std": std}
        given = [name for name, value in said.items() if value is not None]
        if given:
            raise UserError(f"--{given[0]} is for a file of weights that does not say it, and {target} is none: leave it "
                            "out")
    order = Order(target, twin, dataset, data_dir, images, train_steps, seed, shortcut, opened)
    of_run = opened is None and is_run(target)
    if out is None:
        name = Path(target).stem if opened else short(target)
        out = Path(target) / "xray" if of_run else Path("xray") / name
    require_folder(out)
    with _shown() as progress:
        report = measure(order, progress)
        with progress("drawing figures", None):
            page = write_xray(report, out)
    for network in report["networks"]:
        found = network["moments"][-1]["findings"]
        typer.echo(f"{network['name']}, {network['moments'][-1]['label']}: gradient norm of the first block over the last "
                   f"{found['gradient_ratio']:.3g}; parts add up to {found['error']:.0e}")
    typer.echo(f"X-ray of {' and '.join(network['name'] for network in report['networks'])} in {report['seconds']:.0f} s: "
               f"{page}")


@contextmanager
def _shown():
    """A progress for `minires.study.xray.xray`: a bar for each part on a terminal, plain lines elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("left"))
    with Progress(*columns, console=console, transient=True, disable=not console.file.isatty()) as bar:
        @contextmanager
        def progress(description, total):
            if not console.file.isatty():
                console.print(description, markup=False)
            task = bar.add_task(description, total=total)
            try:
                yield lambda: bar.advance(task)
            finally:
                bar.remove_task(task)

        yield progress
