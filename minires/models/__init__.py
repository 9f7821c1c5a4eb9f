"""The CIFAR and ImageNet ResNet families and their plain twins, by name, any other ResNet by its numbers, and `speedrun`."""
from minires.arguments import shown, text
from minires.errors import UserError
from minires.init import default_rng
from minires.models.resnet import CIFAR_DEPTHS, IMAGENET_LAYOUTS, CifarResNet, ImageNetResNet, ResNet
from minires.models.speedrun import Speedrun

MODELS = (*(f"resnet{depth}" for depth in CIFAR_DEPTHS), *(f"plain{depth}" for depth in CIFAR_DEPTHS),
          *(f"resnet{depth}" for depth in IMAGENET_LAYOUTS), "speedrun")


def depth_of(name):
    """The number in a model's name: 20 of "resnet20" and of "plain20"; None of "speedrun"."""
    number = name.removeprefix("resnet").removeprefix("plain")
    return int(number) if number.isdecimal() else None


def build_model(name, num_classes=10, shortcut=None, stem=None, *, in_channels=3, rng=None, **design):
    """A network by name, He-initialised from `rng`, a Generator or a seed (seed 0 when none is given).

    name: one of MODELS, or "resnet" for one of any design, which the other arguments of `ResNet` say (and those of
    `minires.models.speedrun.Speedrun` a "speedrun"):

        build_model("resnet", blocks=(2, 2, 2), channels=(16, 32, 64), block="basic")
        build_model("resnet", blocks=(4, 4, 4), channels=(16, 32, 64), block="preactivation", width=10, dropout=0.3)

    shortcut: "A" or "B" (default: A for the CIFAR family, B for all others).
    stem, not of the CIFAR family: "cifar" (3x3, no pooling; the default) or "imagenet" (7x7 stride 2 and max pooling).
    UserError for an unknown name, shortcut or stem, and for an argument that the family does not have.
    """
    if not isinstance(name, str) or name not in (*MODELS, "resnet"):
        raise UserError(f"unknown model {shown(name)}: choose one of {', '.join(MODELS)}, or resnet with blocks and "
                        "channels")
    shortcut, stem = text("shortcut", shortcut, optional=True), text("stem", stem, optional=True)
    rng = default_rng(0 if rng is None else rng)
    if name == "resnet":
        if not {"blocks", "channels"} <= design.keys():
            raise UserError("resnet needs blocks and channels of each stage: build_model('resnet', blocks=(2, 2, 2), "
                            "channels=(16, 32, 64))")
        return ResNet(num_classes=num_classes, shortcut=shortcut or "B", stem=stem or "cifar", in_channels=in_channels,
                      rng=rng, **design)
    if name == "speedrun":
        if shortcut is not None or stem is not None:
            raise UserError(f"speedrun has no shortcuts and one stem, got shortcut {shortcut!r} and stem {stem!r}: leave "
                            "them out")
        return Speedrun(num_classes, in_channels=in_channels, rng=rng, **design)
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


__all__ = ["MODELS", "CifarResNet", "ImageNetResNet", "ResNet", "Speedrun", "build_model"]
