"""Where a gradient came from: identity or branch, block by block, and by the number of branches on its way.

A block is y = relu(F(x) + S(x)). For a fixed forward pass its backward is linear in dy, and a sum of two linear maps:

    g = relu'(F + S) * dy        dx = S^T g + F^T g        (S^T: shortcut.backward, F^T: branch_backward)

*Parts.* The two terms are the part that came through the identity and the part that came through the branch.

*Paths.* Multiplied out over n blocks, the gradient at the stem's output is a sum over 2^n paths, each through some k of
the branches. Let G_k be the sum over the paths with k branches. Mark each branch by a factor t, and the backward pass
carries a polynomial in t, whose coefficients are gradients:

    G(t) = sum_k t^k G_k        one block back:   G'_k = S^T relu' G_k + F^T relu' G_(k-1)

G(1) is the gradient, G_0 has passed no weight of a branch. Nothing is sampled, and no path is left out: n blocks cost
n (n + 1) / 2 branch backwards for all 2^n paths. In a plain network S is absent, and only k = n remains.

*The check.* The parts and paths come from the layers one by one; the whole they must add up to comes from a planned step
(`minires.compile`), another forward and another backward pass, by operators that compute several layers at once. A plan
keeps no gradient but those of parameters. So a parameter is put before each block that is added to nothing, and whose
gradient is the block's dL/dx.

Both are computed in float64: in float32 the two forwards differ by roundings of 1e-7, which put some of the millions of
ReLUs that are nearly at their kink on different sides, and each takes its whole entry of the gradient with it, far more
than the 1e-6 that is asked for.

Source: He et al. 2016, equation 5, https://arxiv.org/abs/1603.05027; Veit et al. 2016, https://arxiv.org/abs/1605.06431
"""
from contextlib import contextmanager
from dataclasses import dataclass
from math import comb

import numpy as np

from minires.backends import ops_for
from minires.errors import UserError
from minires.layer import Layer, Parameter, Sequential, inference_mode, listening
from minires.layers import Conv2d, Linear
from minires.layers.residual import _Branch
from minires.losses import CrossEntropyLoss
from minires.plan import compile

TOLERANCE = 1e-6


@dataclass(frozen=True)
class BlockGradient:
    """dL/dx at a block's input. whole, identity, branch: norms; cosine: of the angle between the two parts, None where one
    is zero; share: the identity's <identity, whole> / <whole, whole> (the branch's is the rest); error: |identity +
    branch - whole| / |whole|, whole from a planned step."""

    block: str
    whole: float
    identity: float
    branch: float
    cosine: float | None
    share: float
    error: float


@dataclass(frozen=True)
class PathLengths:
    """The gradient at the stem's output by the number k of branches passed. norm: |G_k|, k = 0 .. n; share: <G_k, G> /
    <G, G>, which add up to 1; count: paths of each length; error: |sum_k G_k - G| / |G|."""

    norm: tuple
    share: tuple
    count: tuple
    error: float


@dataclass(frozen=True)
class BackwardNorms:
    """One backward pass. loss; blocks: {name: |dL/dx| at its input}; layers: {name: |dL/dweight|} of convolutions and the
    linear layer, from the stem on."""

    loss: float
    blocks: dict
    layers: dict


def blocks_of(network):
    """{dotted name: block} of the network's residual or plain blocks, in the order they run."""
    return {name: layer for name, layer in network.named_layers() if name and isinstance(layer, _Branch)}


def is_residual(block):
    """Whether the block has a shortcut."""
    return hasattr(block, "shortcut")


STEM = ("conv1", "bn1", "relu")


def require_known(network, name):
    """UserError unless a network is a stem, basic or bottleneck blocks, residual or plain, and a last layer `fc`."""
    first = [child for child, _ in network.named_children()][:len(STEM)]
    if tuple(first) != STEM or not hasattr(network, "fc") or not blocks_of(network):
        raise UserError(f"the X-ray looks at stem, basic, bottleneck or plain blocks and a last layer, and {name} is made "
                        "of something else: choose a network such as resnet20")


def stem(network):
    """The layers that run first, in order."""
    return [getattr(network, name) for name in STEM]


def body(network):
    """[(dotted name, layer)] of what runs after the stem: blocks, pooling and the linear layer, in order."""
    parts = []
    for name, layer in network.named_children():
        if isinstance(layer, Sequential):
            parts += [(f"{name}.{index}", block) for index, block in enumerate(layer)]
        elif name not in STEM:
            parts.append((name, layer))
    return parts


@contextmanager
def watched(layers, method, see):
    """Inside, each layer's `method` ("forward" or "backward") calls see(name, result) when it is done.

    layers: {name: layer}; only what calls the layers one by one is seen.
    """
    names = {layer: name for name, layer in layers.items()}

    def tell(layer, called, _, result):
        if called == method:
            see(names[layer], result)

    with listening(names, tell):
        yield


