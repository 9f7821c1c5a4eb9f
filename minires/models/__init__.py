"""The CIFAR and ImageNet ResNet families and their plain twins, by name, any other ResNet by its numbers, and `speedrun`."""
import inspect
from functools import partial

from minires.arguments import shown, text
from minires.errors import UserError
from minires.init import default_rng
from minires.models.own import absolute, build_own, is_own
from minires.models.resnet import ResNet
from minires.models.speedrun import Speedrun


def _cifar(n, block):
    """He et al. 2015, section 4.2: three stages of n blocks of two convolutions, with stem and linear layer 6n + 2."""
    return {"blocks": (n, n, n), "channels": (16, 32, 64), "block": block, "shortcut": "A", "stem": "cifar"}


def _imagenet(block, *blocks):
    """Table 1."""
    return {"blocks": blocks, "channels": (64, 128, 256, 512), "block": block}


_DEPTHS = {6 * n + 2: n for n in (1, 2, 3, 5, 7, 9, 18)}
RESNETS = {  # the arguments of ResNet by name
    **{f"resnet{depth}": _cifar(n, "basic") for depth, n in _DEPTHS.items()},
    **{f"plain{depth}": _cifar(n, "plain") for depth, n in _DEPTHS.items()},
    "resnet18": _imagenet("basic", 2, 2, 2, 2), "resnet34": _imagenet("basic", 3, 4, 6, 3),
    "resnet50": _imagenet("bottleneck", 3, 4, 6, 3), "resnet101": _imagenet("bottleneck", 3, 4, 23, 3),
    "resnet152": _imagenet("bottleneck", 3, 8, 36, 3),
}
MODELS = (*RESNETS, "speedrun")


def build_model(name, num_classes=10, shortcut=None, stem=None, *, in_channels=3, rng=None, **design):
    """A network by name, He-initialised from `rng`, a Generator or a seed (seed 0 when none is given).

    name: one of MODELS, FILE.py:function for what a function of your own makes (`minires.models.own`), or "resnet" for one
    of any design, which the other arguments of `ResNet` say (and those of `minires.models.speedrun.Speedrun` a "speedrun"):

        build_model("resnet", blocks=(2, 2, 2), channels=(16, 32, 64), block="basic")
        build_model("resnet", blocks=(4, 4, 4), channels=(16, 32, 64), block="preactivation", width=10, dropout=0.3)

    shortcut: "A" or "B" (default: A for the CIFAR family, B for all others).
    stem, not of the CIFAR family: "cifar" (3x3, no pooling; the default) or "imagenet" (7x7 stride 2 and max pooling).
    With 1,000 classes and the imagenet stem, parameters and keys (but for downsample, here shortcut) are torchvision's.
    The network remembers how it was made in `built_as`, which called makes another, for `minires.save`.
    UserError for an unknown name, shortcut or stem, and for an argument that the family does not have.
    """
    if not is_own(name) and (not isinstance(name, str) or name not in (*MODELS, "resnet")):
        raise UserError(f"unknown model {shown(name)}: choose one of {', '.join(MODELS)}, resnet with blocks and "
                        "channels, or FILE.py:function of your own")
    shortcut, stem = text("shortcut", shortcut, optional=True), text("stem", stem, optional=True)
    said = {"shortcut": shortcut, "stem": stem, "in_channels": None if in_channels == 3 else in_channels, **design}
    said = {key: value for key, value in said.items() if value is not None}
    network = _built(name, num_classes, said, rng)
    network.built_as = partial(build_model, name=absolute(name), num_classes=num_classes, **said)
    return network


def _built(name, num_classes, said, rng):
    if is_own(name):
        if said:
            raise UserError(f"{name} says itself what it makes, got {', '.join(said)}: leave that out")
        return build_own(name, num_classes, default_rng(0 if rng is None else rng))
    if name == "speedrun":
        refused = said.keys() - inspect.signature(Speedrun).parameters.keys()
        if refused:
            raise UserError(f"speedrun has no {', '.join(sorted(refused))}: leave that out")
        return Speedrun(num_classes, rng=rng, **said)
    known = inspect.signature(ResNet).parameters
    further = said.keys() - {"shortcut", "stem", "in_channels"}
    if name != "resnet" and further:
        raise UserError(f"{name} has its own {', '.join(sorted(further))}: leave that out, or choose resnet with blocks and "
                        "channels")
    if not further <= known.keys():
        raise UserError(f"resnet has no {', '.join(sorted(further - known.keys()))}: its arguments are {', '.join(known)}")
    design = RESNETS.get(name, said)
    if not {"blocks", "channels"} <= design.keys():
        raise UserError("resnet needs blocks and channels of each stage: build_model('resnet', blocks=(2, 2, 2), "
                        "channels=(16, 32, 64))")
    stem = said.get("stem")
    if name in RESNETS and stem is not None and stem != design.get("stem", stem):
        raise UserError(f"{name} has one stem, cifar, got stem {shown(stem)}: resnet18 to resnet152 have the imagenet stem")
    if "shortcut" in said and design.get("block") == "plain":
        raise UserError(f"{name} has no shortcuts, got shortcut {shown(said['shortcut'])}: leave it out")
    return ResNet(num_classes=num_classes, rng=rng, **design | said)


__all__ = ["MODELS", "RESNETS", "ResNet", "Speedrun", "build_model"]
