"""Test-time augmentation: logits averaged over several views of each image."""
import numpy as np

from minires import arguments

TTA = ("none", "mirror", "crops")


def over_views(predict, tta):
    """A function like `predict`, x: (N, H, W, C) -> logits (N, K), that averages over views of the images.

    tta: "none"; "mirror": an image and its mirror image (two passes); "crops": those for half of the mean, and for the other
    half both of two crops, a pixel up and left and a pixel down and right, what comes in reflected (six passes).
    Source: Jordan 2024, section 3.5, https://arxiv.org/abs/2404.00498 (multi-crop)
    """
    arguments.choice("tta", tta, TTA)
    if tta == "none":
        return predict

    def mirrored(x):
        y = 0.5 * predict(x)
        return y + 0.5 * predict(x[:, :, ::-1].copy())

    def cropped(x):
        H, W = x.shape[1:3]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")  # on a device CuPy's
        first, last = (padded[:, at:at + H, at:at + W].copy() for at in (0, 2))
        return 0.5 * mirrored(x) + 0.25 * (mirrored(first) + mirrored(last))

    return mirrored if tta == "mirror" else cropped
