"""Wrong backward passes of whatever slides a window: convolution and pooling."""
import numpy as np

from minires.backends import reference as ops
from minires.study.exercises.checker.exercise import Mistake

# What the exercises on a whole convolution have in common: their file up to forward.
HEAD = """
import numpy as np

from minires.layer import Layer, Parameter


class Conv2d(Layer):
    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, *, rng):
        self.stride, self.padding = stride, padding
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        self.weight = Parameter(rng.standard_normal(shape, np.float32))
        self.bias = Parameter(np.zeros(out_channels, np.float32))
"""


def scatter(s, share, layer, overwrite=False, corner=False):
    """dx from share((i, j)), what one tap of the window gives back, (N, OH, OW, C).

    overwrite: = for +=, the last tap wins; corner: the padding is cut off at the end instead of at both sides.
    """
    padded = ops.pad_image(np.zeros_like(s.x), layer.padding)
    for tap, window in ops.taps(layer.kernel_size, s.dy.shape[1:3], layer.stride, getattr(layer, "dilation", (1, 1))):
        if overwrite:
            padded[window] = share(tap)
        else:
            padded[window] += share(tap)
    H, W = s.x.shape[1:3]
    return padded[:, :H, :W] if corner else ops.crop_image(padded, layer.padding)


def window_mistakes(share):
    """The mistakes with overlaps and padding. share(s, (i, j)): what one tap gives back."""
    return (
        Mistake("overlaps overwritten", "dx is overwritten where windows overlap: a pixel seen by several windows adds up "
                "what comes from each, += for =",
                lambda s: scatter(s, lambda tap: share(s, tap), s.layer, overwrite=True)),
        Mistake("padding cut at the end", "dx is shifted by the padding: cut it off on both sides, "
                "padded[:, p:p + H, p:p + W]",
                lambda s: scatter(s, lambda tap: share(s, tap), s.layer, corner=True)),
        *(Mistake("last tap missing", f"dx leaves out the window's last {words}: a range(k) ends one too early",
                  lambda s, a=axes: scatter(s, lambda tap: share(s, tap) * _early(s.layer, tap, a), s.layer))
          for words, axes in (("row", (0,)), ("column", (1,)), ("row and column", (0, 1)))),
    )


def _early(layer, tap, axes):
    """0 for the window's last row (axis 0) or column (axis 1), else 1."""
    return int(all(tap[axis] < layer.kernel_size[axis] - 1 for axis in axes))