def backward_norms(network, x, target, keep=None):
    """The BackwardNorms of one training step's backward pass, as it is planned, in the network's mode.

    x: (N, H, W, C); target: (N,). keep: a dict that receives each block's dL/dx. The network's gradients are overwritten,
    and in training mode its running statistics move: pass a copy.
    """
    blocks = {layer: name for name, layer in blocks_of(network).items()}
    parts, taps, y = [], {}, x
    with inference_mode():  # a forward pass for the shapes alone
        for layer in [*stem(network), *(layer for _, layer in body(network))]:
            if layer in blocks:
                taps[blocks[layer]] = _Tap(np.zeros_like(y))
                parts.append(taps[blocks[layer]])
            parts.append(layer)
            y = layer.forward(y)
    loss, _ = compile(Sequential(*parts), CrossEntropyLoss())(x, target)
    whole = {name: tap.nothing.grad for name, tap in taps.items()}
    if keep is not None:
        keep.update(whole)
    layers = {name: _norm(layer.weight.grad) for name, layer in network.named_layers() if isinstance(layer, Conv2d | Linear)}
    return BackwardNorms(loss, {name: _norm(dx) for name, dx in whole.items()}, layers)


class _Tap(Layer):
    """The identity, and a parameter whose gradient is dL/dx: what y = x + nothing would give it."""

    def __init__(self, nothing):
        self.nothing = Parameter(nothing)

    def forward(self, x):
        return x

    def backward(self, dy):
        self.nothing.accumulate(dy)
        return dy


def decompose(network, x, target, whole, progress=lambda: None, keep=None):
    """([BlockGradient, ...] from the first block on, PathLengths) of the loss on a batch, in the network's mode.

    x: (N, H, W, C) float64; target: (N,); whole: {block: dL/dx}, what the parts must add up to (`backward_norms`).
    progress() is called after each block; keep: a dict that receives {k: G_k}. RuntimeError when the parts do not add up
    to 1e-6: a fault of the engine. The network's gradients are overwritten, and in training mode its running statistics
    move: pass a copy.
    """
    _, dy = _loss(network, x, target)
    paths, parts = None, []
    for name, layer in reversed(body(network)):
        if not isinstance(layer, _Branch):
            if paths is not None:
                break  # before the blocks: the stem's pooling
            dy = layer.backward(dy)
            continue
        through = _replayable(layer)
        identity, branch = through(dy)
        parts.append(_block_gradient(name, whole[name], identity, branch))
        paths = _one_block_back({0: dy} if paths is None else paths, through)
        dy = _sum(identity, branch)
        progress()
    network.zero_grad()
    network.forget()
    if keep is not None:
        keep.update(paths)
    lengths = _path_lengths(paths, whole[parts[-1].block], len(parts))
    _require_whole(parts, lengths)
    return parts[::-1], lengths


def _loss(network, x, target):
    loss = CrossEntropyLoss()
    value = loss.forward(network.forward(x), target)
    return value, loss.backward()


def _replayable(block):
    """dy -> (identity part or None, branch part) of the block's dx, as often as wanted for one forward."""
    kept = [(layer, layer._kept) for _, layer in block.named_layers()]

    def through(dy):
        for layer, value in kept:  # a backward frees what forward kept
            layer._kept = value
        g = block.relu.backward(dy)
        return (block.shortcut.backward(g) if is_residual(block) else None), block.branch_backward(g)

    return through


def _one_block_back(paths, through):
    """{k: G_k} at a block's output -> at its input."""
    before = {}
    for k, dy in paths.items():
        identity, branch = through(dy)
        for length, part in ((k, identity), (k + 1, branch)):
            if part is not None:
                before[length] = _sum(before.get(length), part)
    return before


def _sum(first, second):
    return second if first is None else ops_for(second).add(first, second)


def _norm(array):
    return float(np.linalg.norm(array.ravel()))


def _dot(first, second):
    return float(np.vdot(first, second))


def _block_gradient(name, whole, identity, branch):
    size, through_branch = _norm(whole), _norm(branch)
    if identity is None:
        return BlockGradient(name, size, 0.0, through_branch, None, 0.0, _norm(branch - whole) / size)
    through_identity = _norm(identity)
    product = through_identity * through_branch
    cosine = _dot(identity, branch) / product if product else None
    return BlockGradient(name, size, through_identity, through_branch, cosine, _dot(identity, whole) / size ** 2,
                         _norm(identity + branch - whole) / size)


def _path_lengths(paths, whole, n):
    total = sum(paths.values())
    size = _norm(whole)
    norms = [_norm(paths[k]) if k in paths else 0.0 for k in range(n + 1)]
    shares = [_dot(paths[k], whole) / size ** 2 if k in paths else 0.0 for k in range(n + 1)]
    counts = [comb(n, k) if len(paths) > 1 else int(k in paths) for k in range(n + 1)]
    return PathLengths(tuple(norms), tuple(shares), tuple(counts), _norm(total - whole) / size)


def _require_whole(parts, lengths):
    """RuntimeError that names where, on the way back, the parts first differ from the whole."""
    errors = {part.block: part.error for part in parts} | {"the sum over path lengths": lengths.error}
    where = next((place for place, error in errors.items() if not error <= TOLERANCE), None)
    if where is not None:
        raise RuntimeError(f"the parts of the gradient differ from the whole by {errors[where]:.1e} at {where}, more than "
                           f"{TOLERANCE:.0e}: the layers and the planned step disagree")
