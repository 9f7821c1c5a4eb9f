"""What the forward pass looks like from inside: statistics of every layer, dead ReLUs, what the branches add.

*Effective rank* of a matrix with singular values s (Roy & Vetterli 2007, "The effective rank"):

    p = s / sum(s)        erank = exp(-sum(p log p))        1 for rank one, C for C equal singular values

of a branch's output as a (N*H*W, C) matrix: how many directions of its C channels the branch uses.
"""
from dataclasses import dataclass

import numpy as np

from minires.layers import ReLU
from minires.study.xray.gradients import blocks_of, is_residual, watched


@dataclass(frozen=True)
class LayerActivity:
    """A layer's output over a batch. mean, std: over all values; dead: for a ReLU the fraction of its channels that are
    zero for every image and pixel, else None; active: for a ReLU the fraction of values above zero, else None."""

    layer: str
    kind: str
    mean: float
    std: float
    dead: float | None
    active: float | None


@dataclass(frozen=True)
class BranchActivity:
    """A block's F(x) beside its S(x). channels: C of both; effective_rank: of F(x), 1 .. C; branch, shortcut: root mean
    squares; ratio: branch / shortcut. shortcut and ratio are None in a plain block."""

    block: str
    channels: int
    effective_rank: float
    branch: float
    shortcut: float | None
    ratio: float | None


def effective_rank(matrix):
    """exp of the entropy of the normalised singular values of a (M, C) matrix; 0.0 for a matrix of zeros.

    The singular values are roots of the eigenvalues of the small (C, C) matrix of products; those that rounding alone
    could have made, under C epsilons of the largest, count as zero.
    """
    matrix = matrix.astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(matrix.T @ matrix)
    noise = len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues.max(initial=0)
    s = np.sqrt(eigenvalues[eigenvalues > noise])
    p = s / s.sum()
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0


def observe(network, x):
    """([LayerActivity], [BranchActivity]) of a forward pass of x: (N, H, W, C), in the network's mode, in running order.

    In training mode the running statistics move: pass a copy.
    """
    layers, branches = [], []
    leaves = {name: layer for name, layer in network.named_layers() if name and not list(layer.named_children())}
    blocks = blocks_of(network)
    names_of_sums = {f"{name}.bn{block.depth}": name for name, block in blocks.items()}
    ends = {f"{name}.shortcut": block.shortcut for name, block in blocks.items() if is_residual(block)}
    kinds = {name: type(layer).__name__ for name, layer in leaves.items()}
    held = {}

    def see(name, y):
        if name in kinds:
            layers.append(_layer_activity(name, kinds[name], y))
        if name in names_of_sums:
            block = names_of_sums[name]
            held[block] = (y.shape[-1], effective_rank(y.reshape(-1, y.shape[-1])), _root_mean_square(y))
        if name in ends:
            held[name] = _root_mean_square(y)

    with watched({**leaves, **ends}, "forward", see):
        network.forward(x)
    network.forget()
    for name in blocks:
        channels, rank, size = held[name]
        shortcut = held.get(f"{name}.shortcut")
        branches.append(BranchActivity(name, channels, rank, size, shortcut, size / shortcut if shortcut else None))
    return layers, branches


def _root_mean_square(y):
    return float(np.sqrt(np.mean(np.square(y))))


def _layer_activity(name, kind, y):
    dead = active = None
    if kind == ReLU.__name__:
        fires = (y > 0).reshape(-1, y.shape[-1])
        dead, active = 1 - float(fires.any(0).mean()), float(fires.mean())
    return LayerActivity(name, kind, float(y.mean()), float(y.std()), dead, active)
