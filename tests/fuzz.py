"""Mutated files for every reader, random arguments for every constructor: success, a UserError, or Python's own TypeError
for a wrong signature; nothing else, and no more than a GiB.

    python tests/fuzz.py [--examples 10000]

tests/project/test_fuzz.py runs the short form.
"""
import argparse
import contextlib
import io
import json
import resource
import sys
import tempfile
from collections import Counter
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from minires import init, layers, losses, optim, schedules
from minires.data import Dataset, Loader, Standardise, augment_batch, make_shapes, split_train_validation
from minires.data import augmentations as augmented
from minires.data.cifar10 import read_records
from minires.data.pickled import unpickle_arrays
from minires.data.picture import read_pixels
from minires.errors import UserError
from minires.files import load_tensors, save_tensors
from minires.layer import Sequential
from minires.models import build_model
from minires.optim import SGD
from minires.training import ModelCard, Trainer, load_model, make_recipe, read_metrics
from minires.training.checkpoint import Position, load_state, read_state, save_state, state_tensors, states_of, streams_of
from minires.training.recipes import Recipe
from minires.training.run import Settings, read_config

DATA = Dataset(np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8), np.arange(12) % 3, ("a", "b", "c"))


def small():
    """A network, its optimiser and its loader."""
    model = Sequential(layers.Flatten(), layers.Linear(192, 3, rng=0), layers.Dropout(0.1, rng=1))
    return model, SGD(model.parameters(), 0.1), Loader(DATA, 4, mean=[0.5] * 3, std=[0.2] * 3, shuffle=True, rng=2)


# --- files ---


def seeds(folder):
    """{reader: (file name, its sound content, the function that reads it)}."""
    found, path = {}, Path(folder)
    model, optimiser, loader = small()
    streams = states_of(streams_of(model, loader))
    save_state(path / "state", state_tensors(model, optimiser), Position(1, 2), streams, streams["loader"], {"data": {}})
    found["state.safetensors"] = ("state", restore)
    save_tensors(path / "plain", {"a": np.arange(6.0).reshape(2, 3)}, {"epoch": 1, "name": "x"})
    found["safetensors"] = ("plain", load_tensors)
    card = ModelCard("resnet20", 2, None, "shapes", ("a", "b"), 32, [0.5] * 3, [0.2] * 3)
    (path / "card").write_text(json.dumps(card.about()))
    found["model card"] = ("card", read_card)
    (path / "metrics").write_text(json.dumps({"epoch": 1, "train_loss": 1.5, "test_loss": 2.0, "test_accuracy": 0.5}) + "\n")
    found["metrics.jsonl"] = ("metrics", read_metrics)
    (path / "config.toml").write_text('model = "resnet20"\ndataset = "shapes"\nrecipe_name = "onecycle"\nepochs = 2\n'
                                      'batch_size = 4\n[recipe]\nschedule = "onecycle"\nlr = 0.1\nweight_decay = 0.0\n')
    found["config.toml"] = ("config.toml", lambda file: read_config(file.parent))
    (path / "records").write_bytes(bytes(range(10)) * 614 + b"\x00" * 6)
    found["CIFAR-10 records"] = ("records", read_records)
    import pickle

    (path / "pickle").write_bytes(pickle.dumps({b"data": np.zeros((2, 6), np.uint8), b"labels": [1, 2]}, 2))
    found["CIFAR-10 pickles"] = ("pickle", lambda file: unpickle_arrays(file.read_bytes(), file, "arrays"))
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"):
        picture = io.BytesIO()
        Image.fromarray(DATA.images[0]).save(picture, kind)
        (path / kind).write_bytes(picture.getvalue())
        found[f"picture {kind}"] = (kind, read_pixels)
    with contextlib.suppress(ImportError):
        import torch

        from minires.interop.torch import load_torch_weights, to_torch_state_dict

        linear = Sequential(layers.Linear(4, 3, rng=0))
        torch.save({name: torch.from_numpy(array) for name, array in to_torch_state_dict(linear).items()}, path / "w.pth")
        found["torch's .pth"] = ("w.pth", lambda file: load_torch_weights(linear, file))
    return {reader: (name, (path / name).read_bytes(), read) for reader, (name, read) in found.items()}


