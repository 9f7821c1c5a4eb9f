"""Second derivatives without forming them: the Hessian of a loss times a vector, and its largest eigenvalue.

With g(w) the gradient of the loss over all weights, written as one vector, the Hessian is H = dg/dw, and

    H v = d/dt g(w + t v) at t = 0

is the change of the gradient as the weights move along v: the forward-mode product of the whole forward and backward pass.
So every line of a backward pass is differentiated once more, by hand, with a δ for a change (Pearlmutter's R{.}):

    y = f(x; weight)               δy  from `forward_mode`: δx and δweight in, δy out
    dx = backward(dy)              δdx and δdweight from dy and δdy, below, one closure for each layer

It costs about three gradients, and no step size. Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian".
"""
from dataclasses import dataclass

import numpy as np

from minires.backends import ops_for
from minires.backends.activations import normal_density, sigmoid
from minires.backends.groupnorm import GROUP
from minires.errors import UserError
from minires.layers import GELU, BatchNorm2d, Bias, Conv2d, GroupNorm, LayerNorm, Linear, Residual, Scale, SiLU
from minires.losses import CrossEntropyLoss, MSELoss
from minires.study.forward_mode.products import CHAINS, RESIDUALS, branch_of, chain_of, forward_once, rule_of, tangent
from minires.study.forward_mode.rules import (
    LAYER_RULES,
    LOSS_RULES,
    batchnorm_normalised,
    groupnorm_normalised,
    normalised,
    shares,
)
from minires.study.gradcheck import LayerState

# Each rule: (layer, x, δx, tangents, sums) -> y, δy, back, where back(dy, δdy) gives (dx, δdx) and adds (dweight, δdweight)
# to sums[weight], a list of the two, for each parameter.


def _add(sums, parameter, gradient, change):
    if parameter is not None:
        sums[parameter][0] += gradient
        sums[parameter][1] += change


def _conv2d(layer, x, v, tangents, sums):
    """dx = C^T(dy; weight) and dweight = G(dy, x) are linear in each of the two they depend on: the product rule.

    δdx = C^T(δdy; weight) + C^T(dy; δweight)      δdweight = G(δdy, x) + G(dy, δx)      δdbias = sum of δdy
    """
    ops, weight, moved = ops_for(x), layer.weight.data, tangents[layer.weight]
    geometry = (layer.stride, layer.padding, layer.dilation)
    y, change = tangent(layer, x, v, tangents)

    def back(g, dg):
        _add(sums, layer.weight, ops.conv2d_weight_gradient(g, x, layer.kernel_size, *geometry),
             ops.conv2d_weight_gradient(dg, x, layer.kernel_size, *geometry)
             + ops.conv2d_weight_gradient(g, v, layer.kernel_size, *geometry))
        _add(sums, layer.bias, ops.channel_sum(g), ops.channel_sum(dg))
        return (ops.conv2d_input_gradient(g, weight, x.shape, *geometry),
                ops.conv2d_input_gradient(dg, weight, x.shape, *geometry)
                + ops.conv2d_input_gradient(g, moved, x.shape, *geometry))

    return y, change, back


def _linear(layer, x, v, tangents, sums):
    """δdx = δdy @ weight^T + dy @ δweight^T      δdweight = x^T @ δdy + δx^T @ dy      δdbias = sum of δdy."""
    y, change = tangent(layer, x, v, tangents)

    def back(g, dg):
        _add(sums, layer.weight, x.T @ g, x.T @ dg + v.T @ g)
        _add(sums, layer.bias, g.sum(0), dg.sum(0))
        return g @ layer.weight.data.T, dg @ layer.weight.data.T + g @ tangents[layer.weight].T

    return y, change, back


