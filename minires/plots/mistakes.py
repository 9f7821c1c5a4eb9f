"""What an evaluation got wrong: the confusion matrix, and the images of the worst mistakes."""
import numpy as np

from minires.plots.sheet import Sheet
from minires.plots.style import QUIET, new_figure, plain, save_png


def draw_confusion(matrix, classes, mistakes, path):
    """The confusion matrix, and beside it the surest mistakes, to a PNG at `path`.

    matrix: (K, K) counts, row the true class; classes: K names; mistakes: [(pixels (H, W, 3) uint8, true class's name,
    predicted class's name, its probability)], best shown for up to 20.
    Mistakes are coloured by their share of the true class, on a scale of their own.
    """
    columns, rows = min(5, len(mistakes)), -(-len(mistakes) // 5)
    side = max(5.2, 0.56 * len(classes))
    figure = new_figure(side + 0.9 + 1.1 * columns, side + 0.2)
    left, *right = figure.add_gridspec(1, 2 if mistakes else 1, width_ratios=(side, 1.1 * columns) if mistakes else None)
    _draw_matrix(figure.add_subplot(left), matrix, classes)
    if mistakes:
        sheet = Sheet(figure, right[0], rows, columns, head=0.36)
        sheet.axes.set_title("the surest mistakes: true → predicted", loc="left", fontsize=11, fontweight="bold")
        for index, (pixels, true, predicted, probability) in enumerate(mistakes):
            sheet.lay(index, pixels, f"{true} →\n{predicted} {probability:.1%}", 7)
    save_png(figure, path)


def _draw_matrix(axes, matrix, classes):
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    # The diagonal would drown the mistakes, which are what is looked for: it gets its own colour.
    wrong, right = share.copy(), share.copy()
    np.fill_diagonal(wrong, np.nan)
    right[~np.eye(len(classes), dtype=bool)] = np.nan
    axes.imshow(right, cmap="Blues", vmin=0, vmax=1.6)
    axes.imshow(wrong, cmap="Oranges", vmin=0, vmax=max(np.nanmax(wrong, initial=0), 0.01) * 1.3)
    for row, column in np.ndindex(matrix.shape):
        if matrix[row, column]:
            axes.text(column, row, f"{matrix[row, column]:,}", ha="center", va="center", fontsize=8.5,
                      fontweight="bold" if row == column else "normal", color="#1a1a1a")
    classes = [plain(name) for name in classes]
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), classes)
    axes.tick_params(length=0, colors=QUIET)
    axes.set_xlabel("predicted", color=QUIET)
    axes.set_ylabel("true", color=QUIET)
    total, correct = int(matrix.sum()), int(np.trace(matrix))
    axes.set_title(f"{correct:,} of {total:,} right ({correct / total:.2%})", loc="left", fontsize=11, fontweight="bold")
    for spine in axes.spines.values():
        spine.set_visible(False)
