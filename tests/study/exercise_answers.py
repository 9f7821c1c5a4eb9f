"""What students write: for each exercise a right body, and wrong ones with the names of their mistakes.

The bodies stand in the file that `minires exercise start` writes, in place of its blank line.
"""

LINEAR = "self.weight.grad += x.T @ dy; self.bias.grad += dy.sum(0); return dy @ self.weight.data.T"
BATCHNORM = """
    g = dy * self.weight.data
    self.weight.grad += (dy * x_hat).sum((0, 1, 2))
    self.bias.grad += dy.sum((0, 1, 2))
    return inv_std * (g - g.mean((0, 1, 2)) - x_hat * (g * x_hat).mean((0, 1, 2)))
"""
STEPS = """
    self.weight.grad += (dy * x_hat).sum((0, 1, 2))
    self.bias.grad += dy.sum((0, 1, 2))
    g, m = dy * self.weight.data, dy.size // dy.shape[3]
    dvar = (g * x_hat).sum((0, 1, 2)) * -0.5 * inv_std ** 2
    dmean = -inv_std * g.sum((0, 1, 2))
    return g * inv_std + dvar * 2 * (x_hat / inv_std) / m + dmean / m
"""
EVALUATION = """
    self.weight.grad += (dy * x_hat).sum((0, 1, 2))
    self.bias.grad += dy.sum((0, 1, 2))
    return dy * self.weight.data * inv_std
"""
LAYERNORM = """
    g = dy * self.weight.data
    self.weight.grad += (dy * x_hat).sum((0, 1, 2))
    self.bias.grad += dy.sum((0, 1, 2))
    return inv_std * (g - g.mean(-1, keepdims=True) - x_hat * (g * x_hat).mean(-1, keepdims=True))
"""
AVGPOOL = """
    N, H, W, C = x_shape
    OH, OW = dy.shape[1:3]
    padded = np.zeros((N, H + 2 * p, W + 2 * p, C), dy.dtype)
    for i in range(k):
        for j in range(k):
            padded[:, i:i + s * (OH - 1) + 1:s, j:j + s * (OW - 1) + 1:s] += dy / (k * k)
    return padded[:, p:p + H, p:p + W]
"""
MAXPOOL = AVGPOOL.replace("dy / (k * k)", "dy * (winner == i * k + j)")
CONV1 = """
    self.weight.grad[0, 0] += seen.reshape(-1, seen.shape[3]).T @ dy.reshape(-1, dy.shape[3])
    self.bias.grad += dy.sum((0, 1, 2))
    dx = np.zeros_like(x)
    dx[:, ::self.stride, ::self.stride] = dy @ self.weight.data[0, 0].T
    return dx
"""
CONV3 = """
    N, H, W, C = x_shape
    self.bias.grad += dy.sum((0, 1, 2))
    dpadded = np.zeros_like(padded)
    for i in range(k):
        for j in range(k):
            rows, columns = slice(i, i + s * (OH - 1) + 1, s), slice(j, j + s * (OW - 1) + 1, s)
            self.weight.grad[i, j] += np.einsum("nhwc,nhwo->co", padded[:, rows, columns], dy)
            dpadded[:, rows, columns] += dy @ weight[i, j].T
    return dpadded[:, p:p + H, p:p + W]
"""
BASIC = """
    g = self.relu.backward(dy)
    branch = self.conv2.backward(self.bn2.backward(g))
    branch = self.conv1.backward(self.bn1.backward(self.relu1.backward(branch)))
    return branch + self.shortcut.backward(g)
"""
BOTTLENECK = """
    g = self.relu.backward(dy)
    branch = self.conv3.backward(self.bn3.backward(g))
    branch = self.conv2.backward(self.bn2.backward(self.relu2.backward(branch)))
    branch = self.conv1.backward(self.bn1.backward(self.relu1.backward(branch)))
    return branch + self.shortcut.backward(g)
"""
ENTROPY = "dy = p.copy(); dy[np.arange(len(p)), target] -= 1; return dy / len(p)"
KEPT = "return dy if keep is None else dy * keep / dy.dtype.type(1 - self.p)"