def _normalisation(layer, parts, axes, tangents, sums, grouped=None):
    """x_hat = (x - mean) s and dx = s P, P = q - mean(q) - x_hat mean(x_hat q), q = weight dy, means over `axes`
    (of x in the shape `grouped`, where it is given).

    δq = δweight dy + weight δdy, and by the product rule, with δx_hat and δs from `forward_mode.rules.normalised`:

        δP = δq - mean(δq) - δx_hat mean(x_hat q) - x_hat (mean(δx_hat q) + mean(x_hat δq))
        δdx = δs P + s δP
        δdweight = sum(δdy x_hat + dy δx_hat)      δdbias = sum(δdy)

    With constant statistics (axes None, evaluation) the means are not there: P = q, δP = δq, δs = 0.
    """
    x_hat, moved, s, s_moved = parts
    weight = layer.weight.data
    y = weight * x_hat + layer.bias.data
    change = weight * moved + tangents[layer.weight] * x_hat + tangents[layer.bias]

    def mean(values):
        if grouped is None:
            return values.mean(axes, keepdims=True)
        parts = values.reshape(grouped)
        return np.broadcast_to(parts.mean(axes, keepdims=True), parts.shape).reshape(values.shape)

    def back(g, dg):
        rows = tuple(range(g.ndim - 1))
        _add(sums, layer.weight, (g * x_hat).sum(rows), (dg * x_hat + g * moved).sum(rows))
        _add(sums, layer.bias, g.sum(rows), dg.sum(rows))
        q, dq = weight * g, tangents[layer.weight] * g + weight * dg
        if axes is None:
            return s * q, s * dq
        correlation = mean(x_hat * q)
        P = q - mean(q) - x_hat * correlation
        dP = dq - mean(dq) - moved * correlation - x_hat * mean(moved * q + x_hat * dq)
        return s * P, s_moved * P + s * dP

    return y, change, back


def _batchnorm2d(layer, x, v, tangents, sums):
    """`_normalisation` over batch and space; in evaluation with constant statistics."""
    axes = tuple(range(x.ndim - 1)) if layer.batch_statistics else None
    return _normalisation(layer, batchnorm_normalised(layer, x, v), axes, tangents, sums)


def _layernorm(layer, x, v, tangents, sums):
    """`_normalisation` over the channels of a pixel."""
    return _normalisation(layer, normalised(x, v, -1, layer.eps), -1, tangents, sums)


def _groupnorm(layer, x, v, tangents, sums):
    """`_normalisation` over space and a group of channels."""
    return _normalisation(layer, groupnorm_normalised(layer, x, v), GROUP, tangents, sums,
                          (*x.shape[:3], layer.num_groups, -1))


def _scale(layer, x, v, tangents, sums):
    """dx = weight dy: δdx = δweight dy + weight δdy      dweight = sum(dy x): δdweight = sum(δdy x + dy δx)."""
    y, change = tangent(layer, x, v, tangents)

    def back(g, dg):
        _add(sums, layer.weight, _shared(g * x, layer.weight), _shared(dg * x + g * v, layer.weight))
        return layer.weight.data * g, tangents[layer.weight] * g + layer.weight.data * dg

    return y, change, back


def _bias(layer, x, v, tangents, sums):
    """dx = dy, dbias = sum(dy)."""
    y, change = tangent(layer, x, v, tangents)

    def back(g, dg):
        _add(sums, layer.bias, _shared(g, layer.bias), _shared(dg, layer.bias))
        return g, dg

    return y, change, back


def _shared(values, vector):
    """The sum over all that share one number of a vector, (C,) or (1,)."""
    return values.reshape(-1, vector.data.size).sum(0)


def _curved(bend):
    """y = f(x) element by element, dx = f'(x) dy: δdx = f'(x) δdy + f''(x) δx dy. bend: f''."""
    def rule(layer, x, v, tangents, sums):
        y, change, adjoint = _constant_slope(layer, x, v, tangents, sums)

        def back(g, dg):
            dx, first = adjoint(g, dg)
            return dx, first + bend(x) * v * g

        return y, change, back

    return rule


def _gelu_bend(x):
    """f' = Φ + x φ and φ' = -x φ, so f'' = φ (2 - x^2)."""
    return normal_density(x) * (2 - x * x)


