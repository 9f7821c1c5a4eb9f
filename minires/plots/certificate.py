"""Pictures of proofs: the error of a slope against its step, and the sharpness of a loss along training."""
import numpy as np
from matplotlib.ticker import LogLocator

from minires.plots.style import COLOURS, QUIET, new_figure, quiet_axes, save_png

QUOTIENTS = {"forward": COLOURS[1], "central": COLOURS[0], "complex": COLOURS[2]}
LEAST = 1e-17  # an error of exactly 0 has no place on a logarithmic axis and is drawn here
EXPLANATION = (
    "Shrinking the step removes truncation: the forward quotient's error falls with e, the central one's with e², until "
    "rounding takes over,\nthe 2⁻⁵³ of f that the division by e blows up. Dashed: these three arms, computed from f, f″ and "
    "f‴, not fitted. The complex step\nsubtracts nothing, so that it has no right time to stop; it asks for a layer without "
    "comparisons. Dots at 1e-17 have no error at all."
)


def draw_step_curves(curves, path):
    """The V of each StepCurve: error against step, both logarithmic, to a PNG at `path`.

    curves: {name: minires.study.forward_mode.steps.StepCurve}.
    """
    columns = min(len(curves), 2 if len(curves) in (2, 4) else 3)
    rows = -(-len(curves) // columns)
    figure = new_figure(max(4.6 * columns, 8.6), 3.6 * rows + 1.0)
    grid = figure.add_gridspec(rows, columns)
    for index, (name, curve) in enumerate(curves.items()):
        place = grid[index // columns, index % columns]
        axes = quiet_axes(figure, place, name, "step e", "relative error of the slope" if index % columns == 0 else "")
        axes.set(xscale="log", yscale="log", xlim=(min(curve.steps) / 2, max(curve.steps) * 2), ylim=(LEAST / 4, 30))
        axes.xaxis.set_major_locator(LogLocator(numticks=7))
        axes.yaxis.set_major_locator(LogLocator(numticks=10))
        axes.minorticks_off()
        steps = np.array(curve.steps)
        arms = [curve.rounding / steps]
        if curve.complex is not None:  # a kink inside the largest steps leaves nothing of f'' and f'''
            arms += [size * steps**power for power, size in enumerate(curve.truncation, 1) if size > 1e-8]
        for arm in arms:
            axes.plot(steps, arm, color="#9a9a9a", linewidth=1, linestyle=(0, (4, 3)))
        for kind, colour in QUOTIENTS.items():
            errors = getattr(curve, kind)
            if errors is not None:
                axes.plot(steps, np.maximum(errors, LEAST), color=colour, linewidth=1.6, marker="o", markersize=4,
                          label=f"{kind}: at best {_power(curve.best(kind)[1])}, e = {curve.best(kind)[0]:.0e}")
        axes.legend(frameon=False, fontsize=8, loc="upper center")
        if curve.complex is None:
            axes.text(0.03, 0.04, "no complex step: a comparison inside", transform=axes.transAxes, fontsize=8, color=QUIET)
    figure.supxlabel(EXPLANATION, fontsize=8, color=QUIET, x=0.02, ha="left")
    save_png(figure, path)


def _power(error):
    return "exact" if error == 0 else f"{error:.0e}"


def draw_sharpness(rows, lr, title, path):
    """Loss and the Hessian's top eigenvalue against the step of gradient descent, to a PNG at `path`.

    rows: dicts with step, loss, top and bottom; lr: the learning rate, whose 2 / lr is drawn.
    """
    figure = new_figure(9.6, 3.9)
    grid = figure.add_gridspec(1, 2, width_ratios=(4, 5))
    steps = [row["step"] for row in rows]
    loss = quiet_axes(figure, grid[0], f"training loss, {title}", "step of gradient descent", whole=True)
    loss.plot(steps, [row["loss"] for row in rows], color=COLOURS[0], linewidth=1.8, marker="o", markersize=4)
    loss.set_ylim(bottom=0)
    sharp = quiet_axes(figure, grid[1], "eigenvalues of the loss's Hessian", "step of gradient descent", whole=True)
    sharp.plot(steps, [row["top"] for row in rows], color=COLOURS[1], linewidth=1.8, marker="o", markersize=4,
               label="largest")
    sharp.plot(steps, [row["bottom"] for row in rows], color=COLOURS[5], linewidth=1.2, marker="o", markersize=3,
               label="smallest that was met")
    sharp.axhline(2 / lr, color=QUIET, linewidth=1.2, linestyle=(0, (5, 3)), label=f"2 / learning rate = {2 / lr:.3g}")
    sharp.axhline(0, color="#b8b8b8", linewidth=0.8)
    sharp.set_ylim(top=1.3 * max(2 / lr, *(row["top"] for row in rows)))
    sharp.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    figure.supxlabel("Beyond 2 / learning rate a step along the sharpest direction overshoots. Gradient descent sharpens "
                     "the loss up to about that line,\nas Cohen et al. 2021 found (arxiv.org/abs/2103.00065); with "
                     "cross-entropy it flattens again once the images are fitted.",
                     fontsize=8, color=QUIET, x=0.02, ha="left")
    save_png(figure, path)