def restore(file):
    """A state into a run that is built like it."""
    model, optimiser, loader = small()
    load_state(read_state(file, streams_of(model, loader))[0], model, optimiser)


def read_card(file):
    """A model card out of a mutated header, through a file of weights."""
    try:
        about = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError("no JSON at all") from error
    if isinstance(about, dict):
        save_tensors(file.with_suffix(".w"), {"a": np.ones(2)}, about)
        load_model(file.with_suffix(".w"))


KINDS = ["flip", "cut", "repeat", "put", "value", "end"]
VALUES = [b"null", b"true", b"-1", b"1e999", b"NaN", b'""', b"[]", b"{}", b"[[[[", b"9" * 400, b"\x00", b"\xff\xfe", b"\n",
          b"0.5"]


@st.composite
def mutations(draw, content):
    """Some bytes flipped, cut out, repeated, put in, or the end cut off."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        place, kind = draw(st.integers(0, max(0, len(changed) - 1))), draw(st.sampled_from(KINDS))
        length = draw(st.integers(1, 32))
        if kind == "flip" and changed:
            changed[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del changed[place:place + length]
        elif kind == "repeat":
            changed[place:place] = changed[place:place + length]
        elif kind == "put":
            changed[place:place] = draw(st.binary(max_size=16))
        elif kind == "value":
            changed[place:place + length] = draw(st.sampled_from(VALUES))
        elif kind == "end":
            del changed[place:]
    return bytes(changed)


# --- arguments ---


def augmentation(kind):
    """Its constructor, and then its use."""
    def call(*rest):
        made, rng = kind(*rest), np.random.default_rng(0)
        if kind is augmented.MixUp:
            return made.mix(DATA.images / np.float32(255), DATA.labels, 3, rng)
        return made(DATA.images, rng)

    return call


PARAMETERS = small()[0].parameters()
CONSTRUCTORS = {
    **{name: getattr(layers, name) for name in ("Conv2d", "Linear", "BatchNorm2d", "LayerNorm", "MaxPool2d", "AvgPool2d",
                                                "Dropout", "BasicBlock", "Bottleneck", "PlainBlock", "PaddedShortcut")},
    "Sequential": Sequential, "default_rng": init.default_rng, "CrossEntropyLoss": losses.CrossEntropyLoss,
    "SGD": lambda *rest: optim.SGD(PARAMETERS, *rest), "AdamW": lambda *rest: optim.AdamW(PARAMETERS, *rest),
    **{f"{kind.__name__}'s keywords": partial(lambda kind, *rest: kind(PARAMETERS, 0.1, **dict(zip(
        ("max_norm", "average", "accumulate", "decay_all"), rest, strict=False))), kind)
       for kind in (optim.SGD, optim.AdamW)},
    "set_parameters": lambda pattern, *rest: optim.set_parameters(small()[0], pattern, **dict(zip(
        ("frozen", "lr_factor", "decay_factor"), rest, strict=False))),
    "prune": lambda *rest: optim.prune(small()[0], *rest),
    **{name: augmentation(getattr(augmented, name)) for name in (
        "CropAndFlip", "Cutout", "RandomErasing", "Noise", "ColourJitter", "MixUp")},
    "optimiser": optim.SGD,
    **{name: (lambda kind: lambda *rest: kind(SGD(PARAMETERS, 0.1), *rest))(getattr(schedules, name))
       for name in ("StepLR", "MultiStepLR", "CosineLR", "OneCycleLR")},
    "WarmUp": schedules.WarmUp, "build_model": build_model, "Standardise": Standardise, "Dataset": Dataset,
    "Loader": lambda size, mean=None, std=None, augment=False, rng=None: Loader(
        DATA, size, mean=[0.5] * 3 if mean is None else mean, std=[0.2] * 3 if std is None else std, augment=augment,
        rng=rng),
    "split_train_validation": lambda size, rng: split_train_validation(DATA, size, rng),
    "augment_batch": lambda *rest: augment_batch(DATA.images, *rest),
    "make_recipe": make_recipe, "Recipe": Recipe, "ModelCard": ModelCard,
    "Settings": lambda *rest: Settings("resnet20", "shapes", "onecycle", make_recipe("onecycle"), *rest),
    "Trainer": lambda *rest: Trainer(*small()[:2], small()[2], small()[2], **dict(zip(
        ("save_every", "on_nonfinite", "out", "progress", "patience", "about"), rest, strict=False))),
    "make_shapes": lambda count, seed: make_shapes(count if not isinstance(count, int) or count < 50 else 50, seed),
}
SCALARS = [None, True, False, 0, 1, 2, 3, 5, -1, 10**6, 10**15, 2**70, 10**400, 0.0, 0.5, 0.9, 1.0, 1.5, -0.1, 1e-5, 1e39,
           float("nan"), float("inf"), np.int64(3), np.int32(-2), np.uint8(4), np.float32(0.25), np.float64("nan"),
           np.bool_(True), "A", "B", "3", "", "resnet20", "cifar", "onecycle", "stop", "5m", (), (3, 3), (1, 2, 3),
           [0.5, 0.5, 0.5], [1], (0.9, 0.999), {}, b"x", np.ones(3), np.zeros((2, 2)), 1j, object(), int,
           np.random.default_rng(0), range(3), {1, 2}]


def arguments():
    """Tuples of up to six of anything."""
    return st.lists(st.sampled_from(SCALARS), max_size=6).map(tuple)


# --- the trial ---


def outcome(call, *rest):
    """"success" or "UserError"; raises whatever else comes out."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            call(*rest)
        return "success"
    except UserError as error:
        assert "\n" not in str(error), f"more than one line: {error}"
        return "UserError"
    except TypeError as error:
        # Python's own words for a call with too many or too few arguments.
        if "argument" in str(error) and any(word in str(error) for word in ("takes", "missing", "got multiple values")):
            return "wrong signature"
        raise


