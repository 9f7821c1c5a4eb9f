"""The pictures of the derivations in examples/*.ipynb. Each function returns a figure that a notebook shows by itself."""
import io

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from minires.plots.style import COLOURS, QUIET, quiet_axes

BLUE, RED, GREEN, PINK = COLOURS[:4]
PALE = "#f2f2f2"


class NotebookFigure(Figure):
    """A Figure bound to no window whose picture a notebook shows when it is the value of a cell; its titles are the
    text for those who cannot see it."""

    def _repr_png_(self):
        FigureCanvasAgg(self)
        picture = io.BytesIO()
        self.savefig(picture, dpi=100, format="png")
        titles = [axes.get_title(loc="left").replace("\n", " ") for axes in self.axes]
        return picture.getvalue(), {"alt": "; ".join(title for title in titles if title)}


def _figure(width, height):
    return NotebookFigure(figsize=(width, height), layout="constrained")


def _board(figure, position, title, rows, columns):
    """Axes without ticks in which the cell (row, column) is the unit square below and right of (column, row)."""
    axes = figure.add_subplot(position)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlim(-0.06, columns + 0.06)
    axes.set_ylim(rows + 0.06, -0.06)
    axes.set_aspect("equal")
    axes.axis("off")
    return axes


def _cells(axes, values, colour, text, size=9):
    """A grid of numbers: colour(value) fills each cell, text(value) is written in it."""
    for (row, column), value in np.ndenumerate(values):
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour(value), edgecolor="white", linewidth=1.5))
        axes.text(column + 0.5, row + 0.52, text(value), ha="center", va="center", fontsize=size)


def _outline(axes, row, column, rows, columns, colour, **style):
    axes.add_patch(Rectangle((column, row), columns, rows, fill=False, edgecolor=colour, **{"linewidth": 2.5, **style}))


def _signed(values):
    """A colour for each value: white at zero, orange above, blue below."""
    largest = max(np.abs(values).max(), 1e-12)
    return lambda value: colormaps["PuOr_r"](0.5 + 0.3 * value / largest)


def _short(value):
    return f"{value + 0.0:.3g}"