def _silu_bend(x):
    """f' = σ + x σ (1 - σ) and σ' = σ (1 - σ), so f'' = σ (1 - σ) (2 + x (1 - 2 σ))."""
    s = sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _constant_slope(layer, x, v, tangents, sums):
    """Linear layers without weights, ReLU, leaky ReLU and max pooling: the slope does not change as x moves a little, so
    that δdx is the layer's own backward pass, applied to δdy."""
    state = LayerState(layer)
    y, change = tangent(layer, x, v, tangents)

    def adjoint(gradient):
        state.restore()  # dropout drops what it dropped
        layer.forward(x)
        return layer.backward(gradient)

    return y, change, lambda g, dg: (adjoint(g), adjoint(dg))


def _run(layers, x, v, tangents, sums):
    backs = []
    for layer in layers:
        x, v, back = rule_of(layer, RULES)(layer, x, v, tangents, sums)
        backs.append(back)

    def back(g, dg):
        while backs:  # what a layer kept is freed once it was used
            g, dg = backs.pop()(g, dg)
        return g, dg

    return x, v, back


def _chain(layer, x, v, tangents, sums):
    """The chain rule backwards, for the gradient and its change alike."""
    return _run(chain_of(layer), x, v, tangents, sums)


def _residual(block, x, v, tangents, sums):
    """q = relu'(F + S) dy goes to both paths and their results add, and so do the changes."""
    branch, branch_v, branch_back = _run(branch_of(block), x, v, tangents, sums)
    shortcut, shortcut_v, shortcut_back = _run([block.shortcut], x, v, tangents, sums)
    y, change, relu_back = _run([block.relu], branch + shortcut, branch_v + shortcut_v, tangents, sums)

    def back(g, dg):
        q, dq = relu_back(g, dg)
        (branch_g, branch_dg), (shortcut_g, shortcut_dg) = branch_back(q, dq), shortcut_back(q, dq)
        return branch_g + shortcut_g, branch_dg + shortcut_dg

    return y, change, back


def _sum(layer, x, v, tangents, sums):
    """dx = F.backward(dy) + S.backward(dy), and the changes add too."""
    paths = [_run([path], x, v, tangents, sums) for path in (layer.branch, layer.shortcut)]

    def back(g, dg):
        (a, da), (b, db) = (path[2](g, dg) for path in paths)
        return a + b, da + db

    return paths[0][0] + paths[1][0], paths[0][1] + paths[1][1], back


RULES = {**dict.fromkeys(LAYER_RULES, _constant_slope), Conv2d: _conv2d, Linear: _linear, BatchNorm2d: _batchnorm2d,
         LayerNorm: _layernorm, GELU: _curved(_gelu_bend), SiLU: _curved(_silu_bend),
         GroupNorm: _groupnorm, Scale: _scale, Bias: _bias, Residual: _sum, **dict.fromkeys(CHAINS, _chain),
         **dict.fromkeys(RESIDUALS, _residual)}


