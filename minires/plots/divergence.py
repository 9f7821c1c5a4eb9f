"""How far two trainings are apart: units of the last place by layer, a colour a step."""
import math

from matplotlib import colormaps

from minires.plots.style import COLOURS, QUIET, new_figure, quiet_axes, save_png

TITLES = {"forward": "outputs", "backward": "gradients, backwards through the network", "update": "weights and statistics",
          "metrics": "metrics, by epoch", "weights": "weights and statistics", "optimiser": "state of the optimiser"}
LABELS = 16  # of an axis


def draw_divergence(gaps, names, tolerance, path):
    """Units of the last place along the network, a panel for outputs, gradients and weights, to a PNG at `path`.

    gaps: of `minires.study.divergence`, in the order of computing; names: of the two sides; tolerance: drawn as a line.
    A panel's tensors stand in the order in which a step computes them; of runs, metrics stand by epoch. Equal tensors
    lie on the floor, at 0; infinite distances are triangles at the top.
    """
    phases = list(dict.fromkeys(gap.key.phase for gap in gaps))
    figure = new_figure(12, 3.0 * len(phases) + 0.5)
    figure.suptitle(f"{names[0]} and {names[1]}: how far apart, in units of the last place (dashed: {tolerance:g})", x=0.01,
                    ha="left", fontsize=12, fontweight="bold")
    grid = figure.add_gridspec(len(phases), 1)
    most = max([tolerance, 1.0, *(gap.ulps for gap in gaps if math.isfinite(gap.ulps))])
    ceiling = 10 * most if any(math.isinf(gap.ulps) for gap in gaps) else most
    steps = sorted({gap.step for gap in gaps if gap.key.phase == phases[0]})
    for row, phase in enumerate(phases):
        axes = quiet_axes(figure, grid[row], TITLES[phase], whole=True)
        found = [gap for gap in gaps if gap.key.phase == phase]
        if phase == "metrics":
            for index, key in enumerate(dict.fromkeys(gap.key for gap in found)):
                part = [gap for gap in found if gap.key == key]
                _draw(axes, [gap.step for gap in part], part, ceiling, COLOURS[index % len(COLOURS)], str(key), "-")
        else:
            keys = list(dict.fromkeys(gap.key for gap in found))
            for step in steps if phase in ("forward", "backward", "update") else [found[0].step]:
                part = [gap for gap in found if gap.step == step]
                colour = colormaps["viridis"](0.88 * steps.index(step) / max(len(steps) - 1, 1)) if step in steps else QUIET
                _draw(axes, [keys.index(gap.key) for gap in part], part, ceiling, colour, f"step {step}",
                      "-" if phase == "forward" else "")
            marked = range(0, len(keys), -(-len(keys) // LABELS))
            axes.set_xticks(marked, [str(keys[index]) for index in marked], rotation=30, ha="right", fontsize=8)
            axes.set_xlim(-0.5, len(keys) - 0.5)
        axes.axhline(tolerance, color=QUIET, linewidth=1, linestyle=(0, (4, 2)))
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(-0.3, 3 * ceiling)
        if row == 0:
            axes.legend(frameon=False, ncols=8, loc="lower right", bbox_to_anchor=(1, 0.98), fontsize=8, borderpad=0)
    save_png(figure, path)


def _draw(axes, places, gaps, ceiling, colour, label, line):
    axes.plot(places, [min(gap.ulps, ceiling) for gap in gaps], color=colour, linewidth=1.2, linestyle=line, marker="o",
              markersize=3, label=label)
    endless = [place for place, gap in zip(places, gaps, strict=True) if math.isinf(gap.ulps)]
    axes.plot(endless, [ceiling] * len(endless), color=colour, linestyle="", marker="^", markersize=7)
