"""What a network sees: feature maps, Grad-CAM, gradients at the image, and the mistakes it makes.

Everything is computed in evaluation mode from the engine's own forward and backward; the model is left as it was found.
Letters: N images, H, W, C of an image, OH, OW, O of a layer's output, K classes.
"""
import numpy as np

from minires.backends import to_numpy
from minires.errors import UserError
from minires.layer import inference_mode
from minires.study.taps import left_as_found, opened, tapped


def feature_maps(model, x, layer):
    """The output of the layer called `layer` for images x: (N, H, W, C) -> (N, OH, OW, O).

    UserError for a name that is not in the model and for a layer that puts out no images.
    """
    return _look(model, x, [layer])[0][layer]


def grad_cam(model, x, layer, target=None):
    """Where a layer sees the evidence for a class: (N, OH, OW), at least 0.

    x: (N, H, W, C); layer: a layer's dotted name, or a list of them (then a dict of maps by name comes back, from one
    pass); target: (N,) classes, or None for the classes the model predicts. With A the layer's output and s the score
    (the logit) of the class:

        alpha_o = mean over OH, OW of ds/dA_o          map = max(0, sum_o alpha_o * A_o)

    Each image is differentiated for itself: in evaluation mode no image's score depends on another.
    UserError for a name that is not in the model, a layer that puts out no images, or targets out of range.
    Source: Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391
    """
    names = [layer] if isinstance(layer, str) else list(layer)
    outputs, gradients, _ = _look(model, x, names, target)
    maps = {}
    for name in names:
        alpha = gradients[name].mean((1, 2), keepdims=True)
        maps[name] = np.maximum((alpha * outputs[name]).sum(3), 0)
    return maps[layer] if isinstance(layer, str) else maps


def input_gradient(model, x, target=None):
    """ds/dx of the score s (the logit) of each image's class: (N, H, W, C). target as in `grad_cam`.

    The score and not the cross-entropy, whose gradient vanishes where the model is sure.
    Source: Simonyan et al. 2014, https://arxiv.org/abs/1312.6034
    """
    return _look(model, x, [], target)[2]


def saliency(dx):
    """How much a pixel matters to the score: max over C of |dx|. (N, H, W, C) -> (N, H, W)."""
    return np.abs(dx).max(-1)


def gradient_times_input(dx, x):
    """What a pixel contributes to the score, to first order: sum over C of dx * x. (N, H, W, C) twice -> (N, H, W).

    Positive speaks for the class. Source: Shrikumar et al. 2016, https://arxiv.org/abs/1605.01713
    """
    return (dx * x).sum(-1)


def classify(model, batches):
    """(probabilities (N, K) float64, target (N,)) of all images in `batches`, an iterable of (x, target)."""
    probabilities, targets = [], []
    with left_as_found(model):
        model.eval()
        with inference_mode():
            for x, target in batches:
                logits = to_numpy(model.forward(x)).astype(np.float64)
                powers = np.exp(logits - logits.max(1, keepdims=True))
                probabilities.append(powers / powers.sum(1, keepdims=True))
                targets.append(to_numpy(target))
    if not targets:
        raise UserError("there is no batch to classify: expected at least one image")
    return np.concatenate(probabilities), np.concatenate(targets)


def confusion_matrix(target, predicted, num_classes):
    """(K, K) counts: row the true class, column the predicted one. target, predicted: (N,) integers."""
    counts = np.bincount(np.asarray(target) * num_classes + predicted, minlength=num_classes ** 2)
    return counts.reshape(num_classes, num_classes)


def worst_mistakes(probabilities, target, count):
    """Indices of up to `count` misclassified images, the surest of its wrong class first. probabilities: (N, K)."""
    predicted = probabilities.argmax(1)
    wrong = np.flatnonzero(predicted != target)
    return wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:count]


def _look(model, x, names, target=None):
    """({name: y}, {name: ds/dy}, ds/dx) of the named layers, from one forward and one backward."""
    known = [name for name, _ in model.named_layers() if name]
    for name in names:
        if name not in known:
            raise UserError(f"layer {name!r} is not in this {type(model).__name__}: choose one such as "
                            f"{', '.join(_examples(known))}")
    outputs, gradients = {}, {}

    def on_forward(name, _, y):
        if name in names:
            outputs[name] = to_numpy(y).copy()

    def on_backward(name, _, dy, dx):
        if name in names:
            gradients[name] = to_numpy(dy).copy()

    with opened(model), tapped(model, on_forward, on_backward):
        scores = model.forward(x)
        flat = [name for name in names if outputs[name].ndim != 4]
        if flat:
            raise UserError(f"layer {flat[0]!r} puts out {outputs[flat[0]].shape}, which is no image: choose a layer "
                            "before the pooling at the end")
        dx = model.backward(_one_hot(scores, target))
    return outputs, gradients, to_numpy(dx)


def _one_hot(scores, target):
    """dy of the sum of the scores of the classes `target`."""
    N, K = scores.shape
    target = to_numpy(scores).argmax(1) if target is None else np.asarray(target)
    if target.shape != (N,) or target.dtype.kind not in "iu" or target.min() < 0 or target.max() >= K:
        raise UserError(f"target {target.tolist()} does not fit {N} images of {K} classes: expected {N} integers in "
                        f"0 .. {K - 1}")
    dy = scores * 0
    dy[np.arange(N), target] = 1
    return dy


def _examples(names):
    """A few of the names, of all depths."""
    return sorted({names[index] for index in np.linspace(0, len(names) - 1, 6).astype(int)}, key=names.index)
