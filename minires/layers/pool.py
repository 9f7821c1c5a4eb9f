"""Pooling: the maximum or the mean of a window, and the mean of the whole feature map."""
from minires.backends import ops_for
from minires.errors import UserError
from minires.layer import Layer
from minires.layers.conv import Windowed


class _Pool2d(Windowed):
    """What the windowed pools share: PyTorch's defaults, and its bound on the padding."""

    def __init__(self, kernel_size, stride=None, padding=0, dilation=1):
        super().__init__(kernel_size, kernel_size if stride is None else stride, padding, dilation)
        if any(2 * p > k for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise UserError(f"padding must be at most half of kernel_size, got padding {padding} and "
                            f"kernel_size {kernel_size}")


class MaxPool2d(_Pool2d):
    """The largest value of each window (padding never wins).

    x: (N, H, W, C); y: (N, OH, OW, C)        y = max over the window of x

    Backward. Away from ties y is one of the x, and only that one moves y; at a tie we take the first in row order, a
    subgradient. So δy is a selection of δx, and its transpose sends each dy to the pixel that won; a pixel that won several
    windows adds them up.
    """

    def forward(self, x):
        self.check(x)
        geometry = (self.kernel_size, self.stride, self.padding, self.dilation)
        y, argmax = ops_for(x).maxpool2d_forward(x, *geometry)
        self._save(argmax, x.shape)
        return y

    def backward(self, dy):
        argmax, x_shape = self._saved()
        geometry = (self.kernel_size, self.stride, self.padding, self.dilation)
        return ops_for(dy).maxpool2d_backward(dy, argmax, x_shape, *geometry)


class AvgPool2d(_Pool2d):
    """The mean of each window; padding counts as zeros (PyTorch's count_include_pad=True).

    x: (N, H, W, C); y: (N, OH, OW, C)        y = sum over the window of x / (KH * KW)

    Backward. δy = sum over the window of δx / (KH * KW): the transpose spreads each dy evenly, and overlaps add up.
    """

    def __init__(self, kernel_size, stride=None, padding=0):
        super().__init__(kernel_size, stride, padding)

    def forward(self, x):
        self.check(x)
        self._save(x.shape)
        return ops_for(x).avgpool2d_forward(x, self.kernel_size, self.stride, self.padding)

    def backward(self, dy):
        (x_shape,) = self._saved()
        return ops_for(dy).avgpool2d_backward(dy, x_shape, self.kernel_size, self.stride, self.padding)


class GlobalAvgPool2d(Layer):
    """The mean over the whole feature map. x: (N, H, W, C); y: (N, C). Backward: dx = dy / (H * W) at every pixel.

    Source: Lin et al. 2014, "Network in Network", section 3.2, https://arxiv.org/abs/1312.4400
    """

    def forward(self, x):
        self._require(x, ("N", "H", "W", "C"))
        self._save(x.shape)
        return ops_for(x).global_avgpool_forward(x)

    def backward(self, dy):
        (x_shape,) = self._saved()
        return ops_for(dy).global_avgpool_backward(dy, x_shape)
