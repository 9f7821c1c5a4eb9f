"""Two-dimensional convolution."""
from minires.arguments import count, flag, pair, room
from minires.backends import ops_for
from minires.backends.reference import output_sizes
from minires.errors import UserError
from minires.init import default_rng, he_normal, uniform_fan_in
from minires.layer import Layer, Parameter


class Windowed(Layer):
    """What slides a window over a feature map, a convolution or a pool. Its geometry: each (rows, columns)."""

    def __init__(self, kernel_size, stride, padding, dilation):
        self.kernel_size, self.stride = pair("kernel_size", kernel_size, 1), pair("stride", stride, 1)
        self.padding, self.dilation = pair("padding", padding, 0), pair("dilation", dilation, 1)

    def output_size(self, H, W):
        """(OH, OW) for an H x W feature map."""
        return output_sizes((H, W), self.kernel_size, self.stride, self.padding, self.dilation)

    def check(self, x, channels="C"):
        """UserError unless x is (N, H, W, channels), and the window has a place on it."""
        self._require(x, ("N", "H", "W", channels))
        OH, OW = self.output_size(*x.shape[1:3])
        if min(OH, OW) < 1:
            raise UserError(f"{type(self).__name__} has no place to put its window on x of shape {tuple(x.shape)}: the "
                            f"output would be {OH} x {OW} pixels; use a larger x or more padding")


class Conv2d(Windowed):
    """Slide a KH x KW window over the feature map; each output pixel is a linear map of the pixels under it.

    x: (N, H, W, C); y: (N, OH, OW, O); weight: (KH, KW, C, O); bias: (O,)
    OH = (H + 2 * padding - dilation * (KH - 1) - 1) // stride + 1, OW likewise.

    Let patches(x) be the matrix whose row (n, oh, ow) holds the KH * KW * C inputs that the output pixel sees, in the
    weight's order. Then the convolution is a linear layer on patches:

        y = patches(x) @ weight + bias

    Backward. y is linear in x, in weight and in bias, so a small change of all three changes it by

        δy = patches(δx) @ weight + patches(x) @ δweight + δbias

    and the gradient of each is what multiplies its change in δL = <dy, δy>, dy as a matrix of N * OH * OW rows:

        dbias   = sum of dy over N, OH, OW
        dweight = patches(x)^T @ dy
        dx      = patches^T(dy @ weight^T)

    `patches` only copies: as a linear map it is a matrix of zeros and ones, with one row per entry and one column per
    pixel. Its transpose (col2im) sends each entry back to the pixel it was read from, and adds up where a pixel was read
    more than once.

    The weights are He normal over the fan out, KH * KW * O (He et al. 2015b, https://arxiv.org/abs/1502.01852), drawn
    from `rng`, a Generator or a seed (see `minires.init.default_rng`). Arguments are PyTorch's; kernel_size, stride,
    padding and dilation may be pairs. UserError for sizes below 1 and for an x smaller than the window.

    `input_gradient = False` on a network's first layer makes backward return None for dx, which training never reads.
    """

    input_gradient = True

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, bias=True, *, rng=None):
        super().__init__(kernel_size, stride, padding, dilation)
        self.in_channels, self.out_channels = count("in_channels", in_channels), count("out_channels", out_channels)
        rng, bias = default_rng(rng), flag("bias", bias)
        KH, KW = self.kernel_size
        room(self, (KH, KW, in_channels, out_channels))
        self.weight = Parameter(he_normal((KH, KW, in_channels, out_channels), KH * KW * out_channels, rng))
        self.bias = None
        if bias:
            self.bias = Parameter(uniform_fan_in((out_channels,), KH * KW * in_channels, rng), decays=False)

    def forward(self, x):
        self.check(x, self.in_channels)
        bias = None if self.bias is None else self.bias.data
        self._save(x)
        return ops_for(x).conv2d_forward(x, self.weight.data, bias, self.stride, self.padding, self.dilation)

    def backward(self, dy):
        (x,) = self._saved()
        ops, geometry = ops_for(dy), (self.stride, self.padding, self.dilation)
        if not self.weight.frozen:
            self.weight.accumulate(ops.conv2d_weight_gradient(dy, x, self.kernel_size, *geometry))
        if self.bias is not None and not self.bias.frozen:
            self.bias.accumulate(ops.channel_sum(dy))
        if not self.input_gradient:
            return None
        return ops.conv2d_input_gradient(dy, self.weight.data, x.shape, *geometry)
