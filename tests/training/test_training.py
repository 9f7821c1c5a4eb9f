"""The Trainer: it learns, evaluates without touching the model, selects honestly and resumes bit by bit."""
import json

import numpy as np
import pytest

from minires.data import Dataset, Loader
from minires.errors import UserError
from minires.files import load_tensors
from minires.layer import Sequential
from minires.layers import BatchNorm2d, Conv2d, Dropout, Flatten, GlobalAvgPool2d, Linear, ReLU
from minires.losses import CrossEntropyLoss
from minires.optim import SGD
from minires.schedules import OneCycleLR, Schedule
from minires.training import Trainer, evaluate

CLASSES = ("red", "green", "blue")


def coloured(count, seed, classes=CLASSES):
    """Images whose class is the channel that is brightest, under noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 150, (count, 8, 8, 3))
    images[np.arange(count), :, :, labels] += 100
    return Dataset(images.astype(np.uint8), labels, classes)


def loader(dataset, batch_size=16, seed=None):
    random = {} if seed is None else {"shuffle": True, "augment": True, "rng": np.random.default_rng(seed)}
    return Loader(dataset, batch_size, mean=[0.4] * 3, std=[0.2] * 3, **random)


def small_network(seed=0, dropout=0.0):
    rng = np.random.default_rng(seed)
    return Sequential(Conv2d(3, 8, 3, 2, 1, bias=False, rng=rng), BatchNorm2d(8), ReLU(), GlobalAvgPool2d(),
                      Dropout(dropout, rng=rng), Linear(8, 3, rng=rng))


def make_trainer(out=None, seed=0, dropout=0.0, epochs=4, **options):
    model = small_network(seed, dropout)
    optimiser = SGD(model.parameters(), 0.1, 0.9, 5e-4, True)
    train = loader(coloured(90, 1), seed=seed)
    schedule = OneCycleLR(optimiser, 0.1, epochs * len(train))
    return Trainer(model, optimiser, train, loader(coloured(60, 2)), schedule=schedule, out=out, progress=False,
                   **options)


def assert_same_tensors(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


class Rates(Schedule):
    """A rate an epoch of `steps` steps."""

    def __init__(self, optimiser, rates, steps):
        super().__init__(optimiser)
        self.rates, self.steps = rates, steps
        self.step()

    def lr_at(self, step):
        return self.rates[min(step // self.steps, len(self.rates) - 1)]


def test_it_learns_and_reports_every_epoch(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    rows = trainer.fit(4)
    assert rows[-1]["test_accuracy"] > 0.9
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert written == rows
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert set(rows[0]) == {"epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr", "seconds",
                            "images_per_second", "grad_norm", "update_ratio"}
    assert rows[0]["images_per_second"] == pytest.approx(90 / rows[0]["seconds"])
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "metrics.jsonl", "last.safetensors", "best.safetensors", "state.safetensors", "curves.png"}


def test_every_epoch_updates_every_parameter():
    trainer = make_trainer()
    before = trainer.model.state_dict()
    for epoch in (1, 2, 3):
        trainer.fit(epoch)
        after = trainer.model.state_dict()
        for name in after:
            assert not np.array_equal(before[name], after[name]), f"{name} did not change in epoch {epoch}"
        before = after


def test_a_loader_that_can_be_read_only_once_is_refused_in_the_second_epoch():
    class Once(list):
        def __iter__(self):
            return iter([self.pop() for _ in range(len(self))])

    trainer = make_trainer()
    trainer.train = Once(trainer.train)
    trainer.fit(1)
    with pytest.raises(UserError, match="yielded no batch in epoch 2"):
        trainer.fit(2)


def test_training_metrics_are_means_over_images_not_over_batches():
    trainer = make_trainer()
    trainer.optimiser.lr, trainer.schedule, trainer.train = 0.0, None, loader(coloured(90, 1), batch_size=64)
    row = trainer.fit(1)[0]
    trainer.model.train()
    losses, right = [], 0
    for x, target in trainer.train:
        y = trainer.model.forward(x)
        losses += [CrossEntropyLoss().forward(y, target)] * len(x)
        right += (y.argmax(1) == target).sum()
    assert row["train_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert row["train_accuracy"] == right / 90


# --- evaluation ---


def test_evaluation_changes_nothing_of_the_model():
    model = small_network(dropout=0.5)
    model.train()
    model[1].eval()  # a frozen layer stays frozen
    random = model[4].rng.bit_generator.state
    before = model.state_dict()
    evaluate(model, CrossEntropyLoss(), loader(coloured(50, 3)))
    assert_same_tensors(before, model.state_dict())
    assert [layer.training for layer in model] == [True, False, True, True, True, True]
    assert model[4].rng.bit_generator.state == random


def test_evaluation_puts_the_modes_back_after_an_error():
    model = small_network()
    with pytest.raises(UserError):
        evaluate(model, CrossEntropyLoss(), [(np.zeros((2, 8, 8, 5), np.float32), np.zeros(2, int))])
    assert all(layer.training for _, layer in model.named_layers())


def test_evaluation_uses_running_statistics_so_batches_do_not_matter():
    model = small_network()
    model[1].running_mean[:] = 0.3
    data = coloured(50, 3)
    whole, single = (evaluate(model, CrossEntropyLoss(), loader(data, size)) for size in (50, 1))
    assert whole.loss == pytest.approx(single.loss, rel=1e-5)
    assert (whole.correct == single.correct).all()
    assert whole.images == single.images == 50


def test_class_accuracies():
    model = Sequential(Flatten(), Linear(2, 3))
    model[1].weight.data[:] = [[1, 0, 0], [0, 1, 0]]
    model[1].bias.data[:] = 0
    x = np.array([[1, 0], [1, 0], [0, 1], [1, 0]], np.float32).reshape(4, 1, 1, 2)
    score = evaluate(model, CrossEntropyLoss(), [(x, np.array([0, 0, 1, 1]))])
    assert score.accuracy == 0.75
    np.testing.assert_array_equal(score.class_accuracy, [1, 0.5, np.nan])


def test_an_empty_loader_is_refused():
    with pytest.raises(UserError, match="yielded no batch"):
        evaluate(small_network(), CrossEntropyLoss(), [])


# --- which weights are best ---


def selection_run(folder, validation):
    """Two good epochs' worth of learning, then one that ruins the weights."""
    model = small_network()
    optimiser = SGD(model.parameters(), 0.1, 0.9)
    train = loader(coloured(90, 1), seed=0)
    schedule = Rates(optimiser, [0.1, 0.1, -2.0], len(train))
    trainer = Trainer(model, optimiser, train, loader(coloured(60, 2)), validation=validation, schedule=schedule,
                      out=folder, progress=False)
    kept = []
    for epoch in (1, 2, 3):
        rows = trainer.fit(epoch)
        kept.append(model.state_dict())
    return rows, kept, load_tensors(folder / "best.safetensors")[0], load_tensors(folder / "last.safetensors")[0]


