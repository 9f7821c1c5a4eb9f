"""The curves of a run, and several runs beside each other."""
from pathlib import Path

from matplotlib.ticker import PercentFormatter

from minires.plots.style import COLOURS, QUIET, new_figure, plain, quiet_axes, save_png

SETS = {"train": COLOURS[0], "validation": COLOURS[2], "test": COLOURS[1]}


def _epochs(figure, position, title, ticks=8):
    return quiet_axes(figure, position, title, "epoch", ticks=ticks, whole=True)


def _line(axes, rows, key, **style):
    epochs = [row["epoch"] for row in rows]
    marker = {"marker": "o", "markersize": 4} if len(rows) <= 15 else {}  # so that a run of one epoch is seen
    axes.plot(epochs, [row[key] for row in rows], linewidth=1.8, solid_capstyle="round", **marker, **style)


def _as_percentages(axes):
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    axes.set_ylim(top=min(1.0, axes.get_ylim()[1]) + 0.01)


def draw_curves(rows, path):
    """Loss, accuracy and learning rate over the epochs of one run: `rows` of its metrics.jsonl, to a PNG at `path`."""
    figure = new_figure(11, 3.9)
    grid = figure.add_gridspec(1, 3, width_ratios=(5, 5, 3))
    loss, accuracy, rate = (_epochs(figure, grid[0], "loss"), _epochs(figure, grid[1], "accuracy"),
                            _epochs(figure, grid[2], "learning rate", ticks=5))
    sets = [name for name in SETS if f"{name}_loss" in rows[-1]]
    for name in sets:
        _line(loss, rows, f"{name}_loss", color=SETS[name], label=name)
        _line(accuracy, rows, f"{name}_accuracy", color=SETS[name], label=f"{name}  {rows[-1][f'{name}_accuracy']:.2%}")
    _line(rate, rows, "lr", color=QUIET)
    loss.set_ylim(bottom=0)
    rate.set_ylim(bottom=0)
    _as_percentages(accuracy)
    loss.legend(frameon=False)
    accuracy.legend(frameon=False, loc="lower right")
    save_png(figure, path)


def draw_comparison(runs, path):
    """Loss and accuracy of several runs, test solid and train thin and dashed, to a PNG at `path`.

    runs: {name: rows of metrics.jsonl}, best shown for up to 7 runs.
    """
    figure = new_figure(11, 4.6)
    grid = figure.add_gridspec(1, 2)
    loss, accuracy = _epochs(figure, grid[0], "loss"), _epochs(figure, grid[1], "accuracy")
    for index, (name, rows) in enumerate(runs.items()):
        colour = COLOURS[index % len(COLOURS)]
        for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
            axes.plot([row["epoch"] for row in rows], [row[f"train_{quantity}"] for row in rows], color=colour,
                      linewidth=1, linestyle=(0, (4, 2)), alpha=0.7)
        _line(loss, rows, "test_loss", color=colour)
        _line(accuracy, rows, "test_accuracy", color=colour, label=f"{plain(name)}   {rows[-1]['test_accuracy']:.2%}")
    loss.set_ylim(bottom=0)
    _as_percentages(accuracy)
    loss.plot([], [], color=QUIET, linewidth=1.8, label="test")
    loss.plot([], [], color=QUIET, linewidth=1, linestyle=(0, (4, 2)), label="train")
    loss.legend(frameon=False)
    accuracy.legend(frameon=False, loc="lower right", title="test accuracy, last epoch", alignment="left")
    save_png(figure, Path(path))
