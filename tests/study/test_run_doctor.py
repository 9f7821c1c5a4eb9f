"""The doctor: each diagnosis fires on its planted mistake, and none on what is sound."""
import json

import numpy as np
import pytest
from PIL import Image

from minires.backends import use_backend
from minires.cli import main
from minires.data import Dataset, Loader
from minires.errors import UserError
from minires.files import load_tensors, save_tensors
from minires.layer import Layer, Sequential
from minires.layers import BatchNorm2d, Conv2d, GlobalAvgPool2d, Linear, ReLU
from minires.study.doctor import doctor, doctor_run
from minires.study.doctor.data import look_at_data
from minires.study.doctor.run import _measured, _selection, _updates

MEAN, STD = [0.45] * 3, [0.2] * 3


@pytest.fixture(autouse=True)
def reference_kernels():
    with use_backend("reference"):
        yield


def coloured(count, seed, classes=("red", "green", "blue")):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 150, (count, 8, 8, 3))
    images[np.arange(count), :, :, labels] += 100
    return Dataset(images.astype(np.uint8), labels, classes)


def loader(dataset, mean=MEAN, std=STD, **options):
    return Loader(dataset, 16, mean=mean, std=std, **options)


def network(scale=1.0):
    rng = np.random.default_rng(0)
    model = Sequential(Conv2d(3, 8, 3, 2, 1, bias=False, rng=rng), BatchNorm2d(8), ReLU(), GlobalAvgPool2d(),
                       Linear(8, 3, rng=rng))
    model[4].weight.data *= scale
    return model


TRAIN, TEST = coloured(300, 1), coloured(120, 2)


def names(findings):
    return {finding.name for finding in findings}


def test_nothing_is_found_where_all_is_sound():
    model = network()
    before = model.state_dict()
    assert doctor(model, loader(TRAIN), loader(TEST), lr=0.1) == []
    assert all(np.array_equal(array, model.state_dict()[name]) for name, array in before.items())
    assert model.training


def relabelled(dataset, labels, classes=None):
    return Dataset(dataset.images, np.asarray(labels, np.int64), classes or dataset.classes)


ORDER = np.random.default_rng(5)
DATA = {
    "scale": (loader(TRAIN, [0.0] * 3, [0.02] * 3), loader(TEST, [0.0] * 3, [0.02] * 3)),
    "preprocessing": (loader(TRAIN), loader(TEST, [0.5] * 3, [0.25] * 3)),
    "missing class": (loader(TRAIN.subset(TRAIN.labels != 1)), loader(TEST)),
    "class order": (loader(TRAIN), loader(relabelled(TEST, TEST.labels, ("green", "red", "blue")))),
    "overlap": (loader(TRAIN), loader(Dataset(np.concatenate([TEST.images, TRAIN.images[:5]]),
                                              np.concatenate([TEST.labels, TRAIN.labels[:5]]), TEST.classes))),
    "shuffled labels": (loader(relabelled(TRAIN, ORDER.permutation(TRAIN.labels))), loader(TEST)),
}


@pytest.mark.parametrize("mistake", DATA)
def test_a_mistake_in_the_data(mistake):
    assert mistake in names(look_at_data(*DATA[mistake]))
    assert look_at_data(loader(TRAIN), loader(TEST)) == []


def test_other_mistakes_of_the_test_set():
    shuffled = loader(relabelled(TEST, (TEST.labels + 1) % 3))
    assert "test set's labels" in look_at_data(loader(TRAIN), shuffled)[0].text
    changing = loader(TEST, augment=True, rng=0)
    assert "augmented" in look_at_data(loader(TRAIN), changing)[0].text