CONVOLUTION = """
    OH, OW = ((size + 2 * p - k) // s + 1 for size in x.shape[1:3])
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    y = np.zeros((len(x), OH, OW, weight.shape[3]), x.dtype) + self.bias.data
    for i in range(k):
        for j in range(k):
            y += padded[:, i:i + s * (OH - 1) + 1:s, j:j + s * (OW - 1) + 1:s] @ weight[i, j]
    return y
"""
NORMALISATION = """
    mean, var = self.running_mean, self.running_var
    if self.training:
        m, momentum = x.size // x.shape[3], self.momentum
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        self.running_mean = (1 - momentum) * self.running_mean + momentum * mean
        self.running_var = (1 - momentum) * self.running_var + momentum * var * (m / (m - 1))
    return self.weight.data * (x - mean) / np.sqrt(var + self.eps) + self.bias.data
"""
LOSS = """
    shifted = y - y.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return float(-log_p[np.arange(len(target)), target].mean())
"""
SGD = """
    g = parameter.grad + self.weight_decay * parameter.data
    velocity *= self.momentum
    velocity += g
    parameter.data -= self.lr * (g + self.momentum * velocity if self.nesterov else velocity)
"""
ADAMW = """
    first *= b1
    first += (1 - b1) * parameter.grad
    second *= b2
    second += (1 - b2) * parameter.grad ** 2
    parameter.data -= self.lr * self.weight_decay * parameter.data
    root = np.sqrt(second / (1 - b2 ** self.steps))
    parameter.data -= self.lr * first / (1 - b1 ** self.steps) / (root + self.eps)
"""
RIGHT = {
    "relu": "return dy * (y > 0)",
    "linear": LINEAR,
    "mse": "return 2 * (y - target) / y.size",
    "cross_entropy": ENTROPY,
    "global_avgpool": "N, H, W, C = x_shape; return np.zeros(x_shape, dy.dtype) + dy[:, None, None] / (H * W)",
    "avgpool": AVGPOOL,
    "maxpool": MAXPOOL,
    "conv1x1": CONV1,
    "conv3x3": CONV3,
    "batchnorm_eval": EVALUATION,
    "batchnorm_steps": STEPS,
    "batchnorm": BATCHNORM,
    "layernorm": LAYERNORM,
    "dropout": KEPT,
    "basic_block": BASIC,
    "bottleneck": BOTTLENECK,
    "conv_forward": CONVOLUTION,
    "batchnorm_forward": NORMALISATION,
    "cross_entropy_forward": LOSS,
    "sgd": SGD,
    "adamw": ADAMW,
}


def changed(body, *changes):
    """A right body with (old, new) pieces exchanged, each of which must be there."""
    for old, new in changes:
        assert old in body, f"{old} is not in {body}"
        body = body.replace(old, new)
    return body


def _global(dx):
    return f"N, H, W, C = x_shape; return np.zeros(x_shape, dy.dtype) + {dx}"


