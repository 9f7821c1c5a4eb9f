"""The basic residual block."""
from minires.layers import BasicBlock
from minires.study.exercises.checker.blocks import block_mistakes, explain_block, explain_block_error, parts
from minires.study.exercises.checker.exercise import BLANK, Case, Exercise

CODE = f"""
from minires.layer import Layer, Sequential
from minires.layers import BatchNorm2d, Conv2d, Identity, ReLU


class BasicBlock(Layer):
    def __init__(self, in_channels, channels, stride=1, *, rng):
        self.conv1 = Conv2d(in_channels, channels, 3, stride, 1, bias=False, rng=rng)
        self.bn1 = BatchNorm2d(channels)
        self.relu1 = ReLU()
        self.conv2 = Conv2d(channels, channels, 3, 1, 1, bias=False, rng=rng)
        self.bn2 = BatchNorm2d(channels)
        self.shortcut = Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = Sequential(Conv2d(in_channels, channels, 1, stride, bias=False, rng=rng), BatchNorm2d(channels))
        self.relu = ReLU()

    def forward(self, x):
        branch = self.relu1.forward(self.bn1.forward(self.conv1.forward(x)))
        branch = self.bn2.forward(self.conv2.forward(branch))
        return self.relu.forward(branch + self.shortcut.forward(x))

    def backward(self, dy):
        {BLANK}
"""

EXERCISE = Exercise(
    title="the basic residual block",
    engine=BasicBlock,
    make=lambda BasicBlock, rng, stride: BasicBlock(4, 4 if stride == 1 else 6, stride, rng=rng),
    letters={"x": "N H W C", "y": "N OH OW O", "conv1.weight": "3 3 C O", "conv2.weight": "3 3 O O", **parts(2),
             "shortcut.0.weight": "1 1 C O", "shortcut.1.weight": "O", "shortcut.1.bias": "O"},
    formula="F(x) = bn2(conv2(relu1(bn1(conv1(x)))))        y = relu(F(x) + S(x)), S the shortcut: identity or projection",
    keeps="nothing itself: each part keeps what it needs",
    code=CODE,
    cases=(Case((1, 5, 6, 4), stride=1), Case((3, 5, 6, 4), stride=1), Case((2, 5, 7, 4), stride=2)),
    mistakes=block_mistakes(2),
    explain=explain_block(2),
    explain_error=explain_block_error,
    hint="Each part has a backward of its own, to be called once: it returns its dx and adds its parameters' gradients.",
)
