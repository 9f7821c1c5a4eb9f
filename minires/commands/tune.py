"""What `minires train --from` adds to training: the settings that trained weights bring with them."""
from dataclasses import replace

from minires.errors import UserError


def begin_from(settings, start, model, head, mean, std):
    """(settings, source): the settings completed by what the weights in `start` say, and (network, card) of them, or None.

    model: the name that was given, if any. The weights' network, statistics and size of pictures are taken over.
    UserError for options that go with --from only.
    """
    if start is None:
        for name, value in (("head", head), ("mean", mean), ("std", std)):
            if value is not None:
                raise UserError(f"--{name} {value} is for training that begins from weights: give them with --from, or "
                                "leave it out")
        return settings, None
    from minires.data import has_pictures
    from minires.evaluation import open_checkpoint
    from minires.training.card import weights_file

    start = weights_file(start)
    network, card = open_checkpoint(start, model, settings.shortcut, mean, std, settings.options.get("stem"))
    size = card.image_size if settings.size is None and has_pictures(settings.dataset) else settings.size
    return replace(settings, model=card.model, shortcut=card.shortcut, options=card.options, size=size, mean=card.mean,
                   std=card.std, start=str(start.absolute())), (network, card)


def require_head(head, card):
    """UserError where a new last layer was to have another number of outputs than the data has classes."""
    if head is not None and head != card.num_classes:
        raise UserError(f"--head {head} does not fit the data, which has {card.num_classes} classes: give that number, or "
                        "leave it out")