def draw_im2col(patches, image_size, stride, padding, row):
    """Which pixel each entry of the im2col matrix reads, and how often each pixel is read.

    patches: (OH, OW, KH, KW) pixel numbers 1 .. H * W, 0 where the window lies on the border; image_size: (H, W);
    stride, padding: pairs; row: the row of the matrix (an output pixel) whose window is outlined.
    """
    OH, OW, KH, KW = patches.shape
    H, W = image_size
    numbers = np.pad(np.arange(1, H * W + 1).reshape(H, W), ((padding[0],) * 2, (padding[1],) * 2))
    reads = np.bincount(patches.ravel(), minlength=H * W + 1)[1:].reshape(H, W)

    def pixel(number):
        return colormaps["viridis"](0.3 + 0.7 * number / (H * W), alpha=0.65) if number else PALE

    figure = _figure(11, 3.6)
    grid = figure.add_gridspec(1, 3, width_ratios=(numbers.shape[1], KH * KW + 2, W))
    image = _board(figure, grid[0], f"the image and its border;\nthe window of output pixel {row}", *numbers.shape)
    _cells(image, numbers, pixel, lambda number: str(number or ""))
    _outline(image, row // OW * stride[0], row % OW * stride[1], KH, KW, RED)
    matrix = _board(figure, grid[1], "patches(x): one row an output pixel,\none column a weight", OH * OW, KH * KW)
    _cells(matrix, patches.reshape(OH * OW, KH * KW), pixel, lambda number: str(number or "0"))
    _outline(matrix, row, 0, 1, KH * KW, RED)
    counts = _board(figure, grid[2], "how many entries\nread each pixel", H, W)
    _cells(counts, reads, lambda count: colormaps["Oranges"](0.2 * count), str)
    return figure


def draw_batchnorm_projection(x_hat, dy):
    """What batch normalisation's backward takes out of dy: its mean and its slope along x_hat. x_hat, dy: (m,)."""
    mean, slope = dy.mean(), (dy * x_hat).mean() / (x_hat**2).mean()
    rest = dy - mean - slope * x_hat
    figure = _figure(11, 3.6)
    grid = figure.add_gridspec(1, 3, width_ratios=(5, 5, 3))
    before = quiet_axes(figure, grid[0], "dy, and the line that fits it best", "x_hat", "dy")
    line = np.array([x_hat.min(), x_hat.max()])
    before.plot(line, mean + slope * line, color=RED, label="mean(dy) + mean(dy * x_hat) x_hat")
    before.vlines(x_hat, mean + slope * x_hat, dy, color=QUIET, linewidth=0.8)
    before.plot(x_hat, dy, "o", color=BLUE, markersize=5)
    before.legend(frameon=False, fontsize=8, loc="best")
    after = quiet_axes(figure, grid[1], "what is left: mean 0, slope 0", "x_hat", "dx / (weight * s)")
    after.axhline(0, color=RED)
    after.vlines(x_hat, 0, rest, color=QUIET, linewidth=0.8)
    after.plot(x_hat, rest, "o", color=BLUE, markersize=5)
    for axes in (before, after):
        axes.set_ylim(min(dy.min(), rest.min()) - 0.3, max(dy.max(), rest.max()) + 0.3)
    shares = quiet_axes(figure, grid[2], "share of |dy|² along", "", "")
    parts = np.array([(mean + 0 * dy) @ dy, slope * x_hat @ dy, rest @ dy]) / (dy @ dy)
    shares.bar(range(3), parts, color=(RED, RED, BLUE), width=0.6)
    shares.set_xticks(range(3), ("1", "x_hat", "the rest"))
    for place, part in enumerate(parts):
        shares.text(place, part, f"{part:.0%}", ha="center", va="bottom", fontsize=9)
    shares.set_ylim(0, 1)
    shares.yaxis.set_visible(False)
    shares.grid(False)
    return figure


def draw_softmax_gradient(softmax, target):
    """Softmax, target and their difference, the gradient at the logits, a column for each example.

    softmax, target: (N, K) distributions.
    """
    N, K = softmax.shape
    classes = np.arange(K)
    figure = _figure(11, 4.4)
    grid = figure.add_gridspec(2, N)
    for n in range(N):
        above = quiet_axes(figure, grid[0, n], f"example {n}", whole=True)
        above.bar(classes, softmax[n], color=BLUE, width=0.6, label="p, the softmax")
        above.bar(classes, target[n], fill=False, edgecolor=RED, linewidth=1.8, width=0.85, label="q, the target")
        above.set_ylim(0, 1.04)
        below = quiet_axes(figure, grid[1, n], "", "class", whole=True)
        gradient = softmax[n] - target[n]
        below.bar(classes, gradient, color=[RED if value < 0 else BLUE for value in gradient], width=0.6)
        below.axhline(0, color=QUIET, linewidth=0.8)
        below.set_ylim(-1.04, 1.04)
        if n == 0:
            above.legend(frameon=False, fontsize=8, loc="upper right")
            below.set_ylabel("p - q", color=QUIET)
    return figure


def draw_pooling_gradient(x, dy, winners, dx_max, dx_mean, kernel_size):
    """Where the gradient of non-overlapping windows goes. x, dx_max, dx_mean: (H, W); dy: (OH, OW); winners: (H, W) bool."""
    rows, columns = kernel_size
    figure = _figure(11, 3.1)
    grid = figure.add_gridspec(1, 4, width_ratios=(x.shape[1], dy.shape[1], x.shape[1], x.shape[1]))
    colour = _signed(dy)
    panels = (("x, and who wins its window", x, lambda value: PALE), ("dy", dy, colour),
              ("max: dx, all to the winner", dx_max, colour), ("mean: dx, shared evenly", dx_mean, colour))
    for place, (title, values, fill) in enumerate(panels):
        board = _board(figure, grid[place], title, *values.shape)
        _cells(board, values, fill, _short)
        if values.shape == x.shape:
            for row, column in np.ndindex(dy.shape):
                _outline(board, row * rows, column * columns, rows, columns, QUIET, linewidth=1.5)
        if place in (0, 2):
            for row, column in np.argwhere(winners):
                _outline(board, row + 0.06, column + 0.06, 0.88, 0.88, RED, linewidth=2)
    return figure


def _matrix(axes, x, y, label, values, blocked):
    """A 2 x 2 matrix centred on (x, y): blocked entries (where a ReLU stops the gradient) in grey."""
    side = 0.3
    for (row, column), value in np.ndenumerate(values):
        corner = (x + (column - 1) * side, y - row * side)
        stopped = blocked is not None and blocked[row, column]
        axes.add_patch(Rectangle(corner, side, side, facecolor="#d9d9d9" if stopped else "#e9f2fa", edgecolor="white"))
        axes.text(corner[0] + side / 2, corner[1] + side / 2 - 0.01, _short(value), ha="center", va="center", fontsize=10)
    axes.text(x, y + side + 0.05, label, ha="center", va="bottom", fontsize=10)


def _arrow(axes, start, end, label="", colour=QUIET, bend=0.0, above=0.05):
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour, linewidth=1.6,
                                   connectionstyle=f"arc3,rad={bend}", shrinkA=0, shrinkB=0))
    if label:
        middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        axes.text(middle[0], middle[1] + above, label, ha="center", va="bottom", fontsize=9, color=colour)


