"""What every picture shares: colours, quiet axes, and a PNG written in one step."""
import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from minires.errors import UserError
from minires.files import write_atomically

# Okabe & Ito's colours, told apart by every kind of eye, in an order that keeps neighbours far apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
QUIET = "#5a5a5a"


def new_figure(width, height):
    """A matplotlib Figure of width x height inches, laid out by itself and bound to no window."""
    return Figure(figsize=(width, height), layout="constrained")


def quiet_axes(figure, position, title, xlabel="", ylabel="", ticks=8, whole=False):
    """Axes at a grid position with a bold title on the left, a light grid and no box; whole: integers along x."""
    axes = figure.add_subplot(position)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(xlabel, color=QUIET)
    axes.set_ylabel(ylabel, color=QUIET)
    axes.grid(True, color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=QUIET, length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b8b8b8")
    axes.xaxis.set_major_locator(MaxNLocator(integer=whole, nbins=ticks))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=ticks))
    return axes


def plain(text):
    """A text of the user's, a class's or a folder's name, that is drawn as it is: a dollar begins no formula."""
    return str(text).replace("$", r"\$")


def save_png(figure, path):
    """Write the figure as a PNG, whole or not at all. UserError when the place cannot be written."""
    FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format="png")
    try:
        write_atomically(path, picture.getvalue())
    except OSError as error:
        raise UserError(f"the picture {path} cannot be written ({error.strerror}): choose another file name") from error
