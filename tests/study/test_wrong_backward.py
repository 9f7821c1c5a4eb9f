"""The proof of the proof: for every layer, mistakes that people make in a backward pass are caught, tensor by tensor."""
from contextlib import contextmanager

import numpy as np
import pytest

import minires.layers
from minires.backends import reference as ops
from minires.backends import use_backend
from minires.backends.activations import normal_cdf, sigmoid
from minires.layer import calls_go_to
from minires.study import GradientError, LossLayer, check_gradients, distinct_nonzero, randomise_parameters
from minires.study.subjects import LAYERS, LOSSES


@contextmanager
def wrong_backward(layer, wrong):
    """Inside, the layer's backward is wrong(layer, right, dy), right(dy) what it was."""
    def watch(method, called, array):
        if called is layer and method.__name__ == "backward":
            return wrong(layer, lambda dy: method(layer, dy), array)
        return method(called, array)

    with calls_go_to(watch):
        yield


def scale(name, factor):
    """The right backward with one tensor multiplied: a mean for a sum, a lost weight, a wrong sign."""
    def wrong(layer, right, dy):
        before = {key: parameter.grad.copy() for key, parameter in layer.named_parameters()}
        dx = right(dy)
        if name == "dx":
            return dx * factor
        parameter = dict(layer.named_parameters())[name]
        parameter.grad[...] = before[name] + factor * (parameter.grad - before[name])
        return dx
    return wrong


def drop(name):
    return scale(name, 0.0)


def overwrite(name):
    """grad = instead of grad +=."""
    def wrong(layer, right, dy):
        dict(layer.named_parameters())[name].zero_grad()
        return right(dy)
    return wrong


def change_dx(change):
    """The right backward, and then something done to dx."""
    return lambda layer, right, dy: change(right(dy))


def replace_dx(make):
    """dx made by another formula from (layer, what forward kept, dy); the parameters' gradients stay right."""
    def wrong(layer, right, dy):
        kept = layer._kept
        right(dy)
        return make(layer, kept, dy)
    return wrong


def narrow(layer, right, dy):
    return right(dy).astype(np.float32)


def flattened(layer, right, dy):
    return right(dy).reshape(-1)


def shifted_by_one(layer, kept, dy):
    """col2im that puts the patches back one row too low."""
    return np.roll(ops.conv2d_input_gradient(dy, layer.weight.data, kept[0].shape, layer.stride, layer.padding,
                                             layer.dilation), 1, axis=1)


def col2im_overwrites(layer, kept, dy):
    """col2im with = for +=: where windows overlap only the last one counts."""
    (x,), geometry = kept, (layer.stride, layer.padding, layer.dilation)
    dpatches = (dy @ layer.weight.data.reshape(-1, dy.shape[3]).T).reshape(*dy.shape[:3], *layer.weight.data.shape[:3])
    padded = ops.pad_image(np.zeros_like(x), layer.padding)
    for (i, j), window in ops.taps(layer.kernel_size, dy.shape[1:3], geometry[0], geometry[2]):
        padded[window] = dpatches[:, :, :, i, j]
    return ops.crop_image(padded, layer.padding)


def unflipped_kernel(layer, right, dy):
    """The weight's gradient with the kernel's axes flipped, as a true convolution would have it."""
    before = layer.weight.grad.copy()
    dx = right(dy)
    layer.weight.grad[...] = before + (layer.weight.grad - before)[::-1, ::-1]
    return dx


def transposed_weight_gradient(layer, right, dy):
    """Square taps, rows and columns exchanged."""
    before = layer.weight.grad.copy()
    dx = right(dy)
    layer.weight.grad[...] = before + (layer.weight.grad - before).transpose(1, 0, 2, 3)
    return dx


def batchnorm_without(*dropped):
    """dx of batch normalisation with one or both of its correction terms left out."""
    def make(layer, kept, dy):
        x, mean, var, _ = kept
        inv_std = 1 / np.sqrt(var + layer.eps)
        x_hat, m = (x - mean) * inv_std, x.size // x.shape[-1]
        g = dy.copy()
        if "mean" not in dropped:
            g -= dy.sum((0, 1, 2)) / m
        if "var" not in dropped:
            g -= x_hat * ((dy * x_hat).sum((0, 1, 2)) / m)
        return g * inv_std if "weight" in dropped else g * inv_std * layer.weight.data
    return replace_dx(make)


