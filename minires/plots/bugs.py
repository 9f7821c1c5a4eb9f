"""Loss curves with a bug, each beside the clean one: what training shows of a mistake, and what it hides."""
import math

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from minires.plots.style import COLOURS, QUIET, new_figure, quiet_axes, save_png

COLUMNS = 6
CLEAN = "#b8b8b8"


def draw_bugs(panels, verdicts, path):
    """A small panel for each bug: its loss curve over the clean ones, coloured by what one would say of it.

    panels: dicts with name, verdict, losses (a curve, cut where it is not finite) and clean (curves of the same length);
    verdicts: all verdicts there are, from harmless to hopeless, at most 5; to a PNG at `path`.
    """
    colours = dict(zip(verdicts, (COLOURS[2], COLOURS[4], COLOURS[0], COLOURS[1], COLOURS[3]), strict=False))
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(max(2.7 * columns, 7.5), 1.75 * rows + 1.2)
    grid = figure.add_gridspec(rows, columns)
    for index, panel in enumerate(panels):
        _panel(figure, grid[index // columns, index % columns], panel, colours[panel["verdict"]])
    used = [name for name in verdicts if any(panel["verdict"] == name for panel in panels)]
    handles = [Line2D([], [], color=colours[name], linewidth=2.2, label=name) for name in used]
    handles.append(Patch(color=CLEAN, label="clean, three seeds"))
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 6 if columns > 2 else 3), frameon=False,
                  title="training loss over the steps, with each bug", alignment="left",
                  title_fontproperties={"weight": "bold"})
    save_png(figure, path)


def _panel(figure, position, panel, colour):
    axes = quiet_axes(figure, position, "", ticks=3, whole=True)
    axes.set_title(panel["name"], loc="left", fontsize=7.5, fontweight="bold", color="black")
    axes.tick_params(labelsize=7)
    clean = panel["clean"]
    for curve in clean:
        axes.plot(*_steps(curve, panel["stride"]), color=CLEAN, linewidth=2.4, solid_capstyle="round")
    top = 1.25 * max(curve[0] for curve in clean)
    steps, losses = _steps([min(loss, top) for loss in panel["losses"]], panel["stride"])
    # What leaves the panel runs along its upper edge, drawn whole; a cross is where the loss stopped being a number.
    axes.plot(steps, losses, color=colour, linewidth=1.6, solid_capstyle="round", clip_on=False)
    if len(losses) < len(clean[0]):
        axes.plot(steps[-1:], losses[-1:], color=colour, marker="x", markersize=6, markeredgewidth=2, clip_on=False)
    axes.set_xlim(0, panel["stride"] * len(clean[0]))
    axes.set_ylim(0, top)
    axes.text(0.97, 0.93, panel["label"], transform=axes.transAxes, ha="right", va="top", fontsize=7.5, color=QUIET)


def _steps(curve, stride):
    return [stride * (index + 0.5) for index in range(len(curve))], curve
