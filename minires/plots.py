"""Every picture: the curves of a run, and several runs beside each other. The only file that knows matplotlib."""
import io
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from minires.errors import UserError
from minires.files import write_atomically

# Okabe & Ito's colours, told apart by every kind of eye, in an order that keeps neighbours far apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SETS = {"train": COLOURS[0], "validation": COLOURS[2], "test": COLOURS[1]}
_QUIET = "#5a5a5a"


def _axes(figure, position, title, ticks=8):
    axes = figure.add_subplot(position)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("epoch", color=_QUIET)
    axes.grid(True, color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_QUIET, length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b8b8b8")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=ticks))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=ticks))
    return axes


def _line(axes, rows, key, **style):
    epochs = [row["epoch"] for row in rows]
    marker = {"marker": "o", "markersize": 4} if len(rows) <= 15 else {}  # so that a run of one epoch is seen
    axes.plot(epochs, [row[key] for row in rows], linewidth=1.8, solid_capstyle="round", **marker, **style)


def _as_percentages(axes):
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    axes.set_ylim(top=min(1.0, axes.get_ylim()[1]) + 0.01)


def _save(figure, path):
    FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format="png")
    try:
        write_atomically(path, picture.getvalue())
    except OSError as error:
        raise UserError(f"the picture {path} cannot be written ({error.strerror}): choose another file name") from error


def draw_curves(rows, path):
    """Loss, accuracy and learning rate over the epochs of one run: `rows` of its metrics.jsonl, to a PNG at `path`."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    grid = figure.add_gridspec(1, 3, width_ratios=(5, 5, 3))
    loss, accuracy, rate = (_axes(figure, grid[0], "loss"), _axes(figure, grid[1], "accuracy"),
                            _axes(figure, grid[2], "learning rate", ticks=5))
    sets = [name for name in SETS if f"{name}_loss" in rows[-1]]
    for name in sets:
        _line(loss, rows, f"{name}_loss", color=SETS[name], label=name)
        _line(accuracy, rows, f"{name}_accuracy", color=SETS[name], label=f"{name}  {rows[-1][f'{name}_accuracy']:.2%}")
    _line(rate, rows, "lr", color=_QUIET)
    loss.set_ylim(bottom=0)
    rate.set_ylim(bottom=0)
    _as_percentages(accuracy)
    loss.legend(frameon=False)
    accuracy.legend(frameon=False, loc="lower right")
    _save(figure, path)


def draw_comparison(runs, path):
    """Loss and accuracy of several runs, test solid and train thin and dashed, to a PNG at `path`.

    runs: {name: rows of metrics.jsonl}, best shown for up to 7 runs.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    grid = figure.add_gridspec(1, 2)
    loss, accuracy = _axes(figure, grid[0], "loss"), _axes(figure, grid[1], "accuracy")
    for index, (name, rows) in enumerate(runs.items()):
        colour = COLOURS[index % len(COLOURS)]
        for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
            axes.plot([row["epoch"] for row in rows], [row[f"train_{quantity}"] for row in rows], color=colour,
                      linewidth=1, linestyle=(0, (4, 2)), alpha=0.7)
        _line(loss, rows, "test_loss", color=colour)
        _line(accuracy, rows, "test_accuracy", color=colour, label=f"{name}   {rows[-1]['test_accuracy']:.2%}")
    loss.set_ylim(bottom=0)
    _as_percentages(accuracy)
    loss.plot([], [], color=_QUIET, linewidth=1.8, label="test")
    loss.plot([], [], color=_QUIET, linewidth=1, linestyle=(0, (4, 2)), label="train")
    loss.legend(frameon=False)
    accuracy.legend(frameon=False, loc="lower right", title="test accuracy, last epoch", alignment="left")
    _save(figure, Path(path))
