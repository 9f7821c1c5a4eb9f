"""Fine-tuning: a network begins from trained weights, with a new last layer, and part of it stays as it is."""
from fnmatch import fnmatchcase

from minires.errors import UserError
from minires.optim import set_parameters


def head_of(network):
    """(the dotted name of a network's last layer with a weight matrix, its parameters' names): `fc` of a ResNet.

    UserError where there is none.
    """
    for layer_name, layer in reversed(list(network.named_layers())):
        own = list(layer.own_parameters())
        if any(parameter.data.ndim > 1 for _, parameter in own):
            return layer_name, [f"{layer_name}.{name}" if layer_name else name for name, _ in own]
    raise UserError("the network has no layer with a weight, so there is nothing to train")


def take_over(network, source, new_head=False):
    """Copy the weights of a trained network into another; returns whether the last layer keeps its own.

    It does where it has another number of outputs, or with `new_head`. UserError where anything else does not fit.
    """
    weights, own, mine = source.state_dict(), network.state_dict(), head_of(network)[1]
    new_head = new_head or any(name not in weights or weights[name].shape != own[name].shape for name in mine)
    if new_head:
        weights |= {name: own[name] for name in mine}
    network.load_state_dict(weights)
    return new_head


def freeze(network, patterns):
    """Freeze every parameter whose name fits one of the patterns, but for the last layer's; returns how many numbers.

    Nothing of a frozen layer moves, its running statistics neither; what lies in front of all that moves costs no backward
    pass in a planned step. UserError for a pattern that fits nothing but, perhaps, the last layer.
    """
    head, spared = head_of(network)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) and name not in spared for name, _ in network.named_parameters()):
            raise UserError(f"--freeze {pattern} fits no parameter in front of the last layer, {head}: expected a pattern "
                            "such as 'layer1.*', or '*' for all of them")
        set_parameters(network, pattern, frozen=True)
    if patterns:
        for name, parameter in network.named_parameters():
            parameter.frozen = parameter.frozen and name not in spared
    return sum(parameter.data.size for parameter in network.parameters() if parameter.frozen)