# (exercise, body, the mistake's name, where it shows, None for everywhere)
WRONG = [
    ("relu", "return dy", "mask missing", None),
    ("relu", "return dy * (dy > 0)", "mask of dy", None),
    ("relu", "return np.where(y > 0, 0, dy)", "mask inverted", None),
    ("relu", "return (y > 0).astype(dy.dtype)", "slope without dy", None),
    ("relu", "return dy * y", "times y", None),
    ("relu", "return -dy * (y > 0)", "negated", None),
    ("relu", "return dy * y > 0", "comparison of the product", None),
    ("relu", "dy *= y > 0; return dy", "input changed", None),
    ("relu", "return dy.astype(np.float64) * (y > 0)", "dtype", None),
    ("relu", "return (dy * (y > 0)).astype(np.float32)", "rounded to float32", None),
    ("relu", "dx = np.zeros_like(dy); dx[0] = dy[0] * (y[0] > 0); return dx", "only the first image",
     None),
    ("relu", "dx = dy * (y > 0); dx[..., -1] = dy[..., -1]; return dx", "unknown", None),
    ("relu", "return dy * (y > 0) / y", "not finite", None),
    ("linear", changed(LINEAR, ("dy @ self.weight.data.T", "dy @ self.weight.data.T / len(x)")), "divided by N", None),
    ("linear", changed(LINEAR, ("x.T @ dy", "x.T @ dy / len(x)"), ("dy.sum(0)", "dy.mean(0)")), "divided by N", None),
    ("linear", changed(LINEAR, ("grad += x.T @ dy", "grad = dy.T @ x")), "transposed", None),
    ("linear", changed(LINEAR, ("x.T @ dy", "dy.T @ x")), "dy not transposed", None),
    ("linear", changed(LINEAR, ("data.T", "data")), "weight not transposed", None),
    ("linear", changed(LINEAR, ("dy.sum(0)", "dy.sum()")), "summed over the wrong axes", None),
    ("linear", changed(LINEAR, ("self.weight.grad += ", "self.weight.grad[...] = ")), "overwritten", None),
    ("linear", changed(LINEAR, ("self.bias.grad += ", "self.bias.grad = ")), "overwritten", None),
    ("linear", changed(LINEAR, ("self.bias.grad += dy.sum(0); ", "")), "zero", None),
    ("linear", changed(LINEAR, ("+= x.T @ dy", "-= x.T @ dy")), "negated", None),
    ("linear", changed(LINEAR, ("+= x.T", "+= 2 * x.T")), "multiplied by 2", None),
    ("linear", changed(LINEAR, ("x.T @ dy", "x[:1].T @ dy[:1]")), "only the first image", None),
    ("linear", changed(LINEAR, ("dy.sum(0)", "dy[:-1].sum(0) if len(dy) > 1 else dy[0]")), "without the last image",
     "right for a batch of one only"),
    ("linear", changed(LINEAR, ("return dy", "return dy.astype(np.float64)")), "dtype", None),
    ("mse", "return (y - target) / y.size", "2 forgotten", None),
    ("mse", "return 2 * (y - target)", "not averaged", None),
    ("mse", "return 2 * (y - target) / len(y)", "averaged over N alone", None),
    ("mse", "return 2 * (target - y) / y.size", "target minus y", None),
    ("mse", "return y - target", "neither 2 nor mean", None),
    ("mse", "y -= target; y *= 2 / y.size; return y", "input changed", None),
    ("cross_entropy", changed(ENTROPY, (" / len(p)", "")), "not averaged", None),
    ("cross_entropy", changed(ENTROPY, ("[np.arange(len(p)), target]", "[:, target]")), "targets of all rows", None),
    ("cross_entropy", changed(ENTROPY, ("p.copy()", "p")), "input changed", None),
    ("cross_entropy", "return p / len(p)", "one-hot missing", None),
    ("cross_entropy", changed(ENTROPY, ("return dy", "return -dy")), "sign flipped", None),
    ("cross_entropy", changed(ENTROPY, ("dy = p.copy()", "dy = np.zeros_like(p)")), "softmax missing", None),
    ("cross_entropy", changed(ENTROPY, ("dy = p.copy()", "dy = np.zeros_like(p)"),
                              ("-= 1", "-= 1 / p[np.arange(len(p)), target]")), "gradient by p", None),
    ("cross_entropy", changed(ENTROPY, ("dy / len(p)", "dy / p.size")), "averaged over K too", None),
    ("cross_entropy", changed(ENTROPY, ("dy / len(p)", "dy * p * (1 - p) / len(p)")), "p (1 - p) once more", None),
    ("global_avgpool", _global("dy[:, None, None]"), "not divided", None),
    ("global_avgpool", _global("dy[:, None, None] / H"), "divided by one side", None),
    ("global_avgpool", _global("dy[:, None, None] / (H * W * C)"), "divided by C too", None),
    ("global_avgpool", _global("dy[:, None, None] / (N * H * W)"), "divided by N", None),
    ("global_avgpool", "dx = np.zeros(x_shape, dy.dtype); dx[:, 0, 0] = dy; return dx", "one pixel only", None),
    ("global_avgpool", "return dy / (x_shape[1] * x_shape[2])", "shape", None),
    ("avgpool", changed(AVGPOOL, ("dy / (k * k)", "dy")), "not divided", None),
    ("avgpool", changed(AVGPOOL, ("dy / (k * k)", "dy / k")), "divided by k", None),
    ("avgpool", changed(AVGPOOL, ("] += dy", "] = dy")), "overlaps overwritten", None),
    ("avgpool", changed(AVGPOOL, ("p:p + H, p:p + W", ":H, :W")), "padding cut at the end", None),
    ("avgpool", changed(AVGPOOL, ("+= dy / (k * k)", "+= -dy / (k * k)")), "negated", None),
    ("avgpool", changed(AVGPOOL, ("range(k):\n            padded", "range(k - 1):\n            padded")),
     "last tap missing", None),
    ("maxpool", AVGPOOL, "average pooling's gradient", None),
    ("maxpool", changed(AVGPOOL, ("dy / (k * k)", "dy")), "dy to the whole window", None),
    ("maxpool", changed(MAXPOOL, ("i * k + j", "j * k + i")), "rows for columns", None),
    ("maxpool", changed(MAXPOOL, ("] += dy", "] = dy")), "overlaps overwritten", None),
    ("maxpool", changed(MAXPOOL, (
        "padded[:, i:i + s * (OH - 1) + 1:s, j:j + s * (OW - 1) + 1:s] += dy * (winner == i * k + j)",
                                  "np.copyto(padded[:, i:i + s * (OH - 1) + 1:s, j:j + s * (OW - 1) + 1:s], dy, "
                                  "where=winner == i * k + j)")), "wins count once", None),
    ("maxpool", changed(MAXPOOL, ("p:p + H, p:p + W", ":H, :W")), "padding cut at the end", None),
    ("conv1x1", changed(CONV1, ("data[0, 0].T", "data[0, 0]")), "weight not transposed", None),
    ("conv1x1", changed(CONV1, ("dx = np.zeros_like(x)", "st = self.stride; dx = dy @ self.weight.data[0, 0].T"),
                        ("    dx[:, ::self.stride, ::self.stride] = dy @ self.weight.data[0, 0].T\n", ""),
                        ("return dx", "return dx.repeat(st, 1).repeat(st, 2)[:, :x.shape[1], :x.shape[2]]")),
     "skipped pixels filled", None),
    ("conv1x1", changed(CONV1, ("dy.sum((0, 1, 2))", "dy.mean((0, 1, 2))")), "divided by N*OH*OW", None),
    ("conv1x1", changed(CONV1, ("self.weight.grad[0, 0] +=", "self.weight.grad[0, 0] =")), "overwritten", None),
    ("conv3x3", changed(CONV3, ("] += dy", "] = dy")), "overlaps overwritten", None),
    ("conv3x3", changed(CONV3, ("p:p + H, p:p + W", ":H, :W")), "padding cut at the end", None),
    ("conv3x3", changed(CONV3, ("dy @ weight[i, j].T", "dy @ weight[k - 1 - i, k - 1 - j].T")), "kernel not flipped", None),
    ("conv3x3", changed(CONV3, ("grad[i, j]", "grad[j, i]")), "transposed", None),
    ("conv3x3", changed(CONV3, ("grad[i, j]", "grad[k - 1 - i, k - 1 - j]")), "flipped", None),
    ("conv3x3", changed(CONV3, ("padded[:, rows, columns], dy", "padded[:, i:i + OH, j:j + OW], dy")),
     "stride forgotten", None),
    ("conv3x3", changed(CONV3, ("dy.sum((0, 1, 2))", "dy.sum((0, 1, 2)) / len(dy)")), "divided by N", None),
    ("conv3x3", changed(CONV3, ("return", "dpadded[:, :, -1 - p] *= s == 1; return")), "unknown",
     "right at stride 1, wrong at stride 2"),
    ("conv3x3", changed(CONV3, ("dpadded = ", "full = dy; dy = dy.copy(); dy[:, :, -1] *= s == 1\n    dpadded = "),
                        ("columns], dy)", "columns], full)")), "without the last output column", "right at stride 1, "
                        "wrong at stride 2"),
    ("batchnorm_eval", changed(EVALUATION, ("dy * self.weight.data * inv_std", "dy * inv_std")), "weight missing", None),
    ("batchnorm_eval", changed(EVALUATION, ("data * inv_std", "data * inv_std ** 2")), "inv_std squared", None),
    ("batchnorm_eval", changed(EVALUATION, (" * inv_std", "")), "inv_std missing", None),
    ("batchnorm_eval", BATCHNORM, "training formula", None),
    ("batchnorm_eval", changed(EVALUATION, ("(dy * x_hat).sum", "dy.sum")), "x_hat missing", None),
    ("batchnorm_steps", changed(STEPS, (" + dmean / m", "")), "mean term missing", None),
    ("batchnorm_steps", changed(STEPS, (" + dvar * 2 * (x_hat / inv_std) / m", "")), "variance term missing", None),
    ("batchnorm_steps", changed(STEPS, ("-0.5", "-1")), "variance term doubled", None),
    ("batchnorm_steps", changed(STEPS, ("dvar * 2 *", "dvar *")), "variance term halved", None),
    ("batchnorm_steps", changed(STEPS, ("m = dy * self.weight.data, dy.size // dy.shape[3]",
                                        "m = dy * self.weight.data, len(dy)")), "means over N", None),
    ("batchnorm_steps", changed(STEPS, ("-inv_std * g.sum", "inv_std * g.sum")), "mean term's sign", None),
    ("batchnorm_steps", changed(STEPS, ("inv_std ** 2", "inv_std")), "wrong term", None),
    ("batchnorm_steps", changed(STEPS, ("dmean / m", "3 * dmean / m")), "wrong term", None),
    ("batchnorm", changed(BATCHNORM, ("return inv_std * ", "return 1 / inv_std * ")), "inv_std inverted", None),
    ("batchnorm", changed(BATCHNORM, ("return inv_std * ", "return inv_std ** 3 * ")), "wrong term", None),
    ("layernorm", changed(LAYERNORM, ("return inv_std * ", "return 1 / inv_std * ")), "inv_std inverted", None),
    ("layernorm", changed(LAYERNORM, ("- x_hat * (g", "- 3 * x_hat * (g")), "wrong term", None),
    ("batchnorm", changed(BATCHNORM, (" - x_hat * (g * x_hat).mean((0, 1, 2))", "")), "variance term missing", None),
    ("batchnorm", changed(BATCHNORM, (" - g.mean((0, 1, 2))", "")), "mean term missing", None),
    ("batchnorm", changed(BATCHNORM, ("return inv_std * (g - g.mean((0, 1, 2)) - x_hat * (g * x_hat).mean((0, 1, 2)))",
                                      "return inv_std * g")), "statistics constant", None),
    ("batchnorm", changed(BATCHNORM, ("g = dy * self.weight.data", "g = dy")), "weight missing", None),
    ("batchnorm", changed(BATCHNORM, ("mean((0, 1, 2))", "mean((1, 2), keepdims=True)")), "means of one image", None),
    ("batchnorm", changed(BATCHNORM, ("return inv_std * ", "return ")), "inv_std missing", None),
    ("batchnorm", changed(BATCHNORM, ("return inv_std * ", "return inv_std ** 2 * ")), "inv_std squared", None),
    ("batchnorm", changed(BATCHNORM, ("return", "x_hat *= (g * x_hat).mean((0, 1, 2)); return"),
                          ("x_hat * (g * x_hat).mean((0, 1, 2)))", "x_hat)")), "input changed", None),
    ("batchnorm", changed(BATCHNORM, ("(dy * x_hat).sum((0, 1, 2))", "(dy * x_hat).mean((0, 1, 2))")),
     "divided by N*H*W", None),
    ("batchnorm", changed(BATCHNORM, ("self.bias.grad += dy.sum((0, 1, 2))", "self.bias.grad = dy.sum((0, 1))")),
     "summed over the wrong axes", None),
    ("layernorm", changed(LAYERNORM, (" - x_hat * (g * x_hat).mean(-1, keepdims=True)", "")), "variance term missing", None),
    ("layernorm", changed(LAYERNORM, (" - g.mean(-1, keepdims=True)", "")), "mean term missing", None),
    ("layernorm", changed(LAYERNORM, ("g = dy * self.weight.data", "g = dy"), ("return", "return self.weight.data *")),
     "weight outside", None),
    ("layernorm", changed(LAYERNORM, ("mean(-1, keepdims=True)", "mean((0, 1, 2))")), "means over the batch", None),
    ("layernorm", changed(LAYERNORM, ("g = dy * self.weight.data", "g = dy")), "weight missing", None),
    ("layernorm", changed(LAYERNORM, ("(dy * x_hat).sum", "dy.sum")), "x_hat missing", None),
    ("dropout", "return dy if keep is None else dy * keep", "not rescaled", None),
    ("dropout", "return dy", "mask and scale missing", None),
    ("dropout", "return dy if keep is None else dy / dy.dtype.type(1 - self.p)", "mask missing", None),
    ("dropout", "return dy if keep is None else dy * ~keep / dy.dtype.type(1 - self.p)", "mask inverted", None),
    ("dropout", "return dy if keep is None else dy * (self.rng.random(dy.shape) >= self.p) / dy.dtype.type(1 - self.p)",
     "another draw", None),
    ("dropout", "return (dy if keep is None else dy * keep) / dy.dtype.type(1 - self.p)", "scaled in evaluation", None),
    ("basic_block", changed(BASIC, (" + self.shortcut.backward(g)", "")), "shortcut forgotten", None),
    ("basic_block", changed(BASIC, ("return branch + ", "return ")), "branch forgotten", None),
    ("basic_block", changed(BASIC, ("g = self.relu.backward(dy)", "g = dy")), "last ReLU skipped", None),
    ("basic_block", changed(BASIC, ("shortcut.backward(g)", "shortcut.backward(dy)")), "shortcut gets dy", None),
    ("basic_block", changed(BASIC, ("self.relu1.backward(branch)", "branch")), "relu1 skipped", None),
    ("basic_block", changed(BASIC, ("self.shortcut.backward(g)", "self.shortcut.backward(branch)")),
     "shortcut after the branch", None),
    ("basic_block", changed(BASIC, ("self.bn2.backward(g)", "g")), "bn2 skipped", None),
    ("basic_block", changed(BASIC, ("self.shortcut.backward(g)", "g")), "projection taken for identity", "N = 2, stride 2"),
    ("basic_block", changed(BASIC, ("self.conv2.backward(self.bn2.backward(g))",
                                    "self.bn2.backward(self.conv2.backward(g))")),
     "first wrong part", None),
    ("basic_block", changed(BASIC, ("self.bn1.backward(self.relu1.backward(branch))",
                                    "self.relu1.backward(self.bn1.backward(branch))")), "first wrong part", None),
    ("bottleneck", changed(BOTTLENECK, ("self.bn2.backward(self.relu2.backward(branch))",
                                        "self.relu2.backward(self.bn2.backward(branch))")), "first wrong part", None),
    ("bottleneck", changed(BOTTLENECK, ("self.shortcut.backward(g)", "g")), "projection taken for identity",
     "N = 2, stride 2"),
    ("bottleneck", changed(BOTTLENECK, (" + self.shortcut.backward(g)", "")), "shortcut forgotten", None),
    ("bottleneck", changed(BOTTLENECK, ("return branch + ", "return ")), "branch forgotten", None),
    ("bottleneck", changed(BOTTLENECK, ("self.relu2.backward(branch)", "branch")), "relu2 skipped", None),
    ("bottleneck", changed(BOTTLENECK, ("self.relu2.backward(branch)", "branch"), ("self.relu1.backward(branch)", "branch")),
     "inner ReLUs skipped", None),
    ("bottleneck", changed(BOTTLENECK, ("bn3.backward(g)", "bn3.backward(dy)")), "branch gets dy", None),
    ("bottleneck", changed(BOTTLENECK, ("g = self.relu.backward(dy)", "g = dy")), "last ReLU skipped", None),
    ("conv_forward", changed(CONVOLUTION, (" + self.bias.data", "")), "bias missing", None),
    ("conv_forward", changed(CONVOLUTION, (" + self.bias.data", ""), ("@ weight[i, j]", "@ weight[i, j] + self.bias.data")),
     "bias at each tap", None),
    ("conv_forward", changed(CONVOLUTION, ("weight[i, j]", "weight[k - 1 - i, k - 1 - j]")), "kernel flipped", None),
    ("conv_forward", changed(CONVOLUTION, ("weight[i, j]", "weight[j, i]")), "rows for columns", None),
    ("conv_forward", changed(CONVOLUTION, ("(p, p), (p, p)", "(0, 2 * p), (0, 2 * p)")), "padded at the end",
     None),
    ("conv_forward", changed(CONVOLUTION, ("- k) // s + 1", "- k) // s")), "shape", None),
    ("conv_forward", changed(CONVOLUTION, ("x.dtype", "float")), "dtype", None),
    ("batchnorm_forward", changed(NORMALISATION, (" * (m / (m - 1))", "")), "running variance biased", None),
    ("batchnorm_forward", changed(NORMALISATION, ("x.var((0, 1, 2))", "x.var((0, 1, 2), ddof=1)"), (" * (m / (m - 1))", "")),
     "unbiased variance", None),
    ("batchnorm_forward", changed(NORMALISATION, ("if self.training", "if True")), "training in evaluation",
     None),
    ("batchnorm_forward", changed(NORMALISATION, ("np.sqrt(var + self.eps)", "(np.sqrt(var) + self.eps)")),
     "eps outside the root", None),
    ("batchnorm_forward", changed(NORMALISATION, ("(1 - momentum) *", "momentum *"), ("+ momentum *", "+ (1 - momentum) *")),
     "momentum exchanged", None),
    ("batchnorm_forward", changed(NORMALISATION, ("        self.running_var =", "        unused =")),
     "running_var stands still", None),
    ("cross_entropy_forward", changed(LOSS, ("float(-log_p", "float(log_p")), "sign missing", None),
    ("cross_entropy_forward", changed(LOSS, (".mean()", ".sum()")), "sum for mean", None),
    ("cross_entropy_forward", "p = np.exp(y) / np.exp(y).sum(1, keepdims=True)\n"
     "return -np.log(p[np.arange(len(y)), target]).mean()", "not finite", "right at N = 1, wrong at N = 4, x times 1,000"),
    ("cross_entropy_forward", changed(LOSS, ("-log_p[np.arange(len(target)), target].mean()", "-log_p.sum(1).mean()")),
     "all classes", None),
    ("sgd", changed(SGD, ("parameter.data -= ", "parameter.data += ")), "uphill", None),
    ("sgd", changed(SGD, ("velocity *= self.momentum\n    velocity += g", "velocity = self.momentum * velocity + g")),
     "velocity forgotten", None),
    ("sgd", changed(SGD, ("velocity += g", "velocity += self.lr * g"), ("self.lr * (g + self.momentum * velocity if "
     "self.nesterov else velocity)", "(self.lr * g + self.momentum * velocity if self.nesterov else velocity)")),
     "rate inside the velocity", None),
    ("sgd", changed(SGD, ("velocity += g", "velocity += (1 - self.momentum) * g")), "dampened", None),
    ("sgd", changed(SGD, (" + self.weight_decay * parameter.data", "")), "decay forgotten", None),
    ("sgd", changed(SGD, ("if self.nesterov else", "if False else")), "Nesterov forgotten", None),
    ("sgd", changed(SGD, ("parameter.data -= ", "parameter.data = parameter.data - ")), "not in place", None),
    ("sgd", changed(SGD, ("g = parameter.grad + ", "g = parameter.grad; g += ")), "input changed", None),
    ("adamw", changed(ADAMW, (" / (1 - b1 ** self.steps)", "")), "first not corrected", None),
    ("adamw", changed(ADAMW, (" / (1 - b2 ** self.steps)", "")), "second not corrected", None),
    ("adamw", changed(ADAMW, ("** self.steps", "** (self.steps + 1)")), "corrected one step late", None),
    ("adamw", changed(ADAMW, ("root = np.sqrt(second / (1 - b2 ** self.steps))",
                              "root = np.sqrt(second / (1 - b2 ** self.steps) + self.eps)"), ("root + self.eps", "root")),
     "eps inside the root", None),
    ("adamw", changed(ADAMW, ("parameter.grad ** 2", "np.abs(parameter.grad)")), "not squared", None),
    ("adamw", changed(ADAMW, ("self.lr * self.weight_decay * parameter.data", "0")), "decay forgotten", None),
]
