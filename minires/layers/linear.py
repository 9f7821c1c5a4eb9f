"""The linear layer, and the two layers that only pass on: Flatten and Identity."""
from minires.arguments import count, flag, room
from minires.backends import ops_for
from minires.errors import UserError
from minires.init import default_rng, uniform_fan_in
from minires.layer import Layer, Parameter


class Linear(Layer):
    """An affine map of each row.

    x: (N, C); y: (N, K); weight: (C, K); bias: (K,)

        y = x @ weight + bias

    Backward. δL = <dy, δy> with δy = δx @ weight + x @ δweight + δbias, and collecting what multiplies each change:

        dx = dy @ weight^T        dweight = x^T @ dy        dbias = sum of dy over N

    The initial weights are uniform in +-1 / sqrt(C), PyTorch's default, drawn from `rng`, a Generator or a seed.
    """

    def __init__(self, in_features, out_features, bias=True, *, rng=None):
        self.in_features, self.out_features = count("in_features", in_features), count("out_features", out_features)
        rng, bias = default_rng(rng), flag("bias", bias)
        room(self, (in_features, out_features))
        self.weight = Parameter(uniform_fan_in((in_features, out_features), in_features, rng))
        self.bias = Parameter(uniform_fan_in((out_features,), in_features, rng), decays=False) if bias else None

    def forward(self, x):
        self._require(x, ("N", self.in_features))
        self._save(x)
        return ops_for(x).linear_forward(x, self.weight.data, None if self.bias is None else self.bias.data)

    def backward(self, dy):
        (x,) = self._saved()
        if self.weight.frozen and (self.bias is None or self.bias.frozen):
            return ops_for(dy).linear_forward(dy, self.weight.data.T, None)  # dy @ weight^T
        dx, dweight, dbias = ops_for(dy).linear_backward(dy, x, self.weight.data)
        self.weight.accumulate(dweight)
        if self.bias is not None:
            self.bias.accumulate(dbias)
        return dx


class Flatten(Layer):
    """All features of one image in a row. x: (N, ...); y: (N, C), C the product of the rest.

    The order is this project's channels-last one. Backward: nothing is computed forward, so dx is dy in x's shape.
    """

    def forward(self, x):
        if x.ndim < 2 or x.size == 0:
            raise UserError(f"Flatten expects x of shape (N, ...), at least one image, got {tuple(x.shape)}")
        self._save(x.shape)
        return x.reshape(len(x), -1)

    def backward(self, dy):
        (shape,) = self._saved()
        return dy.reshape(shape)


class Identity(Layer):
    """y = x, dx = dy: the shortcut of a residual block, and what makes it work."""

    def forward(self, x):
        self._save()
        return x

    def backward(self, dy):
        self._saved()
        return dy
