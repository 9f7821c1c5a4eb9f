"""The CIFAR and ImageNet ResNet families and their plain twins, by name, and any other ResNet by its numbers."""
import inspect

from minires.arguments import shown, text
from minires.errors import UserError
from minires.init import default_rng
from minires.models.own import absolute, build_own, is_own
from minires.models.resnet import CIFAR_DEPTHS, IMAGENET_LAYOUTS, CifarResNet, ImageNetResNet, ResNet

MODELS = (*(f"resnet{depth}" for depth in CIFAR_DEPTHS), *(f"plain{depth}" for depth in CIFAR_DEPTHS),
          *(f"resnet{depth}" for depth in IMAGENET_LAYOUTS))
_DESIGN = inspect.signature(ResNet).parameters.keys() - {"num_classes", "shortcut", "stem", "in_channels", "rng"}


def depth_of(name):
    """The number in a model's name: 20 of "resnet20" and of "plain20"."""
    return int(name.removeprefix("resnet").removeprefix("plain"))


def build_model(name, num_classes=10, shortcut=None, stem=None, *, in_channels=3, rng=None, **design):
    """A network by name, He-initialised from `rng`, a Generator or a seed (seed 0 when none is given).

    name: one of MODELS, FILE.py:function for what a function of your own makes (`minires.models.own`), or "resnet" for one
    of any design, which the other arguments of `ResNet` say:

        build_model("resnet", blocks=(2, 2, 2), channels=(16, 32, 64), block="basic")
        build_model("resnet", blocks=(4, 4, 4), channels=(16, 32, 64), block="preactivation", width=10, dropout=0.3)

    shortcut: "A" or "B" (default: A for the CIFAR family, B for all others).
    stem, not of the CIFAR family: "cifar" (3x3, no pooling; the default) or "imagenet" (7x7 stride 2 and max pooling).
    The network remembers how it was made in `built_as`, a dict of these arguments, for `minires.save`.
    UserError for an unknown name, shortcut or stem, and for an argument that the family does not have.
    """
    if not is_own(name) and (not isinstance(name, str) or name not in (*MODELS, "resnet")):
        raise UserError(f"unknown model {shown(name)}: choose one of {', '.join(MODELS)}, resnet with blocks and "
                        "channels, or FILE.py:function of your own")
    shortcut, stem = text("shortcut", shortcut, optional=True), text("stem", stem, optional=True)
    said = {"shortcut": shortcut, "stem": stem, "in_channels": None if in_channels == 3 else in_channels, **design}
    said = {key: value for key, value in said.items() if value is not None}
    network = _built(name, num_classes, shortcut, stem, in_channels, default_rng(0 if rng is None else rng), design, said)
    network.built_as = {"name": absolute(name), "num_classes": num_classes, **said}
    return network


def _built(name, num_classes, shortcut, stem, in_channels, rng, design, said):
    if is_own(name):
        if said:
            raise UserError(f"{name} says itself what it makes, got {', '.join(said)}: leave that out")
        return build_own(name, num_classes, rng)
    if name == "resnet":
        unknown = sorted(design.keys() - _DESIGN)
        if unknown:
            raise UserError(f"resnet has no {', '.join(unknown)}: choose among {', '.join(sorted(_DESIGN))}")
        if not {"blocks", "channels"} <= design.keys():
            raise UserError("resnet needs blocks and channels of each stage: build_model('resnet', blocks=(2, 2, 2), "
                            "channels=(16, 32, 64))")
        return ResNet(num_classes=num_classes, shortcut=shortcut or "B", stem=stem or "cifar", in_channels=in_channels,
                      rng=rng, **design)
    if design:
        raise UserError(f"{name} has its own {', '.join(design)}: leave that out, or choose resnet with blocks and channels")
    plain, depth = name.startswith("plain"), depth_of(name)
    if depth in CIFAR_DEPTHS:
        if stem not in (None, "cifar"):
            raise UserError(f"{name} has one stem, cifar, got stem {stem!r}: resnet18 to resnet152 have the imagenet stem")
        if plain and shortcut is not None:
            raise UserError(f"{name} has no shortcuts, got shortcut {shortcut!r}: leave it out")
        return CifarResNet(depth, num_classes, shortcut or "A", plain=plain, in_channels=in_channels, rng=rng)
    return ImageNetResNet(depth, num_classes, shortcut or "B", stem or "cifar", in_channels=in_channels, rng=rng)


__all__ = ["MODELS", "CifarResNet", "ImageNetResNet", "ResNet", "build_model"]