def batchnorm_as_in_the_other_mode(layer, right, dy):
    *kept, batch_statistics = layer._kept
    layer._kept = (*kept, not batch_statistics)
    return right(dy)


def layernorm_weight_outside(layer, kept, dy):
    """The weight applied after the means, as in batch normalisation, where it is constant along the axis."""
    x, mean, var = kept
    inv_std = 1 / np.sqrt(var + layer.eps)
    x_hat = (x - mean) * inv_std
    g = dy - dy.mean(-1, keepdims=True) - x_hat * (dy * x_hat).mean(-1, keepdims=True)
    return layer.weight.data * inv_std * g


def tanh_form(layer, kept, dy):
    """The gradient of GELU's approximation by tanh, while forward is exact."""
    (x,), c = kept, np.sqrt(2 / np.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    return dy * ((1 + t) / 2 + x * (1 - t * t) / 2 * c * (1 + 3 * 0.044715 * x * x))


def groupnorm_weight_outside(layer, kept, dy):
    """The weight applied after the means, while it varies inside a group."""
    return layer.weight.data * ops.groupnorm_backward(dy, *kept, np.ones_like(layer.weight.data), layer.eps)[0]


def groupnorm_constant(layer, kept, dy):
    x, mean, var = kept
    parts = (layer.weight.data * dy).reshape(*x.shape[:3], layer.num_groups, -1)
    return (parts / np.sqrt(var + layer.eps)).reshape(x.shape)


def maxpool_shares(layer, kept, dy):
    """Average pooling's gradient in max pooling."""
    if layer.dilation == (1, 1):
        return ops.avgpool2d_backward(dy, kept[1], layer.kernel_size, layer.stride, layer.padding)
    return np.zeros(kept[1])


def maxpool_wins_once(layer, kept, dy):
    """A pixel that won several windows takes the last dy instead of their sum."""
    argmax, x_shape = kept
    won = argmax[:, :, :, None] == np.arange(np.prod(layer.kernel_size))[:, None]
    padded = ops.pad_image(np.zeros(x_shape), layer.padding)
    for tap, ((_, _), window) in enumerate(ops.taps(layer.kernel_size, dy.shape[1:3], layer.stride, layer.dilation)):
        np.copyto(padded[window], dy, where=won[:, :, :, tap])
    return ops.crop_image(padded, layer.padding)


def avgpool_of_real_pixels(layer, kept, dy):
    """Divided by the pixels inside the image, while forward counted the padding."""
    count = ops.avgpool2d_forward(np.ones(kept[0]), layer.kernel_size, layer.stride, layer.padding)
    return ops.avgpool2d_backward(dy / count, kept[0], layer.kernel_size, layer.stride, layer.padding)


def new_draw(layer, right, dy):
    """Dropout's backward with a mask of its own."""
    keep = layer.rng.random(dy.shape, np.float32) >= layer.p
    right(dy)
    return ops.dropout_backward(dy, keep, layer.p)


def repeated_in_skipped_pixels(layer, kept, dy):
    """Nearest-neighbour upsampling for the adjoint of taking every second pixel."""
    H, W = kept[0][1:3]
    before = (dy.shape[3] - kept[0][3]) // 2
    return dy.repeat(2, 1).repeat(2, 2)[:, :H, :W, before:before + kept[0][3]]


def first_channels(layer, kept, dy):
    """The gradient of the first channels, while forward put its own in the middle."""
    dx = np.zeros(kept[0])
    dx[:, ::2, ::2] = dy[..., :kept[0][3]]
    return dx


def without_shortcut(layer, right, dy):
    return layer.branch_backward(layer.relu.backward(dy))


def without_branch(layer, right, dy):
    """The parameters of F are trained, but F's dx never joins the shortcut's."""
    g = layer.relu.backward(dy)
    layer.branch_backward(g)
    return layer.shortcut.backward(g)


def shortcut_after_branch(layer, right, dy):
    """The shortcut gets what the branch passes on, instead of what arrived at the sum."""
    g = layer.branch_backward(layer.relu.backward(dy))
    return g + (layer.shortcut.backward(g) if g.shape == dy.shape else 0)


def without_last_relu(layer, right, dy):
    layer.relu.backward(dy)
    with wrong_backward(layer.relu, lambda *_: dy):
        return right(dy)


def skips(name):
    """One layer of the branch is left out of the way back."""
    def wrong(layer, right, dy):
        with wrong_backward(getattr(layer, name), lambda part, right, g: g):
            return right(dy)
    return wrong


BLOCK_1 = {"dx", "conv1.weight", "bn1.weight", "bn1.bias"}
BLOCK_2 = {"conv2.weight", "bn2.weight", "bn2.bias"}
BLOCK_3 = {"conv3.weight", "bn3.weight", "bn3.bias"}
PROJECTION = {"shortcut.0.weight", "shortcut.1.weight", "shortcut.1.bias"}

# (row of LAYERS or LOSSES, the mistake, wrong(layer, right backward, dy), the tensors that must be named)
MISTAKES = [
    ("Conv2d", "one row too low", replace_dx(shifted_by_one), {"dx"}),
    ("Conv2d", "overlaps overwritten", replace_dx(col2im_overwrites), {"dx"}),
    ("Conv2d uneven pairs", "overlaps overwritten", replace_dx(col2im_overwrites), {"dx"}),
    ("Conv2d", "flipped kernel", unflipped_kernel, {"weight"}),
    ("Conv2d stride 2", "rows for columns", transposed_weight_gradient, {"weight"}),
    ("Conv2d", "bias gradient dropped", drop("bias"), {"bias"}),
    ("Conv2d", "bias averaged over the batch", scale("bias", 1 / 2), {"bias"}),
    ("Conv2d", "weight averaged over the batch", scale("weight", 1 / 2), {"weight"}),
    ("Conv2d", "weight overwritten", overwrite("weight"), {"weight"}),
    ("Conv2d", "bias overwritten", overwrite("bias"), {"bias"}),
    ("Conv2d", "float32", narrow, {"dx"}),
    ("BatchNorm2d", "mean's term dropped", batchnorm_without("mean"), {"dx"}),
    ("BatchNorm2d", "variance's term dropped", batchnorm_without("var"), {"dx"}),
    ("BatchNorm2d", "weight dropped", batchnorm_without("weight"), {"dx"}),
    ("BatchNorm2d", "statistics taken as constants", batchnorm_as_in_the_other_mode, {"dx"}),
    ("BatchNorm2d evaluation", "statistics of the batch", batchnorm_as_in_the_other_mode, {"dx"}),
    ("BatchNorm2d", "mean for sum", scale("weight", 1 / 60), {"weight"}),
    ("BatchNorm2d", "bias dropped", drop("bias"), {"bias"}),
    ("BatchNorm2d", "bias overwritten", overwrite("bias"), {"bias"}),
    ("LayerNorm rows", "weight outside the means", replace_dx(layernorm_weight_outside), {"dx"}),
    ("LayerNorm images", "weight overwritten", overwrite("weight"), {"weight"}),
    ("LayerNorm images", "mean for sum", scale("bias", 1 / 24), {"bias"}),
    ("BatchNorm2d frozen", "statistics of the batch", batchnorm_as_in_the_other_mode, {"dx"}),
    ("GroupNorm", "weight outside the means", replace_dx(groupnorm_weight_outside), {"dx"}),
    ("GroupNorm", "statistics taken as constants", replace_dx(groupnorm_constant), {"dx"}),
    ("GroupNorm", "weight overwritten", overwrite("weight"), {"weight"}),
    ("GroupNorm one group", "mean for sum", scale("bias", 1 / 6), {"bias"}),
    ("Scale", "factor forgotten", lambda layer, right, dy: (right(dy), dy.copy())[1], {"dx"}),
    ("Scale", "weight overwritten", overwrite("weight"), {"weight"}),
    ("Scale of everything", "mean over the channels", scale("weight", 1 / 5), {"weight"}),
    ("Bias", "twice", scale("dx", 2), {"dx"}),
    ("Bias", "bias overwritten", overwrite("bias"), {"bias"}),
    ("Bias of everything", "mean over the batch", scale("bias", 1 / 4), {"bias"}),
    ("ReLU", "no mask", lambda layer, right, dy: (right(dy), dy.copy())[1], {"dx"}),
    ("ReLU", "mask of dy", lambda layer, right, dy: (right(dy), dy * (dy > 0))[1], {"dx"}),
    ("ReLU", "leaky", lambda layer, right, dy: right(dy) + 1e-4 * dy, {"dx"}),
    ("ReLU", "float32", narrow, {"dx"}),
    ("LeakyReLU", "no leak", replace_dx(lambda layer, kept, dy: dy * (kept[0] > 0)), {"dx"}),
    ("LeakyReLU", "the slope twice", replace_dx(lambda layer, kept, dy: np.where(kept[0] > 0, dy, 0.04 * dy)), {"dx"}),
    ("GELU", "the gate constant", replace_dx(lambda layer, kept, dy: dy * normal_cdf(kept[0])), {"dx"}),
    ("GELU", "the tanh form", replace_dx(tanh_form), {"dx"}),
    ("SiLU", "the gate constant", replace_dx(lambda layer, kept, dy: dy * sigmoid(kept[0])), {"dx"}),
    ("SiLU", "slope of the sigmoid", replace_dx(
        lambda layer, kept, dy: dy * sigmoid(kept[0]) * (1 - sigmoid(kept[0]))), {"dx"}),
    ("MaxPool2d", "average pooling's gradient", replace_dx(maxpool_shares), {"dx"}),
    ("MaxPool2d overlapping", "average pooling's gradient", replace_dx(maxpool_shares), {"dx"}),
    ("MaxPool2d overlapping", "several wins count once", replace_dx(maxpool_wins_once), {"dx"}),
    ("AvgPool2d", "sum for mean", scale("dx", 4), {"dx"}),
    ("AvgPool2d overlapping", "padding not counted", replace_dx(avgpool_of_real_pixels), {"dx"}),
    ("GlobalAvgPool2d", "not divided", scale("dx", 15), {"dx"}),
    ("GlobalAvgPool2d", "shape of dy", flattened, {"dx"}),
    ("Flatten", "left flat", flattened, {"dx"}),
    ("Flatten", "channels first", change_dx(lambda dx: dx.reshape(2, 5, 3, 4).transpose(0, 2, 3, 1)), {"dx"}),
    ("Linear", "bias gradient dropped", drop("bias"), {"bias"}),
    ("Linear", "bias averaged over the batch", scale("bias", 1 / 4), {"bias"}),
    ("Linear", "weight averaged over the batch", scale("weight", 1 / 4), {"weight"}),
    ("Linear", "weight overwritten", overwrite("weight"), {"weight"}),
    ("Linear", "weight's columns reversed", change_dx(lambda dx: dx[:, ::-1]), {"dx"}),
    ("Linear without bias", "wrong sign", scale("weight", -1), {"weight"}),
    ("Dropout", "a mask of its own", new_draw, {"dx"}),
    ("Dropout", "not rescaled", scale("dx", 0.6), {"dx"}),
    ("Dropout evaluation", "drops in evaluation", new_draw, {"dx"}),
    ("Identity", "twice", scale("dx", 2), {"dx"}),
    ("Identity", "nothing", scale("dx", 0), {"dx"}),
    ("PaddedShortcut", "skipped pixels filled", replace_dx(repeated_in_skipped_pixels), {"dx"}),
    ("PaddedShortcut", "first channels", replace_dx(first_channels), {"dx"}),
    ("Residual", "shortcut forgotten", lambda layer, right, dy: right(dy) - dy, {"dx"}),
    ("Residual", "branch's weight dropped", drop("branch.weight"), {"branch.weight"}),
    ("Residual", "branch's bias halved", scale("branch.bias", 0.5), {"branch.bias"}),
    ("Residual with a shortcut", "the branch alone", lambda layer, right, dy: layer.branch.backward(dy),
     {"dx", "shortcut.weight"}),
    ("BasicBlock", "shortcut forgotten", without_shortcut, {"dx"}),
    ("BasicBlock", "branch forgotten", without_branch, {"dx"}),
    ("BasicBlock", "shortcut after the branch", shortcut_after_branch, {"dx"}),
    ("BasicBlock", "last ReLU skipped", without_last_relu, BLOCK_1 | BLOCK_2),
    ("BasicBlock", "inner ReLU skipped", skips("relu1"), BLOCK_1),
    ("BasicBlock shortcut A", "shortcut forgotten", without_shortcut, {"dx"}),
    ("BasicBlock shortcut B", "shortcut forgotten", without_shortcut, {"dx"} | PROJECTION),
    ("BasicBlock shortcut B", "branch forgotten", without_branch, {"dx"}),
    ("BasicBlock shortcut B", "last ReLU skipped", without_last_relu, BLOCK_1 | BLOCK_2 | PROJECTION),
    ("BasicBlock evaluation", "inner ReLU skipped", skips("relu1"), BLOCK_1),
    *[("BasicBlock shortcut B", f"{name} dropped", drop(name), {name}) for name in sorted(BLOCK_1 | BLOCK_2 | PROJECTION)],
    ("Bottleneck", "shortcut forgotten", without_shortcut, {"dx"} | PROJECTION),
    ("Bottleneck identity", "shortcut forgotten", without_shortcut, {"dx"}),
    ("Bottleneck", "second ReLU skipped", skips("relu2"), BLOCK_1 | BLOCK_2),
    *[("Bottleneck", f"{name} overwritten", overwrite(name), {name})
      for name in sorted((BLOCK_1 | BLOCK_2 | BLOCK_3 | PROJECTION) - {"dx"})],
    ("PlainBlock", "last ReLU skipped", without_last_relu, BLOCK_1 | BLOCK_2),
    ("PlainBlock", "a shortcut's gradient added", lambda layer, right, dy: right(dy) + dy.mean(), {"dx"}),
    *[("PlainBlock", f"{name} halved", scale(name, 0.5), {name}) for name in sorted(BLOCK_1 | BLOCK_2)],
    ("CrossEntropyLoss", "not averaged", scale("dx", 5), {"dx"}),
    ("CrossEntropyLoss smoothed", "smoothing forgotten", lambda layer, right, dy: _unsmoothed(layer, right, dy), {"dx"}),
    ("CrossEntropyLoss of shares", "not averaged", scale("dx", 5), {"dx"}),
    ("MSELoss", "the 2 forgotten", scale("dx", 0.5), {"dx"}),
]


def _unsmoothed(layer, right, dy):
    softmax, target = layer.loss._kept
    right(dy)
    return ops.softmax_cross_entropy_backward(softmax, target, 0.0) * dy


@pytest.mark.parametrize(("subject", "mistake", "wrong", "tensors"), MISTAKES,
                         ids=[f"{subject}: {mistake}" for subject, mistake, _, _ in MISTAKES])
def test_mistake_is_caught(subject, mistake, wrong, tensors, rng):
    make, shape = {**LAYERS, **LOSSES}[subject]
    layer = randomise_parameters(make(rng).astype(np.float64), rng)
    with use_backend("reference"), wrong_backward(layer, wrong), pytest.raises(GradientError) as caught:
        check_gradients(layer, distinct_nonzero(shape, rng), rng, complete=100, sample=20)
    failed = {check.tensor for check in caught.value.report.tensors if not check.passed}
    assert failed == tensors
    assert all(f"{name} " in str(caught.value) for name in tensors)


def test_every_layer_and_loss_has_a_mistake():
    assert {subject.split()[0] for subject, *_ in MISTAKES} == {*minires.layers.__all__, "CrossEntropyLoss", "MSELoss"}


@pytest.mark.parametrize("subject", LAYERS)
def test_every_tensor_has_a_mistake(subject):
    """Each kind of layer has a mistake in dx and in each of its parameters."""
    kind = subject.split()[0]
    layer = LAYERS[subject][0](np.random.default_rng(0))
    named = set().union(*(tensors for name, _, _, tensors in MISTAKES if name.split()[0] == kind))
    assert {"dx", *(name for name, _ in layer.named_parameters())} <= named


def test_the_rows_are_losses_as_layers():
    assert all(isinstance(make(np.random.default_rng(0)), LossLayer) for make, _ in LOSSES.values())
