"""Blocks computed by the fused operators: the same maths with fewer passes over memory.

`minires.fuse(model)` switches it on for every block of a network, `minires.fuse(model, False)` off; parameters, keys and
results stay the same (a test holds them equal). A block is a chain of units, each a convolution and its batch
normalisation, with a ReLU between them, and what stands at the end: y = relu(F(x) + S(x)), S absent in plain blocks.

Forward keeps x, the outputs z of the convolutions and y; the normalised images in between are formed again where they are
read (`prologue`). In a network even the images between two blocks are dropped (`drop_outputs`) and formed again from z when
backward comes to them, in memory that the later layers no longer need. Backward goes through the units in reverse. Each
step hands the one before it the gradient g at its normalisation's output, with the two sums, sum(g) and
sum(g * (z - mean)), that the normalisation's backward needs: they are all that couples the images of a batch. `join` lets a
block hand them to the block in front of it too. Forward the same: a block hands on its output unformed (`Handed`), and the
next one forms it, in memory too, where its first convolution reads it.
"""
from itertools import pairwise
from typing import NamedTuple

from minires.backends import ops_for
from minires.layer import in_inference_mode, inference_cache


def fuse(model, on=True):
    """Let every block of `model` be computed by the fused operators (or not, with on=False). Returns the model."""
    for _, layer in model.named_layers():
        if hasattr(layer, "fused"):
            layer.fused = on
    return model


def statistics_of(bn, mean, var, count):
    """(mean, var, scale) that a normalisation uses on z: the batch's in training, which its running ones follow."""
    if bn.training:
        bn.update_running(mean, var, count)
    else:
        mean, var = bn.running_mean, bn.running_var
    return mean, var, ops_for(var).normalisation_scale(bn.weight.data, var, bn.eps)


class _Unit(NamedTuple):
    """What one unit of a block keeps: its input as (value, prologue), value None for the block's x; its convolution's
    output z and what normalises it; count: the values a channel, None for running statistics."""

    value: object
    prologue: tuple | None
    z: object
    mean: object
    var: object
    count: int | None


class _Kept:
    """What a block keeps: x and y, which `drop_outputs` may take; the units, and the prologue that makes y from the last.

    front: what the block that made x keeps, if they are joined; sums: (sum_g, sum_gx) that the joined block behind took.
    """

    def __init__(self, x, units, last):
        self.x, self.y, self.units, self.last, self.front, self.sums = x, None, units, last, None, None


class Handed(NamedTuple):
    """A block's output y = relu(normalised z + residual) that is not formed yet: what the block keeps, and residual or None.

    The block behind forms it as its first convolution reads it.
    """

    kept: _Kept
    residual: object

    @property
    def z(self):
        return self.kept.units[-1].z


def formed(x):
    """The image itself, formed now where a block handed it on unformed."""
    if isinstance(x, Handed):
        x.kept.y = ops_for(x.z).normalise_add_relu(x.z, x.kept.last, x.residual)
        return x.kept.y
    return x


def unheard(layers):
    """Whether nobody listens to the layers, or replaced a `forward` to do so, who would want images."""
    return not any(layer.listeners or "forward" in vars(layer) for layer in layers)


def forward(block, x, shortcut=None, hand_on=False):
    """relu(F(x) + S(x)) of a block, F its units and S the `shortcut` layer or None. Keeps what `backward` needs.

    x: an image or Handed; returned is Handed too then, or if `hand_on` asks for it.
    """
    if in_inference_mode() and not block.training:
        return folded_forward(block, formed(x), shortcut)
    handed = isinstance(x, Handed)
    value, prologue, units = x.z if handed else x, None, []
    block.conv1.check(value)
    ops = ops_for(value)
    for conv, bn in block.units():
        geometry = conv.weight.data, conv.stride, conv.padding
        if handed and not units:
            x.kept.y, z, mean, var = ops.add_relu_conv2d_moments(value, x.kept.last, x.residual, *geometry)
            x = x.kept.y
        else:
            z, mean, var = ops.conv2d_moments(value, prologue, *geometry)
        count = bn.values_per_channel(z)
        mean, var, scale = statistics_of(bn, mean, var, count)
        units.append(_Unit(None if prologue is None else value, prologue, z, mean, var, count if bn.training else None))
        value, prologue = z, (mean, scale, bn.bias.data)
    kept = _Kept(x, units, prologue)
    block._save(kept)
    y = Handed(kept, None if shortcut is None else shortcut.forward(x))
    return y if handed or hand_on else formed(y)


