"""Blocks computed by the fused operators: the same maths with fewer passes over memory.

`minires.fuse(model)` switches it on for every block of a network, `minires.fuse(model, False)` off; parameters, keys and
results stay the same (a test holds them equal). A block is a chain of units, each a convolution and its batch
normalisation, with a ReLU between them, and what stands at the end: y = relu(F(x) + S(x)), S absent in plain blocks.

Forward keeps the outputs z of the convolutions and y; the normalised images in between are formed again where they are
read (`prologue`). Backward goes through the units in reverse. Each step hands the one before it the gradient g at its
normalisation's output, with the two sums, sum(g) and sum(g * (z - mean)), that the normalisation's backward needs:
they are all that couples the images of a batch.
"""
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
    return mean, var, (bn.weight.data / (var + bn.eps) ** 0.5).astype(var.dtype)


def forward(block, x, shortcut=None):
    """relu(F(x) + S(x)) of a block, F its units and S the `shortcut` layer or None. Keeps what `backward` needs."""
    if in_inference_mode() and not block.training:
        return folded_forward(block, x, shortcut)
    block.conv1.check(x)
    ops, value, prologue, kept = ops_for(x), x, None, []
    for conv, bn in block.units():
        z, mean, var = ops.conv2d_moments(value, prologue, conv.weight.data, conv.stride, conv.padding)
        count = bn.values_per_channel(z)
        mean, var, scale = statistics_of(bn, mean, var, count)
        kept.append((value, prologue, z, mean, var, count if bn.training else None))
        value, prologue = z, (mean, scale, bn.bias.data)
    y = ops.normalise_add_relu(value, prologue, None if shortcut is None else shortcut.forward(x))
    block._save(y, kept)
    return y


def backward(block, dy, shortcut=None, need_dx=True):
    """dx of the block; adds to its parameters' gradients."""
    ops = ops_for(dy)
    y, kept = block._saved()
    *_, z, mean, _, _ = kept[-1]
    g, sum_g, sum_gx = ops.add_relu_gradient(dy, y, z, mean)
    del dy, y  # their memory serves the next result
    residual = None if shortcut is None else shortcut.backward(g)
    for index, (conv, bn) in reversed(list(enumerate(block.units()))):
        x, prologue, z, mean, var, count = kept.pop()
        *factors, dweight, dbias = ops.batchnorm_coefficients(sum_g, sum_gx, var, bn.weight.data, bn.eps, count)
        bn.weight.grad += dweight
        bn.bias.grad += dbias
        first = index == 0
        g, dweight, sum_g, sum_gx = ops.conv2d_unit_gradient(
            g, z, (mean, *factors), x, prologue, conv.weight.data, conv.stride, conv.padding,
            residual if first else None, need_dx or not first)
        conv.weight.grad += dweight
    return g


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
