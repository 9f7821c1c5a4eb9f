"""The learning rate's range test."""
from minires.plots.style import COLOURS, QUIET, new_figure, quiet_axes, save_png


def draw_range_test(curve, lr, path):
    """The loss while the learning rate rises, and the rate that was chosen, to a PNG. curve: [(rate, loss), ...]."""
    figure = new_figure(6.4, 3.8)
    axes = quiet_axes(figure, figure.add_gridspec(1, 1)[0], "range test: the loss as the learning rate rises",
                      "learning rate", "loss")
    axes.set_xscale("log")
    axes.plot(*zip(*curve, strict=True), color=COLOURS[0], linewidth=1.8)
    axes.axvline(lr, color=QUIET, linewidth=1.2, linestyle=(0, (5, 3)), label=f"chosen: {lr:.3g}")
    axes.set_ylim(0, 2.2 * curve[0][1])
    axes.legend(frameon=False)
    save_png(figure, path)
