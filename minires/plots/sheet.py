"""A contact sheet: many small pictures with titles on one pair of axes, which is laid out at once."""
from minires.plots.style import new_figure, plain

HEAD = 0.2  # of a picture's side, for the title above it


def new_sheet_figure(title, rows, columns, side, extra=0.0):
    """A titled figure for rows x columns pictures of `side` inches; extra: inches to the left of them."""
    figure = new_figure(side * columns + extra, side * rows * (1 + HEAD) + 0.4)
    figure.suptitle(plain(title), x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


class Sheet:
    """Places for rows x columns pictures at a figure's grid position; head: room for a title, of a picture's side."""

    def __init__(self, figure, position, rows, columns, head=HEAD):
        self.axes, self.columns, self.head = figure.add_subplot(position), columns, head
        self.axes.set_axis_off()
        self.axes.set(xlim=(0, columns), ylim=(rows * (1 + head), 0), aspect="equal", autoscale_on=False)

    def lay(self, index, image, title="", size=9, **options):
        """Put a picture (H, W) or (H, W, 3) into a place, counted row by row. options: imshow's; returns its image."""
        row, column = divmod(index, self.columns)
        H, W = image.shape[:2]
        scale = 0.94 / max(H, W)
        left, top = column + 0.5 - scale * W / 2, row * (1 + self.head) + self.head
        if title:
            self.axes.text(column + 0.5, top - 0.03, plain(title), ha="center", va="bottom", fontsize=size, color="#222222")
        return self.axes.imshow(image, extent=(left, left + scale * W, top + scale * H, top), **options)
