"""A block of one's own: squeeze-and-excitation, trained and planned like the built-in ones.

    python examples/squeeze_and_excitation.py

The layer weighs each channel by a number between 0 and 1 that all channels of the image decide upon. Its forward and
backward are arithmetic on arrays and calls of layers that exist, and that is all a plan needs: no operator, no kernel.
Source: Hu et al. 2018, "Squeeze-and-Excitation Networks", section 3, https://arxiv.org/abs/1709.01507
"""
import numpy as np

import minires
from minires.backends import ops_for
from minires.layer import Layer, Sequential
from minires.layers import BatchNorm2d, Conv2d, GlobalAvgPool2d, Linear, ReLU, Residual
from minires.layers.residual import make_shortcut


class SqueezeExcitation(Layer):
    """x, y: (N, H, W, C); s: (N, C), a number for each channel of each image

        s = sigmoid(fc2(relu(fc1(mean over H, W of x))))        y = x * s

    Backward. x comes in twice, as a factor and through s, and both gradients add:

        ds = sum over H, W of dy * x        sigmoid' = s (1 - s)        dx = dy * s + excite.backward(ds * s * (1 - s))
    """

    def __init__(self, channels, reduction=4, *, rng=None):
        inside = max(1, channels // reduction)
        self.excite = Sequential(GlobalAvgPool2d(), Linear(channels, inside, rng=rng), ReLU(),
                                 Linear(inside, channels, rng=rng))

    def forward(self, x):
        s = 1 / (1 + np.exp(-self.excite.forward(x)))
        self._save(x, s)
        return x * s.reshape(len(x), 1, 1, -1)

    def backward(self, dy):
        x, s = self._saved()
        H, W = x.shape[1:3]
        ds = ops_for(dy).global_avgpool_forward(dy * x) * (H * W)  # a sum is a mean of H * W values, times H * W
        return dy * s.reshape(len(x), 1, 1, -1) + self.excite.backward(ds * s * (1 - s))


def block(in_channels, channels, stride=1, shortcut="B", *, rng=None):
    """A basic block with squeeze-and-excitation at the end of its branch (figure 3 of the paper)."""
    branch = Sequential(Conv2d(in_channels, channels, 3, stride, 1, bias=False, rng=rng), BatchNorm2d(channels), ReLU(),
                        Conv2d(channels, channels, 3, 1, 1, bias=False, rng=rng), BatchNorm2d(channels),
                        SqueezeExcitation(channels, rng=rng))
    return Sequential(Residual(branch, make_shortcut(in_channels, channels, stride, shortcut, rng)), ReLU())


def main(steps=41):
    from minires.data import channel_statistics
    from minires.data.augment import Standardise
    from minires.data.shapes import make_shapes

    data = make_shapes(256, 0, 16)
    x, target = Standardise(*channel_statistics(data.images))(data.images), data.labels
    network = minires.build_model("resnet", blocks=(1, 1), channels=(8, 16), block=block, rng=0)
    layer = SqueezeExcitation(3, rng=0).astype(np.float64)
    report = minires.check_gradients(layer, np.random.default_rng(0).standard_normal((2, 4, 3, 3)))
    print(f"the layer's gradients are the derivatives, relative error {report.error:.0e}")
    step = minires.compile(network, minires.CrossEntropyLoss())
    optimiser = minires.SGD(network.parameters(), 0.1, 0.9)
    for number in range(steps):
        value, _ = step(x, target)
        optimiser.step()
        if number % 10 == 0:
            print(f"step {number:2}: loss {value:.3f}")
    print("all of it is planned" if not step.opaque else f"not planned: {step.opaque}")


if __name__ == "__main__":
    main()
