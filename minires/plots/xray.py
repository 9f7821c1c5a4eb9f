"""The figures of the residual X-ray. Each takes networks as `minires.study.xray.xray` reports them.

shown: [(name, moment), ...], the X-rayed network first, then its twin; each function writes one PNG at `path`.
"""
from math import comb

import matplotlib
from matplotlib.ticker import PercentFormatter

from minires.plots.style import COLOURS, QUIET, new_figure, quiet_axes, save_png

IDENTITY, BRANCH = COLOURS[2], COLOURS[1]
LAYERS, BLOCKS = "layer, from the input to the output", "block, from the input to the output"


def _blocks(figure, position, title, moment, ylabel=""):
    """Axes with the blocks along x, and a line where a stage begins."""
    axes = quiet_axes(figure, position, title, BLOCKS, ylabel, whole=True)
    names = [block["block"] for block in moment["blocks"]]
    _stages(axes, [name.split(".")[0] for name in names])
    return axes


def _stages(axes, stages):
    for index in range(1, len(stages)):
        if stages[index] != stages[index - 1]:
            axes.axvline(index + 0.5, color="#d0d0d0", linewidth=1, zorder=0)


def _line(axes, values, colour, label=None, **style):
    places = [index for index, value in enumerate(values, 1) if value is not None]
    axes.plot(places, [values[index - 1] for index in places], color=colour, label=label,
              **{"linewidth": 1.8, "marker": "o", "markersize": 3.5, **style})


def _spaced(figure):
    """Rows apart, so that an axis' label and the title below it do not meet."""
    figure.get_layout_engine().set(h_pad=0.12)
    return figure


def _legend(axes, **where):
    axes.legend(frameon=False, fontsize=9, **where)


def _log(axes):
    axes.set_yscale("log")
    axes.grid(True, which="minor", axis="y", color="#f2f2f2", linewidth=0.5)


def draw_gradients(shown, path):
    """The norms of dL/dx at every block and of dL/dweight at every layer, against depth."""
    figure = new_figure(11, 4.2)
    grid = figure.add_gridspec(1, 2)
    left = _blocks(figure, grid[0], "gradient at each block's input, |dL/dx|", shown[0][1])
    right = quiet_axes(figure, grid[1], "gradient of each layer's weight, |dL/dweight|", LAYERS, whole=True)
    for colour, (name, moment) in zip(COLOURS, shown, strict=False):
        _line(left, [block["whole"] for block in moment["blocks"]], colour, name)
        # 1x1 projections lie beside the depth, not along it.
        layers = [norm for layer, norm in moment["layers"].items() if ".shortcut." not in layer]
        _line(right, layers, colour, name, markersize=2.5)
    for axes in (left, right):
        _log(axes)
        _legend(axes)
    save_png(figure, path)


def draw_parts(shown, path):
    """What came through the identity and what through the branch, at every block: norms, cosine and share."""
    name, moment = shown[0]
    blocks = moment["blocks"]
    figure = new_figure(11, 4.2)
    grid = figure.add_gridspec(1, 2)
    norms = _blocks(figure, grid[0], f"{name}: norms of the two parts of dL/dx", moment)
    _line(norms, [block["whole"] for block in blocks], QUIET, "whole", linestyle=(0, (4, 2)), marker="")
    _line(norms, [block["identity"] or None for block in blocks], IDENTITY, "through the identity")
    _line(norms, [block["branch"] for block in blocks], BRANCH, "through the branch")
    _log(norms)
    _legend(norms)
    share = _blocks(figure, grid[1], f"{name}: the identity's share, and the angle", moment)
    places = range(1, len(blocks) + 1)
    share.bar(places, [block["share"] for block in blocks], color=IDENTITY, alpha=0.35, width=0.8,
              label="identity's share of dL/dx")
    _line(share, [block["cosine"] for block in blocks], COLOURS[0], "cosine between the parts")
    share.axhline(0, color="#b8b8b8", linewidth=1)
    share.set_ylim(min(-0.15, 1.15 * min(block["cosine"] or 0 for block in blocks)), 1.3)
    share.legend(frameon=False, fontsize=9, loc="upper left", ncols=2)
    save_png(figure, path)


def draw_paths(shown, path):
    """The gradient at the stem's output by the number of branches on its way."""
    name, moment = shown[0]
    paths = moment["paths"]
    n = len(paths["norm"]) - 1
    lengths = range(n + 1)
    figure = new_figure(11, 4.2)
    grid = figure.add_gridspec(1, 2)
    share = quiet_axes(figure, grid[0], f"{name}: share of the gradient by path length",
                       f"branches passed, of {n}", whole=True)
    share.bar(lengths, paths["share"], color=COLOURS[0], alpha=0.8, width=0.85, label="of the gradient")
    share.plot(lengths, [comb(n, k) / 2 ** n for k in lengths], color=QUIET, linewidth=1.4, linestyle=(0, (4, 2)),
               label=f"of the 2^{n} paths")
    share.axhline(0, color="#b8b8b8", linewidth=1)
    share.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    _legend(share)
    norm = quiet_axes(figure, grid[1], "norm of the gradient by path length", f"branches passed, of {n}", whole=True)
    norm.plot(lengths, paths["norm"], color=COLOURS[0], linewidth=1.8, marker="o", markersize=3.5,
              label="of all paths of a length together")
    norm.plot(lengths, [value / count for value, count in zip(paths["norm"], paths["count"], strict=True)],
              color=COLOURS[3], linewidth=1.8, marker="o", markersize=3.5, label="divided by their number")
    _log(norm)
    _legend(norm)
    save_png(figure, path)


