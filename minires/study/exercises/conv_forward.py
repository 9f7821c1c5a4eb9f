"""The forward pass of a convolution."""
import numpy as np

from minires.backends import reference as ops
from minires.layers import Conv2d
from minires.study.exercises.checker.exercise import Case, Mistake
from minires.study.exercises.checker.forward import ForwardExercise
from minires.study.exercises.checker.windows import HEAD
from minires.study.exercises.checker.words import blank

CODE = f"""{HEAD}
    def forward(self, x):
        weight, s, p = self.weight.data, self.stride, self.padding
        k = len(weight)
        {blank("forward")}
"""


def convolved(s, weight=None, x=None, padding=None, bias=None):
    """The right forward pass, of another weight, image, padding or bias."""
    layer = s.layer
    return ops.conv2d_forward(s.x if x is None else x, s.params["weight"] if weight is None else weight,
                              s.params["bias"] if bias is None else bias, layer.stride,
                              layer.padding if padding is None else padding, layer.dilation)


def _padded(s, before, **options):
    """The padding all on one side, or of another value."""
    p = s.layer.padding[0]
    sides = (2 * p, 0) if before else (0, 2 * p)
    return {"y": convolved(s, x=np.pad(s.x, ((0, 0), sides, sides, (0, 0)), **options), padding=(0, 0))}


def _edges(s):
    p = s.layer.padding[0]
    return {"y": convolved(s, x=np.pad(s.x, ((0, 0), (p, p), (p, p), (0, 0)), mode="edge"), padding=(0, 0))}


def _last_tap(s):
    weight = s.params["weight"].copy()
    weight[-1] = weight[:, -1] = 0
    return {"y": convolved(s, weight)}


EXERCISE = ForwardExercise(
    title="forward: a convolution with stride and padding",
    engine=Conv2d,
    make=lambda Conv2d, rng, stride, padding: Conv2d(4, 5, 3, stride, padding, rng=rng),
    letters={"x": "N H W C", "y": "N OH OW O", "weight": "KH KW C O", "bias": "O"},
    formula="y[n, oh, ow] = bias + sum over i, j of padded[n, s * oh + i, s * ow + j] @ weight[i, j]\n"
            "OH = (H + 2p - k) // s + 1, OW likewise; padded is x within p rows and columns of zeros",
    code=CODE,
    cases=(Case((1, 6, 7, 4), stride=1, padding=0), Case((2, 6, 7, 4), stride=1, padding=1),
           Case((2, 7, 8, 4), stride=2, padding=1), Case((3, 6, 9, 4), stride=2, padding=0)),
    mistakes=(
        Mistake("bias missing", "y lacks the bias, one number for each output channel",
                lambda s: {"y": convolved(s, bias=0 * s.params["bias"])}),
        Mistake("bias at each tap", "y has the bias k * k times: add it once, not at each tap",
                lambda s: {"y": convolved(s, bias=9 * s.params["bias"])}),
        Mistake("kernel flipped", "y is the convolution of the textbook, with the kernel turned by 180 degrees: here, as in "
                "every framework, tap (i, j) reads the pixel at (s * oh + i, s * ow + j)",
                lambda s: {"y": convolved(s, s.params["weight"][::-1, ::-1])}),
        Mistake("rows for columns", "y has the kernel's rows and columns exchanged: weight[i, j] belongs to row i, column j",
                lambda s: {"y": convolved(s, s.params["weight"].transpose(1, 0, 2, 3))}),
        Mistake("padded at the end", "y is padded after the last row and column only: p zeros belong on each side",
                lambda s: _padded(s, before=False)),
        Mistake("padded at the beginning", "y is padded before the first row and column only: p zeros belong on each side",
                lambda s: _padded(s, before=True)),
        Mistake("edges repeated", "y repeats the border pixels in the padding: it is of zeros", _edges),
        Mistake("last tap missing", "y leaves out the kernel's last row and column: a range(k) ends one too early",
                _last_tap),
    ),
    hint="""Loop over the taps, not over the pixels: for tap (i, j) the pixels that all outputs read are one slice of the
padded image, padded[:, i:i + s * (OH - 1) + 1:s, j:j + s * (OW - 1) + 1:s], and a 1x1 convolution is @ weight[i, j].""",
)