def test_best_is_chosen_on_validation_and_is_no_alias_of_the_live_weights(tmp_path):
    rows, kept, best, last = selection_run(tmp_path, loader(coloured(60, 3)))
    accuracies = [row["validation_accuracy"] for row in rows]
    assert accuracies[2] < max(accuracies)
    assert_same_tensors(best, kept[int(np.argmax(accuracies))])
    assert_same_tensors(last, kept[2])


def test_the_test_set_never_selects(tmp_path):
    rows, kept, best, _ = selection_run(tmp_path / "without", None)
    assert rows[2]["test_accuracy"] < rows[1]["test_accuracy"]
    assert_same_tensors(best, kept[2])  # without a validation set best is last, however bad the test accuracy

    honest = coloured(60, 3)
    opposite = Dataset(honest.images, (honest.labels + 1) % 3, CLASSES)  # what is good here is bad on the test set
    rows, kept, best, _ = selection_run(tmp_path / "with", loader(opposite))
    chosen = int(np.argmax([row["validation_accuracy"] for row in rows]))
    assert chosen != int(np.argmax([row["test_accuracy"] for row in rows]))
    assert_same_tensors(best, kept[chosen])


def test_the_earliest_of_equally_good_epochs_is_best(tmp_path):
    trainer = make_trainer(tmp_path, validation=loader(coloured(60, 3)))
    trainer.optimiser.lr, trainer.schedule = 0.0, None
    for layer in trainer.model:
        layer.momentum = 0.0  # nothing moves at all
    trainer.fit(3)
    assert load_tensors(tmp_path / "best.safetensors")[1]["epoch"] == 1
    assert load_tensors(tmp_path / "last.safetensors")[1]["epoch"] == 3


# --- stopping and resuming ---


def without_times(rows):
    return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in rows]


@pytest.mark.parametrize("stop_in", ["training", "evaluation", "saving the metrics", "saving the state"])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, monkeypatch, stop_in):
    options = {"dropout": 0.3, "validation": loader(coloured(60, 3))}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.fit(4)

    def stop(*_):
        raise KeyboardInterrupt

    first = make_trainer(tmp_path / "parts", **options)
    first.fit(2)
    place = {"training": (first.optimiser, "step"), "evaluation": ("minires.training.trainer.evaluate",),
             "saving the metrics": ("minires.training.trainer.write_metrics",),
             "saving the state": ("minires.training.trainer.save_state",)}[stop_in]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*place, stop)
        first.fit(4)

    second = make_trainer(tmp_path / "parts", **options).restore()
    assert second.epoch == 2
    second.fit(4)
    assert without_times(second.rows) == without_times(whole.rows)
    for name in ("last.safetensors", "best.safetensors", "state.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_an_interrupt_leaves_no_half_written_file(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    trainer.fit(1)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", stop)  # everything is written by then, but under another name
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    make_trainer(tmp_path).fit(1)
    before = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"already holds a run.*restore"):
        make_trainer(tmp_path, seed=1).fit(1)
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_restoring_what_is_not_there_or_another_run(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        make_trainer(tmp_path).restore()
    with pytest.raises(UserError, match="pass out"):
        make_trainer().restore()
    trainer = make_trainer(tmp_path)
    trainer.fit(1)
    other = make_trainer(tmp_path)
    other.model = Sequential(Flatten(), Linear(192, 3))
    other.train.rng = None
    with pytest.raises(UserError, match="no state of this training run"):
        other.restore()
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="0 epochs"):
        make_trainer(tmp_path).restore()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # evaluation of ruined weights is not what is tested
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.fit(1)
    good = (tmp_path / "last.safetensors").read_bytes()
    trainer.schedule = None
    trainer.optimiser.lr = 1e30
    with pytest.raises(UserError, match=r"loss became (nan|inf) in epoch 2, at its step 2 with learning rate 1e\+30"):
        trainer.fit(4)
    assert (tmp_path / "last.safetensors").read_bytes() == good