def trial(examples, strategy, call):
    """A Counter of outcomes over so many examples."""
    counts = Counter()

    @settings(max_examples=examples, derandomize=True, database=None, deadline=None, phases=(Phase.generate,),
              suppress_health_check=list(HealthCheck))
    @given(strategy)
    def go(example):
        counts[call(example)] += 1

    go()
    return counts


def fuzz_readers(folder, examples, only=None):
    """(reader, Counter of outcomes), one after the other."""
    for reader, (name, content, read) in seeds(folder).items():
        if only is not None and reader not in only:
            continue

        def call(changed, name=name, read=read):
            path = Path(folder) / name
            path.write_bytes(changed)
            return outcome(read, path)

        yield reader, trial(examples, mutations(content), call)


def fuzz_constructors(examples, only=None):
    """(constructor, Counter of outcomes), one after the other."""
    for name, make in CONSTRUCTORS.items():
        if only is None or name in only:
            yield name, trial(examples, arguments(), lambda rest, make=make: outcome(make, *rest))


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=10_000)
    examples = parser.parse_args().examples
    with tempfile.TemporaryDirectory() as folder:
        for name, counts in chain(fuzz_readers(folder, examples), fuzz_constructors(examples)):
            print(f"{name:24}", dict(counts), flush=True)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 / (1024 if sys.platform == "darwin" else 1)
    print(f"most memory {most:.2f} GiB")
    return int(most > 1)


if __name__ == "__main__":
    sys.exit(main())
