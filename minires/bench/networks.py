"""The networks that are timed: a name of minires.models, or NAME@SIZE with the ImageNet stem on images of that size."""
from minires.errors import UserError
from minires.models import RESNETS, build_model
from minires.models.own import is_own

MOST_PIXELS = 512  # a side
WIDE = [name for name, design in RESNETS.items() if "stem" not in design]  # the ImageNet family, with either stem


def parts(model):
    """"resnet50@224" -> ("resnet50", "imagenet", 224), "resnet20" -> ("resnet20", "cifar", 32), as does FILE.py:function.

    UserError for other text.
    """
    if is_own(model):
        return model, "cifar", 32
    name, at, size = model.partition("@")
    if name not in RESNETS:
        raise UserError(f"--models {model} is unknown: choose from {', '.join(RESNETS)}, or one of the ImageNet family "
                        "with a size, such as resnet50@224")
    if not at:
        return name, "cifar", 32
    if name not in WIDE or not (size.isdecimal() and 32 <= int(size) <= MOST_PIXELS):
        raise UserError(f"--models {model}: a size goes with {', '.join(WIDE)}, and is a number from 32 to {MOST_PIXELS}, "
                        "as in resnet50@224")
    return name, "imagenet", int(size)


def build_network(model, rng=None):
    """The network of such a text, with ten classes."""
    name, stem, _ = parts(model)
    return build_model(name, stem=None if stem == "cifar" else stem, rng=rng)


def default_batches(model, work):
    """The batch sizes of a network: 128, 32 and 1; fewer images where a network is wide or its images are large."""
    name, stem, _ = parts(model)
    if stem == "imagenet":
        return (8, 1)
    return (64, 32, 1) if work == "training" and name in WIDE else (128, 32, 1)