def backward(block, dy, shortcut=None, need_dx=True):
    """dx of the block (of a joined one what the block in front begins with); adds to its parameters' gradients."""
    ops = ops_for(dy)
    (kept,) = block._saved()
    units, last = kept.units, kept.units[-1]
    g, sum_g, sum_gx = (dy, *kept.sums) if kept.sums else ops.add_relu_gradient(dy, kept.y, last.z, last.mean)
    kept.y = last = dy = None  # their memory serves the next result
    residual = None if shortcut is None else shortcut.backward(g)
    for index, (conv, bn) in reversed(list(enumerate(block.units()))):
        value, prologue, z, mean, var, count = units.pop()
        *factors, _, _ = ops.batchnorm_coefficients(sum_g, sum_gx, var, bn.weight.data, bn.eps, count,
                                                    (bn.weight.grad, bn.bias.grad))
        first, front, added = index == 0, None, None
        if first and isinstance(kept.x, Handed):
            value, prologue, added = kept.x.z, kept.x.kept.last, kept.x.residual
        elif first:
            value, front = kept.x, kept.front and (kept.front.units[-1].z, kept.front.units[-1].mean)
        g, _, sum_g, sum_gx = ops.conv2d_unit_gradient(
            g, z, (mean, *factors), value, prologue, conv.weight.data, conv.stride, conv.padding,
            residual if first else None, need_dx or not first, front, conv.weight.grad, added)
    if kept.front:
        kept.front.sums = sum_g, sum_gx
    return g


def join(chain):
    """Let blocks, each the input of the next, hand on g in place of dx in the backward pass that is to come.

    With y = relu(normalised z + S) of the block in front, a block's first convolution then masks dx and takes the sums while
    dx is in the cache: two passes over memory fewer for each block. Blocks that somebody listens to (or whose `backward` was
    replaced) hand on dx.
    """
    for (block, kept), (after, kept_after) in _neighbours(chain):
        if not (block.listeners or after.listeners or {"backward"} & (vars(block).keys() | vars(after).keys())):
            kept_after.front = kept


def drop_outputs(chain):
    """Let blocks, each the input of the next, forget the images between them; `restore_outputs` brings them back.

    A block whose shortcut has parameters keeps its output: forming it again would count its batch twice. A block of one
    unit, the stem, forgets z as well, since a convolution of three channels is soon done again.
    """
    for (block, kept), (_, after) in _neighbours(chain):
        shortcut = getattr(block, "shortcut", None)
        if shortcut is None or not shortcut.parameters():
            kept.y = after.x = None
            if len(kept.units) == 1:
                kept.units[0] = kept.units[0]._replace(z=None)


def restore_outputs(chain):
    """Form the images again that `drop_outputs` took: y = relu(normalised z + S(x)), from the first block on.

    The last of them nobody but the last block reads: it is handed on unformed, if the two are joined.
    """
    pairs = list(_neighbours(chain))
    for (block, kept), (_, after) in pairs:
        if kept.units[0].z is None:
            ops, conv = ops_for(kept.x), block.conv1
            z, _, _ = ops.conv2d_moments(kept.x, None, conv.weight.data, conv.stride, conv.padding)
            kept.units[0] = kept.units[0]._replace(z=z)
        if kept.y is None:
            shortcut = getattr(block, "shortcut", None)
            after.x = Handed(kept, None if shortcut is None else shortcut.forward(kept.x))
            if after is not pairs[-1][1][1] or after.front is None:
                after.x = formed(after.x)


def _neighbours(chain):
    """Pairs of (block, what it keeps), of those that were computed fused and wait for backward."""
    waiting = [(block, block._kept[0]) for block in chain if block.fused and isinstance(block._kept, tuple)]
    return pairwise(waiting if len(waiting) == len(chain) else [])


def folded_forward(block, x, shortcut):
    """Evaluation with nothing kept: each normalisation is an affine map of channels, folded into its convolution."""
    block.conv1.check(x)
    block._save()  # forgets what an earlier forward kept
    ops, y, folded = ops_for(x), x, folded_units(block)
    for index, (conv, weight, bias) in enumerate(folded):
        residual = shortcut.forward(x) if shortcut is not None and index == len(folded) - 1 else None
        y = ops.conv2d_bias_relu(y, weight, bias, residual, True, conv.stride, conv.padding)
    return y


def folded_units(block):
    """[(convolution, its weight, its bias)] with the normalisations folded in, once in an `inference_mode`:

    (conv(x) - mean) * scale + bias = conv(x; weight * scale) + (bias - mean * scale)

    The arrays are read-only, which lets a back end keep what it derives from them.
    """
    cache = inference_cache()
    if id(block) not in cache:
        units = []
        for conv, bn in block.units():
            scale = (bn.weight.data / (bn.running_var + bn.eps) ** 0.5).astype(bn.running_var.dtype)
            weight, bias = conv.weight.data * scale, bn.bias.data - bn.running_mean * scale
            if hasattr(weight.flags, "writeable"):  # CuPy's arrays have no such flag
                weight.flags.writeable = False
            units.append((conv, weight, bias))
        cache[id(block)] = block, units  # the block too: its id must not be another's
    return cache[id(block)][1]
