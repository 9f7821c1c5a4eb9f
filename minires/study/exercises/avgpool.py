"""Average pooling."""
import numpy as np

from minires.backends import reference as ops
from minires.layers import AvgPool2d
from minires.study.exercises.checker.exercise import BLANK, Case, Exercise, Mistake
from minires.study.exercises.checker.windows import window_mistakes

CODE = f"""
import numpy as np

from minires.layer import Layer


class AvgPool2d(Layer):
    def __init__(self, kernel_size, stride, padding):
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x):
        k, s, p = self.kernel_size, self.stride, self.padding
        OH, OW = ((size + 2 * p - k) // s + 1 for size in x.shape[1:3])
        padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
        y = np.zeros((len(x), OH, OW, x.shape[3]), x.dtype)
        for i in range(k):  # the pixel (i, j) of all windows at once
            for j in range(k):
                y += padded[:, i:i + s * (OH - 1) + 1:s, j:j + s * (OW - 1) + 1:s]
        self._save(x.shape)
        return y / (k * k)

    def backward(self, dy):
        (x_shape,) = self._saved()
        k, s, p = self.kernel_size, self.stride, self.padding
        {BLANK}
"""


def _area(s):
    return s.options["kernel"] ** 2


def _inside_only(s):
    """Divided by the pixels inside the image, while forward counted the padding."""
    count = ops.avgpool2d_forward(np.ones_like(s.x), s.layer.kernel_size, s.layer.stride, s.layer.padding)
    return s.gradients(dy=s.dy / count)


EXERCISE = Exercise(
    title="average pooling",
    engine=AvgPool2d,
    make=lambda AvgPool2d, rng, kernel, stride, padding: AvgPool2d(kernel, stride, padding),
    letters={"x": "N H W C", "y": "N OH OW C"},
    formula="y = mean of x over each k x k window, padding counted as zeros\nOH = (H + 2p - k) // s + 1, OW likewise",
    keeps="x's shape",
    code=CODE,
    cases=(Case((1, 6, 4, 3), kernel=2, stride=2, padding=0), Case((2, 7, 5, 3), kernel=2, stride=2, padding=0),
           Case((2, 7, 6, 4), kernel=3, stride=2, padding=1), Case((3, 5, 6, 2), kernel=3, stride=1, padding=0)),
    mistakes=(
        Mistake("not divided", "dx is exactly k*k times too large: each pixel moves the mean of its window by 1 / (k*k)",
                lambda s: s.right["dx"] * _area(s)),
        Mistake("divided by k", "dx is exactly k times too large: the window has k*k pixels, not k",
                lambda s: s.right["dx"] * s.options["kernel"]),
        Mistake("padding not counted", "dx divides by the window's pixels inside the image: forward counts the padding, "
                "and divides by k*k everywhere", lambda s: _inside_only(s)["dx"]),
        *window_mistakes(lambda s, tap: s.dy / _area(s)),
    ),
    hint="backward runs the loop of forward the other way: make a padded array of zeros, add to the same slices, cut the\n"
         "padding off.",
)
