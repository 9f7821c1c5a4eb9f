"""A convolution with any kernel, stride and padding."""
from minires.backends import reference as ops
from minires.layers import Conv2d
from minires.study.exercises.checker.exercise import BLANK, Case, Exercise, Mistake
from minires.study.exercises.checker.windows import HEAD, window_mistakes

CODE = f"""{HEAD}
    def forward(self, x):
        weight, s, p = self.weight.data, self.stride, self.padding
        k = len(weight)
        OH, OW = ((size + 2 * p - k) // s + 1 for size in x.shape[1:3])
        padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
        y = np.zeros((len(x), OH, OW, weight.shape[3]), x.dtype) + self.bias.data
        for i in range(k):  # one tap of the kernel is a 1x1 convolution of a shifted image
            for j in range(k):
                y += padded[:, i:i + s * (OH - 1) + 1:s, j:j + s * (OW - 1) + 1:s] @ weight[i, j]
        self._save(padded, x.shape)
        return y

    def backward(self, dy):
        padded, x_shape = self._saved()
        weight, s, p = self.weight.data, self.stride, self.padding
        k, OH, OW = len(weight), *dy.shape[1:3]
        {BLANK}
"""


def _geometry(s):
    return s.layer.stride, s.layer.padding, s.layer.dilation


def _unflipped(s):
    """dx as a forward convolution of dy with the kernel as it stands: the taps are mirrored."""
    return ops.conv2d_input_gradient(s.dy, s.params["weight"][::-1, ::-1], s.x.shape, *_geometry(s))


def _stride_forgotten(s):
    """The weight's gradient read from the windows of stride 1."""
    OH, OW = s.dy.shape[1:3]
    padded = ops.pad_image(s.x, s.layer.padding)
    dweight = s.right["weight"].copy()
    for i, j in ((i, j) for i in range(3) for j in range(3)):
        window = padded[:, i:i + OH, j:j + OW]
        dweight[i, j] = window.reshape(-1, window.shape[3]).T @ s.dy.reshape(-1, s.dy.shape[3])
    return {"weight": dweight}


EXERCISE = Exercise(
    title="a convolution with stride and padding",
    engine=Conv2d,
    make=lambda Conv2d, rng, stride, padding: Conv2d(4, 5, 3, stride, padding, rng=rng),
    letters={"x": "N H W C", "y": "N OH OW O", "weight": "KH KW C O", "bias": "O"},
    formula="y[n, oh, ow] = bias + sum over i, j of padded[n, s * oh + i, s * ow + j] @ weight[i, j]\n"
            "OH = (H + 2p - k) // s + 1, OW likewise",
    keeps="padded, (N, H + 2p, W + 2p, C), and x's shape",
    code=CODE,
    cases=(Case((1, 6, 7, 4), stride=1, padding=1), Case((2, 6, 7, 4), stride=1, padding=1),
           Case((2, 7, 6, 4), stride=1, padding=0), Case((2, 7, 8, 4), stride=2, padding=1),
           Case((3, 6, 9, 4), stride=2, padding=0)),
    mistakes=(
        *window_mistakes(lambda s, tap: s.dy @ s.params["weight"][tap].T),
        Mistake("kernel not flipped", "dx convolves dy with the kernel as it stands: each tap gives back where it read, "
                "which turns the kernel by 180 degrees", _unflipped),
        Mistake("stride forgotten", "dweight reads the windows of stride 1: output (oh, ow) saw the pixel (s * oh + i, s "
                "* ow + j)", _stride_forgotten),
    ),
    hint="backward runs the loop of forward the other way: each tap is exercise conv1x1 on a slice of a padded array.",
)