def draw_residual_flow(forward, backward, steps):
    """A block's values on their way to y and, below, the gradients on their way back; the shortcut bends round both.

    forward, backward: [(label, (2, 2) values, (2, 2) bool of entries that a ReLU stops, or None)], one for each place
    from x to y; steps: the labels of the maps between the places, forward and backward, the last being the sum.
    """
    figure = _figure(11, 4.8)
    axes = figure.add_subplot()
    last = len(forward) - 1
    axes.set_xlim(-0.6, last * 1.3 + 0.6)
    axes.set_title("values on their way to y, gradients on their way back", loc="left", fontsize=11, fontweight="bold")
    axes.set_ylim(-1.45, 2.0)
    axes.set_aspect("equal")
    axes.axis("off")
    top, bottom, gap = 0.85, -0.4, 0.36
    for place, (values, gradients) in enumerate(zip(forward, backward, strict=True)):
        x = place * 1.3
        _matrix(axes, x, top, *values)
        _matrix(axes, x, bottom, *gradients)
        if place < last:
            on, back = steps[place]
            _arrow(axes, (x + gap, top), (x + 1.3 - gap, top), on, BLUE)
            _arrow(axes, (x + 1.3 - gap, bottom), (x + gap, bottom), back, RED)
    _arrow(axes, (0, top + 0.6), (last * 1.3, top + 0.6), colour=GREEN, bend=-0.08)
    axes.text(last * 0.65, top + 0.93, "shortcut: $W_3 x$, here x itself, is added", ha="center", fontsize=9.5, color=GREEN)
    _arrow(axes, (last * 1.3, bottom - 0.42), (0, bottom - 0.42), colour=GREEN, bend=-0.08)
    axes.text(last * 0.65, bottom - 0.94, "shortcut: $W_3^T dy$, here dy itself, is added", ha="center", fontsize=9.5,
              color=GREEN)
    return figure


def draw_gradient_depth(norms, xlabel="block, from the images to the loss"):
    """The size of the gradient at each place of several networks. norms: {name: norms from the first block to the last}."""
    figure = _figure(8, 3.6)
    axes = quiet_axes(figure, figure.add_gridspec(1, 1)[0], "|dL/dx| at each block, over the last one's", xlabel, whole=True)
    for colour, (name, values) in zip(COLOURS, norms.items(), strict=False):
        axes.semilogy(np.arange(1, len(values) + 1), np.asarray(values) / values[-1], "o-", color=colour, markersize=3.5,
                      linewidth=1.6, label=name)
    axes.legend(frameon=False, fontsize=9)
    return figure


def draw_winograd_tiles(size, multiplications):
    """The tiles of F(2x2, 3x3) and F(4x4, 3x3) on an image, and what each way multiplies.

    size: pixels a side, a multiple of 4; multiplications: {name: per image and pair of channels}.
    """
    figure = _figure(11, 3.9)
    grid = figure.add_gridspec(1, 3, width_ratios=(5, 5, 4))
    for place, m in enumerate((2, 4)):
        board = _board(figure, grid[place], f"F({m}x{m}, 3x3): tiles of {m + 2}x{m + 2} pixels\ngive {m}x{m} outputs",
                       size + 2, size + 2)
        for row, column in np.ndindex(size + 2, size + 2):
            border = not (1 <= row <= size and 1 <= column <= size)
            even = ((row - 1) // m + (column - 1) // m) % 2 == 0
            board.add_patch(Rectangle((column, row), 1, 1, edgecolor="white",
                                      facecolor=PALE if border else "#d5e6f3" if even else "#a9cbe4"))
        for shift, colour in ((0, RED), (m, GREEN)):
            _outline(board, 0.05, shift + 0.05, m + 1.9, m + 1.9, colour)
    bars = quiet_axes(figure, grid[2], f"multiplications, {size}x{size} image")
    bars.bar(range(len(multiplications)), list(multiplications.values()), color=(QUIET, BLUE, GREEN), width=0.6)
    bars.set_xticks(range(len(multiplications)), list(multiplications))
    for place, count in enumerate(multiplications.values()):
        bars.text(place, count, str(count), ha="center", va="bottom", fontsize=10)
    bars.yaxis.set_visible(False)
    bars.grid(False)
    return figure


def draw_image_traffic(traffic):
    """How many images of activations a block reads and writes. traffic: {name: (forward, backward)}."""
    figure = _figure(8, 2.1)
    axes = quiet_axes(figure, figure.add_gridspec(1, 1)[0], "activations read and written in one block, in images")
    for place, counts in enumerate(traffic.values()):
        for start, count, colour, way in ((0, counts[0], BLUE, "forward"), (counts[0], counts[1], RED, "backward")):
            axes.barh(place, count, left=start, color=colour, height=0.6)
            axes.text(start + count / 2, place, f"{way} {count}", ha="center", va="center", color="white", fontsize=10)
    axes.set_yticks(range(len(traffic)), list(traffic))
    axes.invert_yaxis()
    axes.grid(False)
    return figure
