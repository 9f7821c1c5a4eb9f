"""Every picture, one file a subject. The only room that knows matplotlib."""
from minires.plots.curves import draw_comparison, draw_curves
from minires.plots.doctor import draw_range_test
from minires.plots.style import COLOURS

__all__ = ["COLOURS", "draw_comparison", "draw_curves", "draw_range_test"]