def striped(count, seed):
    """Stripes across or down, of any phase and colour: no pixel tells which."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    wave = np.sin(np.arange(8) * np.pi / 2 + rng.uniform(0, 2 * np.pi, (count, 1)))
    images = np.where(labels[:, None, None] == 1, wave[:, :, None], wave[:, None, :])[..., None]
    images = images * rng.uniform(-1, 1, (count, 1, 1, 3))
    return Dataset((128 + 120 * images).astype(np.uint8), labels, ("down", "across"))


def test_labels_that_a_linear_probe_cannot_tell():
    rng = np.random.default_rng(0)
    model = Sequential(Conv2d(3, 8, 3, 1, 1, rng=rng), BatchNorm2d(8), ReLU(), GlobalAvgPool2d(), Linear(8, 2, rng=rng))
    train, test = striped(600, 1), striped(200, 2)
    assert names(look_at_data(loader(train), loader(test))) == {"shuffled labels"}
    assert names(doctor(model, loader(train), loader(test))) == set()
    shuffled = relabelled(train, rng.permutation(train.labels))
    assert "the network" in next(each.text for each in doctor(model, loader(shuffled), loader(test))
                                 if each.name == "shuffled labels")
    turned = relabelled(test, 1 - test.labels)
    assert names(doctor(model, loader(train), loader(turned))) == {"shuffled labels"}


class Deaf(Layer):
    """A layer whose backward pass reaches nothing below."""

    def forward(self, x):
        return x

    def backward(self, dy):
        return dy * 0


class Negated(Layer):
    """A backward pass with the wrong sign."""

    def forward(self, x):
        return x

    def backward(self, dy):
        return -dy


def dead():
    model = network()
    model[1].bias.data[:6] = -100
    return model


MODELS = {
    "initial loss": lambda: network(200),
    "no gradient": lambda: Sequential(*network()[:3], Deaf(), *network()[3:]),
    "dead units": dead,
    "cannot learn by heart": lambda: Sequential(*network()[:4], Negated(), Linear(8, 3, rng=0), Negated()),
}


@pytest.mark.parametrize("mistake", MODELS)
def test_a_mistake_in_the_model(mistake):
    assert mistake in names(doctor(MODELS[mistake](), loader(TRAIN), loader(TEST)))


def test_evaluation_in_training_mode():
    model = network()
    assert names(doctor(model, loader(TRAIN), predict=model.forward)) == {"evaluation in training mode"}


@pytest.mark.parametrize(("lr", "says"), [(1e-8, "too low"), (1e3, "too high")])
def test_a_learning_rate_off_by_orders(lr, says, tmp_path):
    found = doctor(network(), loader(TRAIN), lr=lr, picture=tmp_path / "range.png")
    assert names(found) == {"learning rate"} and says in found[0].text
    with Image.open(tmp_path / "range.png") as picture:
        assert picture.format == "PNG"


# --- a run ---


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor")
    for part, data in (("train", coloured(96, 1)), ("test", coloured(48, 2))):
        for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
            place = folder / "data" / part / data.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{index}.png")
    with use_backend("reference"), pytest.raises(SystemExit) as stop:
        main(["train", "--dataset", str(folder / "data"), "--epochs", "2", "--batch-size", "16", "--lr", "0.05",
              "--out", str(folder / "run")])
    assert not stop.value.code
    return folder / "run"


def test_a_sound_run_and_the_command(run, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", str(run)])
    assert not stop.value.code
    assert "none of the experiments found a mistake" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"config\.toml cannot be read"):
        doctor_run(run.parent)


def test_mistakes_that_a_run_shows(run, tmp_path):
    from minires.training.run import build_run, read_config

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert _updates(rows, run, 6) == [] and _selection(rows, run) == []
    assert names(_updates([rows[0], rows[1] | {"update_ratio": 0.0}], run, 6)) == {"no update"}
    assert names(_updates(rows, run, 7)) == {"no update"}  # as if batches had been left out
    assert _updates(rows, run, 24, accumulate=4) == [] and names(_updates(rows, run, 28, accumulate=4)) == {"no update"}
    (tmp_path / "best.safetensors").write_bytes(b"")
    tensors, about = load_tensors(run / "best.safetensors")
    save_tensors(tmp_path / "best.safetensors", tensors, about | {"epoch": 1})
    assert names(_selection(rows, tmp_path)) == {"selection on the test set"}

    trainer, card = build_run(read_config(run), progress=False)
    trained = card.build(0).load_state_dict(load_tensors(run / "last.safetensors")[0])
    assert _measured(trained, trainer, rows) == []
    assert names(_measured(trained, trainer, [rows[-1] | {"test_loss": 9.0}])) == {"other evaluation"}
    trained.train()
    loss = sum(float(trainer.loss.forward(trained.forward(x), target)) * len(x) for x, target in trainer.test) / 48
    trained = card.build(0).load_state_dict(load_tensors(run / "last.safetensors")[0])
    assert names(_measured(trained, trainer, [rows[-1] | {"test_loss": loss}])) == {"evaluation in training mode"}