def _cross_entropy(loss, y, v, target):
    """dy = (p - q) / N with p = softmax(y), and δp = p (δy - sum(p * δy)): δdy = δp / N."""
    p = np.exp(y - y.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return (p - shares(loss, y, target)) / len(y), p * (v - (p * v).sum(1, keepdims=True)) / len(y)


def _mse(loss, y, v, target):
    """dy = 2 (y - target) / size: δdy = 2 δy / size."""
    return 2 * (y - target) / y.size, 2 * v / y.size


LOSS_SECOND = {CrossEntropyLoss: _cross_entropy, MSELoss: _mse}


class LossHessian:
    """The Hessian of loss(network(x), target) over all weights of the network, as something to multiply by.

    x: (N, H, W, C) or what the network takes, target: what the loss takes, of the network's dtype and in host memory.
    Vectors are (P,), P the number of weights, in the order of `network.parameters()`. In training mode batch statistics
    move with the weights; evaluation mode has constants. At a ReLU's kink and at ties of max pooling, where there is no
    second derivative, the slope is held fixed.
    UserError for x or target that do not fit, for arrays on a GPU and for a layer without a rule.
    """

    def __init__(self, network, loss, x, target):
        loss.forward(forward_once(network, x), target)
        self.network, self.loss, self.x, self.target = network, loss, x, target
        self.parameters = network.parameters()
        self.size = sum(parameter.data.size for parameter in self.parameters)

    def product(self, v):
        """(loss, gradient: (P,), H v: (P,)). The network is left as it was; its gradients are not touched.

        UserError unless v is (P,).
        """
        if v.shape != (self.size,):
            raise UserError(f"this Hessian multiplies vectors of shape ({self.size},), one number a weight, got {v.shape}")
        tangents = dict(zip(self.parameters, self.split(v), strict=True))
        sums = {parameter: [np.zeros_like(parameter.data), np.zeros_like(parameter.data)] for parameter in self.parameters}
        state = LayerState(self.network)
        try:
            y, change, back = _run([self.network], self.x, np.zeros_like(self.x), tangents, sums)
            value, _ = rule_of(self.loss, LOSS_RULES)(self.loss, y, change, self.target)
            back(*rule_of(self.loss, LOSS_SECOND)(self.loss, y, change, self.target))
        finally:
            state.restore()
            self.network.forget()
        gradient, product = (np.concatenate([sums[p][part].ravel() for p in self.parameters]) for part in (0, 1))
        return value, gradient, product

    def __matmul__(self, v):
        """H v: (P,)."""
        return self.product(v)[2]

    def split(self, v):
        """v: (P,) as the parameters' shapes and dtype."""
        ends = np.cumsum([parameter.data.size for parameter in self.parameters])
        return [part.reshape(parameter.data.shape).astype(parameter.data.dtype)
                for part, parameter in zip(np.split(v, ends[:-1]), self.parameters, strict=True)]


@dataclass(frozen=True)
class Eigenvalues:
    """The ends of a spectrum: top and bottom eigenvalue, the top one's unit vector (P,), residual = |H v - top v|, which
    bounds top's error, and the number of products that were needed."""

    top: float
    bottom: float
    vector: np.ndarray
    residual: float
    products: int


def lanczos(hessian, size, rng, start=None, tolerance=1e-3, most=40):
    """The Eigenvalues of a symmetric `hessian @ v`, to residual <= tolerance * |top| or after `most` products.

    The k-th step adds a vector q to an orthonormal basis Q of the Krylov space of `start` (random when None) and keeps
    T = Q^T H Q, which is tridiagonal; T's largest eigenvalue converges to H's, much sooner than power iteration does, which
    uses the last vector alone. Q is orthogonalised in full, twice: rounding would let copies of found vectors return.
    UserError when a product is not finite.
    Source: Golub & Van Loan 2013, "Matrix Computations", chapter 10.
    """
    q = rng.standard_normal(size) if start is None else np.array(start, float)
    basis, alphas, betas = [q / np.linalg.norm(q)], [], []
    while True:
        w = np.asarray(hessian @ basis[-1], float)
        if not np.isfinite(w).all():
            raise UserError("the Hessian times a vector is not finite: take smaller weights, or float64")
        alphas.append(float(basis[-1] @ w))
        Q = np.array(basis)
        for _ in range(2):
            w = w - Q.T @ (Q @ w)
        beta = float(np.linalg.norm(w))
        values, vectors = np.linalg.eigh(np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1))
        residual = beta * abs(float(vectors[-1, -1]))
        done = residual <= tolerance * abs(values[-1]) or len(basis) == min(most, size)
        if done or beta <= 1e-12 * np.abs(values).max():
            return Eigenvalues(float(values[-1]), float(values[0]), Q.T @ vectors[:, -1], residual, len(basis))
        betas.append(beta)
        basis.append(w / beta)
