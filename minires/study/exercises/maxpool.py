"""Max pooling."""
import numpy as np

from minires.backends import reference as ops
from minires.layers import MaxPool2d
from minires.study.exercises.checker.exercise import BLANK, Case, Exercise, Mistake
from minires.study.exercises.checker.windows import scatter, window_mistakes

CODE = f"""
import numpy as np

from minires.layer import Layer


class MaxPool2d(Layer):
    def __init__(self, kernel_size, stride, padding):
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x):
        k, s, p = self.kernel_size, self.stride, self.padding
        OH, OW = ((size + 2 * p - k) // s + 1 for size in x.shape[1:3])
        padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)), constant_values=-np.inf)  # padding never wins
        taps = [padded[:, i:i + s * (OH - 1) + 1:s, j:j + s * (OW - 1) + 1:s] for i in range(k) for j in range(k)]
        winner = np.argmax(taps, 0)  # (N, OH, OW, C): which of the k * k pixels of its window, i * k + j
        self._save(winner, x.shape)
        return np.max(taps, 0)

    def backward(self, dy):
        winner, x_shape = self._saved()
        k, s, p = self.kernel_size, self.stride, self.padding
        {BLANK}
"""


def winner(s):
    """Which pixel of its window won: (N, OH, OW, C)."""
    layer = s.layer
    return ops.maxpool2d_forward(s.x, layer.kernel_size, layer.stride, layer.padding, layer.dilation)[1]


def _won(s, tap):
    return s.dy * (winner(s) == tap[0] * s.options["kernel"] + tap[1])


def _wins_once(s):
    """A pixel that won several windows keeps the last dy."""
    layer, best = s.layer, winner(s)
    padded = ops.pad_image(np.zeros_like(s.x), layer.padding)
    for (i, j), window in ops.taps(layer.kernel_size, s.dy.shape[1:3], layer.stride, (1, 1)):
        np.copyto(padded[window], s.dy, where=best == i * s.options["kernel"] + j)
    return ops.crop_image(padded, layer.padding)


def _columns_first(s):
    return scatter(s, lambda tap: _won(s, (tap[1], tap[0])), s.layer)


EXERCISE = Exercise(
    title="max pooling",
    engine=MaxPool2d,
    make=lambda MaxPool2d, rng, kernel, stride, padding: MaxPool2d(kernel, stride, padding),
    letters={"x": "N H W C", "y": "N OH OW C"},
    formula="y = max of x over each k x k window\nOH = (H + 2p - k) // s + 1, OW likewise",
    keeps="winner, which pixel of its window each y is, (N, OH, OW, C), and x's shape",
    code=CODE,
    cases=(Case((1, 6, 4, 3), kernel=2, stride=2, padding=0), Case((2, 7, 5, 3), kernel=2, stride=2, padding=0),
           Case((2, 7, 6, 4), kernel=3, stride=2, padding=1), Case((3, 5, 6, 2), kernel=3, stride=1, padding=0)),
    mistakes=(
        Mistake("average pooling's gradient", "dx spreads dy evenly over the window: that is average pooling's gradient, "
                "here only the pixel that won moves y",
                lambda s: scatter(s, lambda tap: s.dy / s.options["kernel"] ** 2, s.layer)),
        Mistake("dy to the whole window", "dx gives dy to every pixel of the window: only the one that won moves y",
                lambda s: scatter(s, lambda tap: s.dy, s.layer)),
        Mistake("wins count once", "dx keeps one dy for a pixel that won several windows: where windows overlap they add "
                "up, += for =", _wins_once),
        Mistake("rows for columns", "dx gives dy to the winner's mirror image: winner is i * k + j, row "
                "first", _columns_first),
        *window_mistakes(_won),
    ),
    hint="backward runs over the same slices as forward: each gets dy where it is the winner, and 0 elsewhere.",
)
