"""The loss around trained weights: a curve along one direction, contours over two."""
import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from minires.plots.style import COLOURS, QUIET, new_figure, quiet_axes, save_png

PLAIN = FuncFormatter(lambda value, place: f"{value:g}")
HIGHEST = 1e3  # times the least loss: what is above is drawn as this, so that the valley keeps its contours


def draw_landscapes(curves, surfaces, path):
    """Loss slices of several networks, to a PNG at `path`.

    curves, surfaces: {name: Landscape along one, over two directions} of `minires.study.landscape`, the same names. All
    surfaces share one logarithmic scale; white is where the network overflows.
    """
    columns = min(len(surfaces), 3)
    rows = -(-len(surfaces) // columns)
    figure = new_figure(5.2 + 4.3 * columns, 4.3 * rows)
    left, right = figure.add_gridspec(1, 2, width_ratios=(4.8, 4.3 * columns))
    _draw_curves(figure, left, curves)
    grid = right.subgridspec(rows, columns)
    finite = np.concatenate([part.loss[np.isfinite(part.loss)] for part in surfaces.values()])
    least, most = max(finite.min(), 1e-6), min(finite.max(), HIGHEST * finite.min())
    levels = np.geomspace(least * 0.999, max(most, least * 1.01), 24)
    panels = []
    for index, (name, surface) in enumerate(surfaces.items()):
        axes = quiet_axes(figure, grid[divmod(index, columns)], name, "first direction", "second direction", ticks=5)
        axes.grid(False)
        axes.set_aspect("equal")
        heights = np.clip(np.where(np.isfinite(surface.loss), surface.loss, np.nan), levels[0], levels[-1]).T
        panels.append(axes)
        filled = axes.contourf(surface.steps, surface.steps, heights, levels, cmap="viridis", norm="log")
        axes.contour(surface.steps, surface.steps, heights, levels[::2], colors="white", linewidths=0.5, alpha=0.7)
        axes.plot(0, 0, marker="+", color="white", markersize=9, markeredgewidth=1.6)
    bar = figure.colorbar(filled, ax=panels, fraction=0.03, pad=0.02)
    bar.ax.yaxis.set_major_locator(FixedLocator(_round_numbers(levels[0], levels[-1])))
    bar.ax.yaxis.set_major_formatter(PLAIN)
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.ax.minorticks_off()
    bar.ax.tick_params(length=0, colors=QUIET)
    bar.outline.set_visible(False)
    bar.set_label("loss", color=QUIET)
    save_png(figure, path)


def _draw_curves(figure, position, curves):
    axes = quiet_axes(figure, position, "loss along the first direction", "step, in units of each filter's norm")
    for index, (name, curve) in enumerate(curves.items()):
        loss = np.where(np.isfinite(curve.loss), curve.loss, np.nan)
        axes.plot(curve.steps, loss, color=COLOURS[index % len(COLOURS)], linewidth=1.8, label=name)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(FixedLocator(_round_numbers(low, high)))
    axes.yaxis.set_major_formatter(PLAIN)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False)


def _round_numbers(low, high):
    """1, 2, 5 times powers of ten between the two, or the powers alone where these would be many."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = (1, 2, 5) if high / low < 1e3 else (1,)
    return [tick * 10.0 ** power for power in powers for tick in ticks if low <= tick * 10.0 ** power <= high]