def draw_lesions(shown, path):
    """The change of the loss by each cut: a block's branch, and its shortcut."""
    figure = new_figure(11, 4.2)
    cuttable = [(name, moment) for name, moment in shown if _is_residual(moment)]
    grid = figure.add_gridspec(1, 2 if cuttable else 1)
    branch = _blocks(figure, grid[0], "loss change when a block's branch is dropped", shown[0][1])
    panels = [(branch, "branch", shown)]
    if cuttable:
        shortcut = _blocks(figure, grid[1], "loss change when a block's shortcut is cut", shown[0][1])
        panels.append((shortcut, "shortcut", cuttable))
    for axes, part, networks in panels:
        width = 0.8 / len(networks)
        for index, (name, moment) in enumerate(networks):
            changes = _changes(moment, part)
            colour = COLOURS[[other for other, _ in shown].index(name)]
            places = [place + (index - (len(networks) - 1) / 2) * width for place in range(1, len(changes) + 1)]
            axes.bar(places, changes, color=colour, width=width, label=name)
        axes.axhline(0, color="#b8b8b8", linewidth=1)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.12 * (high - low))  # room for the legend
        _legend(axes, loc="upper right")
    save_png(figure, path)


def _is_residual(moment):
    return any(branch["ratio"] is not None for branch in moment["branches"])


def _changes(moment, part):
    return [cut["change"] for cut in moment["lesions"]["lesions"] if cut["part"] == part]


def draw_activity(shown, path):
    """The forward pass: what blocks and layers put out, branch beside shortcut, dead ReLUs, rank of the branches."""
    figure = _spaced(new_figure(11, 10.5))
    grid = figure.add_gridspec(3, 2)
    first = shown[0][1]
    mean = _blocks(figure, grid[0, 0], "mean of each block's output", first)
    std = _blocks(figure, grid[0, 1], "standard deviation of each block's output", first)
    response = quiet_axes(figure, grid[1, 0], "responses: standard deviation after each normalisation", LAYERS, whole=True)
    ratio = _blocks(figure, grid[1, 1], "what a branch adds, rms F(x) / rms S(x)", first)
    dead = quiet_axes(figure, grid[2, 0], "channels of each ReLU that never fire", LAYERS, whole=True)
    rank = _blocks(figure, grid[2, 1], "effective rank of the branch, of its channels", first)
    for colour, (name, moment) in zip(COLOURS, shown, strict=False):
        activity, branches = moment["activity"], moment["branches"]
        outputs = [layer for layer in activity if layer["layer"].endswith(".relu")]
        _line(mean, [layer["mean"] for layer in outputs], colour, name)
        _line(std, [layer["std"] for layer in outputs], colour, name)
        normalised = [layer for layer in activity if layer["kind"] == "BatchNorm2d" and ".shortcut." not in layer["layer"]]
        _line(response, [layer["std"] for layer in normalised], colour, name, markersize=2.5)
        _line(dead, [layer["dead"] for layer in activity if layer["kind"] == "ReLU"], colour, name, markersize=2.5)
        if _is_residual(moment):
            _line(ratio, [branch["ratio"] for branch in branches], colour, name)
        _line(rank, [branch["effective_rank"] / branch["channels"] for branch in branches], colour, name)
    for axes in (mean, std, response, ratio):
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    for axes in (dead, rank):
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    rank.set_ylim(0, 1.02)
    dead.set_ylim(-0.005, max(0.05, 1.15 * dead.get_ylim()[1]))
    for axes in (mean, std, response, dead, rank):
        _legend(axes)
    if any(_is_residual(moment) for _, moment in shown):
        _legend(ratio)
    else:
        ratio.text(0.5, 0.5, "plain blocks have no S(x)", transform=ratio.transAxes, ha="center", color=QUIET)
    save_png(figure, path)


def draw_training(networks, path):
    """The gradient against depth along training, and the training loss. networks: those with more than one record."""
    figure = _spaced(new_figure(11, 8))
    grid = figure.add_gridspec(2, 2)
    colours, unit = matplotlib.colormaps["viridis"], networks[0]["unit"]
    ratio = quiet_axes(figure, grid[1, 0], "|dL/dx| at the first block over that at the last", unit, whole=True)
    loss = quiet_axes(figure, grid[1, 1], "training loss", unit, whole=True)
    for place, network in enumerate(networks[:2]):
        records, colour = network["along_training"], COLOURS[place]
        above = grid[0, place] if len(networks) > 1 else grid[0, :]
        axes = _blocks(figure, above, f"{network['name']}: |dL/dx| at each block's input", network["moments"][0])
        for index, record in enumerate(records):
            labelled = index in (0, len(records) - 1) or len(records) <= 5
            _line(axes, list(record["blocks"].values()), colours(0.9 * index / max(1, len(records) - 1)),
                  f"{network['unit']} {record['at']}" if labelled else None, marker="", linewidth=1.5)
        ends = [list(record["blocks"].values()) for record in records]
        ratio.plot([record["at"] for record in records], [values[0] / values[-1] for values in ends], color=colour,
                   linewidth=1.8, marker="o", markersize=4, label=network["name"])
        if network["losses"]:
            loss.plot(*zip(*network["losses"], strict=True), color=colour, linewidth=1.4, label=network["name"],
                      marker="o" if len(network["losses"]) <= 15 else "", markersize=4)
        _log(axes)
        _legend(axes)
    _log(ratio)
    _legend(ratio)
    if loss.lines:
        _legend(loss)
    else:  # of weights alone nothing is known of their training
        loss.set_visible(False)
    save_png(figure, path)
