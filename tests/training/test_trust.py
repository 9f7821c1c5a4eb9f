"""A run refuses what it could not keep before it begins, a resume that fails changes nothing, locks end with runs."""
import json
import re

import numpy as np
import pytest
from test_training import coloured, loader, make_trainer, small_network

from minires import SGD
from minires.backends import use_backend
from minires.data import Loader
from minires.data.augmentations import CropAndFlip
from minires.errors import UserError
from minires.files import load_tensors, save_tensors
from minires.training import Trainer
from minires.training.card import ModelCard
from minires.training.recipes import Recipe, make_recipe


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing to compile, and no picture at the end."""
    monkeypatch.setattr("minires.plots.draw_curves", lambda *_: None)
    with use_backend("reference"):
        yield


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix}


def with_sgd(out=None, test=None, **options):
    """A trainer without a schedule."""
    model = small_network(0)
    return Trainer(model, SGD(model.parameters(), 0.1, **options), loader(coloured(90, 1)),
                   loader(coloured(60, 2)) if test is None else test, out=out, progress=False)


# --- a resume that fails ---


def without_a_line(folder):
    path = folder / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def without_a_fingerprint(folder):
    tensors, about = load_tensors(folder / "state.safetensors")
    save_tensors(folder / "state.safetensors", tensors, about | {"fingerprint": None})


def cut(folder):
    path = folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [without_a_line, without_a_fingerprint, cut])
def test_a_resume_that_fails_changes_neither_the_trainer_nor_the_run(damage, tmp_path):
    make_trainer(tmp_path).fit(3)
    damage(tmp_path)
    before = files(tmp_path)
    trainer = make_trainer(tmp_path, seed=5)
    weights, rng = trainer.model.state_dict(), trainer.train.rng.bit_generator.state
    for _ in range(2):  # and the lock is free again
        with pytest.raises(UserError):
            trainer.restore()
    assert trainer.rows == [] and trainer.train.rng.bit_generator.state == rng and trainer.optimiser.steps == 0
    assert all(np.array_equal(array, weights[name]) for name, array in trainer.model.state_dict().items())
    with pytest.raises(UserError, match="already holds a run"):
        trainer.fit(4)
    assert files(tmp_path) == before


def test_other_images_leave_the_trainer_as_it_was(tmp_path):
    make_trainer(tmp_path).fit(1)
    trainer = make_trainer(tmp_path, seed=5)
    weights = trainer.model.state_dict()
    trainer.train = loader(coloured(90, 9), seed=0)
    with pytest.raises(UserError, match="data"):
        trainer.restore()
    assert all(np.array_equal(array, weights[name]) for name, array in trainer.model.state_dict().items())


def test_the_lock_is_free_after_any_end(tmp_path):
    first = make_trainer(tmp_path / "run")
    first.fit(1)
    assert first.restore() is first.restore(), "its own lock is no obstacle"
    with pytest.raises(UserError, match="alive"):
        make_trainer(tmp_path / "run").restore()
    with pytest.raises(UserError):
        first.fit(0)
    make_trainer(tmp_path / "run").restore()


# --- what cannot be kept is refused before the first step, and what can be is kept ---


@pytest.mark.parametrize("about", [{"lr": float("nan")}, {"lr": np.float32(0.1)}, {"a": {1, 2}}, [1], {"b": b"x"}])
def test_what_json_cannot_hold_is_refused_at_once(about, tmp_path):
    model = small_network(0)
    with pytest.raises(UserError, match=r"^about .* cannot be written as JSON .*float\(\), int\(\) or tolist\(\)$"):
        Trainer(model, SGD(model.parameters(), 0.1), loader(coloured(90, 1)), loader(coloured(60, 2)), out=tmp_path / "run",
                about=about)
    with pytest.raises(UserError, match=r"^about"):
        save_tensors(tmp_path / "a.safetensors", {"a": np.zeros(2)}, about)
    assert not list(tmp_path.iterdir())


def test_arrays_and_keys_of_any_kind_come_back(tmp_path):
    arrays = {"big": np.arange(6, dtype=">f4").reshape(2, 3), "turned": np.arange(6.0).reshape(2, 3).T,
              "whole": np.arange(4, dtype=">i8")[::-1]}
    save_tensors(tmp_path / "a.safetensors", arrays, {2: "two"})
    again, about = load_tensors(tmp_path / "a.safetensors")
    assert about == {"2": "two"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize("options", [{"max_norm": float("inf")}, {"max_norm": np.float32(1)}, {"average": np.float64(0.9)},
                                     {"weight_decay": np.float32(1e-4)}])
def test_any_number_that_an_optimiser_takes_can_be_saved(options, tmp_path):
    with_sgd(tmp_path, **options).fit(1)
    assert with_sgd(tmp_path, **options).restore().fit(2)


def test_numpy_numbers_become_pythons_own():
    recipe = Recipe("cosine", lr=np.float32(0.5), weight_decay=np.float64(0), nesterov=np.bool_(True))
    card = ModelCard("resnet20", np.int64(2), None, "mine", ("a", "b"), np.int32(32),
                     np.array([0.5, 0.5, 0.5], np.float32), [np.float64(0.2)] * 3)
    assert json.dumps([vars(recipe), vars(card)])
    with pytest.raises(AttributeError):
        recipe.lr = 2.0


def test_what_a_run_of_one_s_own_loaders_needs(tmp_path):
    class Stream:
        """Batches without a length."""

        def __iter__(self):
            return iter(loader(coloured(60, 2)))

    class Foreign(list):
        """Batches with a data set of another library."""

        dataset = type("Images", (), {"images": np.zeros((60, 8, 8, 3))})()

    for number, test in enumerate((Stream(), Foreign(loader(coloured(60, 2))))):
        whole = with_sgd(tmp_path / str(number), test).fit(2)
        with_sgd(tmp_path / f"{number}b", test).fit(1)
        again = with_sgd(tmp_path / f"{number}b", test).restore().fit(2)
        assert [row["test_loss"] for row in again] == [row["test_loss"] for row in whole]
    model = small_network(0)
    with pytest.raises(UserError, match=r"^test is None and out is .*pass a loader of test images, or no out$"):
        Trainer(model, SGD(model.parameters(), 0.1), loader(coloured(90, 1)), None, out=tmp_path / "none")


# --- what is told ---


def test_a_ratio_is_measured_where_gradients_are_summed_over_steps(tmp_path):
    for accumulate in (1, 2, 3):
        assert all(1e-5 < row["update_ratio"] < 1 for row in with_sgd(accumulate=accumulate).fit(2)), accumulate


def test_each_note_is_shown_once_and_another_rate_is_one(tmp_path):
    with_sgd(tmp_path).fit(1)
    trainer, shown = with_sgd(tmp_path), []
    trainer.optimiser.lr = 0.01
    trainer.restore()
    assert "optimiser.lr 0.1 then, 0.01 now" in trainer.notes[0]
    tell = trainer._tell
    trainer._tell = lambda progress, *notes: tell(type("Shown", (), {"note": staticmethod(shown.append)}), *notes)
    trainer.fit(2)
    trainer.fit(3)
    assert len(shown) == len(set(shown)) == len(trainer.notes) >= 1


def test_a_checkpoint_that_cannot_be_read_is_one_sentence(tmp_path, monkeypatch):
    from pathlib import Path

    from minires.interop.torch import load_torch_weights

    path = tmp_path / "weights.safetensors"
    save_tensors(path, small_network(0).state_dict())

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # a superuser may read anything
    monkeypatch.setattr(Path, "read_bytes", refuse)
    sentence = re.escape(f"checkpoint {path} cannot be read (Permission denied): make it readable")
    with pytest.raises(UserError, match=f"^{sentence}$"):
        load_tensors(path)
    with pytest.raises(UserError, match=f"^{sentence}$"):
        load_torch_weights(small_network(0), path)


def test_other_augmentations_are_told_on_resuming(tmp_path):
    def made(*augmentations):
        trainer = with_sgd(tmp_path)
        trainer.train = Loader(coloured(90, 1), 15, mean=[0.4] * 3, std=[0.2] * 3, augment=list(augmentations), rng=0)
        return trainer

    def turned(images, rng):
        return images[:, ::-1]

    def mirrored(images, rng):
        return images[:, :, ::-1]

    made(CropAndFlip(2), turned).fit(1)
    assert made(CropAndFlip(2), turned).restore().notes == []
    assert any("augment" in note for note in made(CropAndFlip(1), turned).restore().notes)
    assert any("augment" in note for note in made(CropAndFlip(2), mirrored).restore().notes)


def test_muon_needs_a_rate_for_what_is_no_convolution():
    with pytest.raises(UserError, match="sgd_lr, of what muon leaves to SGD, must be a number above 0, got 0"):
        make_recipe("budget", optimiser="muon")
