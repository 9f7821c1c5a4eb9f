"""Group normalisation, written once for NumPy's and CuPy's arrays: a part of the reference, and of the device's back end.

x, dy: (N, H, W, C); weight, bias: (C,); mean, var: (N, 1, 1, G, 1), of each group of C / G channels of each image.
"""
GROUP = (1, 2, 4)  # the axes of (N, H, W, G, C / G) that a group's values lie along


def groupnorm_forward(x, weight, bias, groups, eps):
    """-> y: (N, H, W, C), mean and (biased) var: (N, 1, 1, G, 1)."""
    parts = x.reshape(*x.shape[:3], groups, -1)
    mean = parts.mean(GROUP, keepdims=True)
    var = ((parts - mean) ** 2).mean(GROUP, keepdims=True)
    x_hat = ((parts - mean) / (var + eps) ** 0.5).reshape(x.shape)
    return weight * x_hat + bias, mean, var


def groupnorm_backward(dy, x, mean, var, weight, eps):
    """With g = weight * dy: dx = (g - mean(g) - x_hat * mean(g * x_hat)) / sqrt(var + eps), means over a group.

    -> dx: (N, H, W, C), dweight: (C,), dbias: (C,).
    """
    shape = (*x.shape[:3], mean.shape[3], -1)
    inv_std = 1 / (var + eps) ** 0.5
    x_hat = (x.reshape(shape) - mean) * inv_std
    g = (weight * dy).reshape(shape)
    dx = inv_std * (g - g.mean(GROUP, keepdims=True) - x_hat * (g * x_hat).mean(GROUP, keepdims=True))
    return dx.reshape(x.shape), (dy * x_hat.reshape(x.shape)).sum((0, 1, 2)), dy.sum((0, 1, 2))
