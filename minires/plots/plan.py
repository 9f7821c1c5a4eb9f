"""Memory over a step: where each value of a plan lies, and for how long."""
from itertools import groupby

from matplotlib.patches import Patch, Rectangle

from minires.backends.listing import names
from minires.plots.derivations import NotebookFigure
from minires.plots.style import COLOURS, QUIET, new_figure, quiet_axes, save_png

MIB = 2**20
KINDS = {"z": ("#7db3d8", "what a convolution writes"), "y": ("#8fd0b5", "another activation"),
         "~": ("#f2cf86", "made again for backward"), "g": ("#eba27c", "gradient"), "d": ("#d9b3cc", "gradient of weights")}
NAMED = 0.018, 0.019  # width and height, of the picture's, from which a value has room for its name


def draw_memory(plan, path=None, title="memory over the step"):
    """Each value of a plan (see `minires.plan.report.Plan`) as a rectangle: the steps it lives, the bytes it lies in.

    Where an operator writes its result in the place of what it reads, the one rectangle goes on as the other.
    Written as a PNG to `path`; without one -> the figure, which a notebook shows.
    """
    known, marks = names(plan.steps, plan.program.inputs)
    count, offsets = len(plan.steps), plan.memory.offsets
    top = max(plan.peak_bytes, 1) / MIB
    figure = NotebookFigure(figsize=(12, 6.2), layout="constrained") if path is None else new_figure(12, 6.2)
    axes = quiet_axes(figure, figure.add_gridspec(1, 1)[0], title, "step", "MiB of the slab", whole=True)
    axes.grid(False)
    axes.set(xlim=(0.5, count + 0.5), ylim=(0, 1.19 * top))
    found = set()
    for array, (first, last) in sorted(_lives(plan).items(), key=lambda each: each[1]):
        name = known.get(array, "")
        kind = "~" if marks[first] == "~" else name[:1] if name[:1] in KINDS else "y"
        found.add(kind)
        left, width = first + 0.5, last - first + 1
        bottom, height = offsets[array] / MIB, array.nbytes / MIB
        axes.add_patch(Rectangle((left, bottom), width, height, facecolor=KINDS[kind][0], edgecolor="white", linewidth=0.7))
        if width > NAMED[0] * count and height > NAMED[1] * top:
            axes.text(left + width / 2, bottom + height / 2, name, ha="center", va="center", color="#222222",
                      fontsize=7.5 if height > 1.5 * NAMED[1] * top else 6)
    axes.axhline(top, color="#222222", linewidth=1, linestyle=(0, (4, 2)))
    axes.text(count + 0.3, 1.005 * top, f"peak {top:.1f} MiB", ha="right", va="bottom", fontsize=9)
    begin = next((index for index, step in enumerate(plan.steps) if step.backward), None)
    if begin is not None:
        axes.axvline(begin + 0.5, color=COLOURS[1], linewidth=1.4)
        for text, side, away in (("forward", "right", -0.6), ("backward", "left", 0.6)):
            axes.text(begin + 0.5 + away, 1.175 * top, text, ha=side, va="top", fontsize=9.5, color=COLOURS[1])
    _stages(axes, plan.steps, 1.085 * top)
    handles = [Patch(facecolor=colour, label=label) for kind, (colour, label) in KINDS.items() if kind in found]
    figure.legend(handles=handles, frameon=False, fontsize=9, ncols=5, loc="outside lower center", borderpad=0.2)
    if path is None:
        return figure
    return save_png(figure, path)


def _lives(plan):
    """{Array: (the step that makes it, the last that reads it)} of what lies in the slab, before another takes its place."""
    first, last = {}, {}
    for index, step in enumerate(plan.steps):
        for array in step.results:
            if array in plan.memory.offsets:
                first[array] = last[array] = index
        for array in step.reads:
            if (array.base or array) in first:
                last[array.base or array] = index
    last.update((array, len(plan.steps) - 1) for array in plan.program.outputs if array in first)
    places = {}
    for array in sorted(first, key=first.get):  # what takes a place at the step that reads it last ends that life before
        other = places.get(plan.memory.offsets[array])
        if other is not None and last[other] == first[array] > first[other]:
            last[other] -= 1
        places[plan.memory.offsets[array]] = array
    return {array: (first[array], last[array]) for array in first}


def _stages(axes, steps, height):
    """Name the parts of the network, by the first word of a layer's name, above the steps that are theirs."""
    runs = [(stage, [index for index, _ in run]) for stage, run in
            groupby(enumerate(steps), lambda each: each[1].layer.split(".")[0])]
    for stage, indices in runs:
        if stage and len(indices) > 0.05 * len(steps):
            axes.plot([indices[0] + 0.7, indices[-1] + 1.3], [height] * 2, color=QUIET, linewidth=1, solid_capstyle="butt")
            axes.text((indices[0] + indices[-1]) / 2 + 1, height, stage, ha="center", va="center", fontsize=8.5, color=QUIET,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 2})
