"""A run's resumable state: weights, optimiser, random streams and position, in one file."""
import json
from dataclasses import dataclass, field, fields

import numpy as np

from minires.arguments import is_integer, number
from minires.errors import UserError
from minires.files import load_tensors, save_tensors
from minires.training.metrics import Score


@dataclass
class Position:
    """Where a run stands: after `step` batches of the epoch that follows `epoch` complete ones, and what they summed up to.

    lr: of the last update. seconds: of training in this epoch. skipped: updates left out because of numbers that were not
    finite. norm_sum, norms: gradient norms and how many; ratio_sum, ratios: likewise |update| / |weights|.
    """

    epoch: int = 0
    step: int = 0
    lr: float = 0.0
    seconds: float = 0.0
    skipped: int = 0
    norm_sum: float = 0.0
    norms: int = 0
    ratio_sum: float = 0.0
    ratios: int = 0
    score: Score = field(default_factory=Score)

    def about(self):
        """A dict of JSON values."""
        score = {"loss_sum": self.score.loss_sum, "correct": self.score.correct.tolist(), "seen": self.score.seen.tolist()}
        return {**{name.name: getattr(self, name.name) for name in fields(self) if name.name != "score"}, "score": score}

    @classmethod
    def of(cls, about):
        """The Position that `about` is of. ValueError, KeyError or TypeError for anything else."""
        about = dict(about)
        score = about.pop("score")
        counts = [np.array(score[name], np.int64).reshape(-1) for name in ("correct", "seen")]
        position = cls(**about, score=Score(float(score["loss_sum"]), *counts))
        whole = [about[name] for name in ("epoch", "step", "skipped", "norms", "ratios")]
        sums = [about[name] for name in ("lr", "seconds", "norm_sum", "ratio_sum")]
        if not all(is_integer(value) and 0 <= value < 2**63 for value in whole):
            raise ValueError("a count is none")
        for value in sums:
            number("a sum", value)
        return position


def streams_of(model, loader):
    """Every random stream that a further step draws from, by name: the loader's and the dropout layers'."""
    streams = {"loader": getattr(loader, "rng", None)}
    streams |= {f"model.{name}": getattr(layer, "rng", None) for name, layer in model.named_layers()}
    return {name: rng for name, rng in streams.items() if isinstance(rng, np.random.Generator)}


def states_of(streams):
    """{name: the JSON values that a stream stands at}."""
    return {name: json.loads(json.dumps(rng.bit_generator.state, default=_plain)) for name, rng in streams.items()}


def set_streams(streams, states):
    """Put streams where `states_of` found them."""
    for name, rng in streams.items():
        rng.bit_generator.state = states[name]


def state_tensors(model, optimiser):
    """{name: array} of all that training moves: weights, statistics and the optimiser's."""
    tensors = {f"model.{name}": array for name, array in model.state_dict().items()}
    return tensors | {f"optimiser.{name}": array for name, array in optimiser.state_dict().items()}


def save_state(path, tensors, position, states, began, fingerprint):
    """Everything that the steps after `position` depend on, in one file.

    tensors: of `state_tensors`. states: of all streams; began: of the loader's where its epoch began, whose batches are made
    again from there.
    """
    about = {**position.about(), "random": states, "began": began, "fingerprint": fingerprint}
    save_tensors(path, tensors, about)


def read_state(path, streams):
    """(tensors, Position, states, began, fingerprint) of a `save_state`; nothing is changed.

    UserError when the file is missing, damaged or does not have the states of these streams.
    """
    tensors, about = load_tensors(path)
    try:
        states, began, kept = about.pop("random"), about.pop("began"), about.pop("fingerprint")
        position = Position.of(about)
        if states.keys() != streams.keys():
            raise ValueError("other random streams")
        for name, rng in streams.items():  # on copies: a state that is none says so here
            type(rng.bit_generator)(0).state = states[name]
        if began is not None:
            type(streams["loader"].bit_generator)(0).state = began
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is no state of this training run ({str(error)[:80]}): expected its position and the random "
                        f"streams {', '.join(streams) or '(none)'}") from error
    return tensors, position, states, began, kept


def load_state(tensors, model, optimiser):
    """Put `state_tensors` back; UserError when they are another model's or optimiser's, and then nothing is changed."""
    part = {prefix: {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
            for prefix in ("model.", "optimiser.")}
    optimiser.require_state(part["optimiser."])
    model.load_state_dict(part["model."])
    optimiser.load_state_dict(part["optimiser."])


def _plain(value):
    """JSON's form of what NumPy keeps in a generator's state (MT19937 has an array)."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
