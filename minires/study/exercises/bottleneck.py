"""The bottleneck block."""
from minires.layers import Bottleneck
from minires.study.exercises.checker.blocks import block_mistakes, explain_block, explain_block_error, parts
from minires.study.exercises.checker.exercise import BLANK, Case, Exercise

CODE = f"""
from minires.layer import Layer, Sequential
from minires.layers import BatchNorm2d, Conv2d, Identity, ReLU


class Bottleneck(Layer):
    def __init__(self, in_channels, channels, stride=1, *, rng):
        self.conv1 = Conv2d(in_channels, channels, 1, bias=False, rng=rng)
        self.bn1 = BatchNorm2d(channels)
        self.relu1 = ReLU()
        self.conv2 = Conv2d(channels, channels, 3, stride, 1, bias=False, rng=rng)
        self.bn2 = BatchNorm2d(channels)
        self.relu2 = ReLU()
        self.conv3 = Conv2d(channels, 4 * channels, 1, bias=False, rng=rng)
        self.bn3 = BatchNorm2d(4 * channels)
        self.shortcut = Identity()
        if stride != 1 or in_channels != 4 * channels:
            self.shortcut = Sequential(Conv2d(in_channels, 4 * channels, 1, stride, bias=False, rng=rng),
                                       BatchNorm2d(4 * channels))
        self.relu = ReLU()

    def forward(self, x):
        branch = self.relu1.forward(self.bn1.forward(self.conv1.forward(x)))
        branch = self.relu2.forward(self.bn2.forward(self.conv2.forward(branch)))
        branch = self.bn3.forward(self.conv3.forward(branch))
        return self.relu.forward(branch + self.shortcut.forward(x))

    def backward(self, dy):
        {BLANK}
"""

EXERCISE = Exercise(
    title="the bottleneck block",
    engine=Bottleneck,
    make=lambda Bottleneck, rng, stride: Bottleneck(8 if stride == 1 else 5, 2, stride, rng=rng),
    letters={"x": "N H W C", "y": "N OH OW O", "conv1.weight": "1 1 C B", "conv2.weight": "3 3 B B",
             "conv3.weight": "1 1 B O", **parts(3) | dict.fromkeys(
                 ("bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias"), "B"),
             "shortcut.0.weight": "1 1 C O", "shortcut.1.weight": "O", "shortcut.1.bias": "O"},
    formula="F(x) = bn3(conv3(relu2(bn2(conv2(relu1(bn1(conv1(x))))))))        y = relu(F(x) + S(x))\n"
            "B channels inside, O = 4 * B outside; S the shortcut: identity or projection",
    keeps="nothing itself: each part keeps what it needs",
    code=CODE,
    cases=(Case((1, 5, 6, 8), stride=1), Case((3, 4, 5, 8), stride=1), Case((2, 5, 7, 5), stride=2)),
    mistakes=block_mistakes(3),
    explain=explain_block(3),
    explain_error=explain_block_error,
    hint="Each part has a backward of its own, to be called once: it returns its dx and adds its parameters' gradients.",
)
