"""Checkpoints, metrics, recipes and the folder of a run."""
import tomllib

import numpy as np
import pytest
from picture_folders import write_pictures
from safetensors.numpy import load_file, save_file

from minires.errors import UserError
from minires.files import load_tensors, save_tensors, write_atomically
from minires.layers import BatchNorm2d, Linear
from minires.optim import SGD, Muon
from minires.schedules import CosineLR, MultiStepLR, OneCycleLR, TriangleLR, WarmUp
from minires.training import RECIPES, ModelCard, Settings, build_run, load_model, make_recipe
from minires.training.metrics import read_metrics, write_metrics
from minires.training.recipes import default_epochs
from minires.training.run import begin_run, newest_weights, read_config, write_config


@pytest.fixture
def picture_folder(tmp_path):
    """13 training and 4 test pictures of 12 x 12 pixels, bright or dark."""
    return write_pictures(tmp_path / "pictures", ("dark", "bright"), 13, 4, (12, 12), brighter=130)


def settings(folder, **changes):
    values = {"model": "resnet20", "dataset": str(folder), "recipe_name": "onecycle", "recipe": make_recipe("onecycle"),
              "epochs": 2, "batch_size": 4}
    return Settings(**{**values, **changes})


# --- files ---


def test_write_atomically_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    other = tmp_path / "other"
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_tensors_come_back_as_they_were_whatever_their_strides(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {"transposed": rng.random((3, 4)).T, "every second": rng.random(9)[::2], "number": np.array(7),
               "single": rng.random(3).astype(np.float32)}
    about = {"epoch": 3, "mean": [0.1, 1 / 3], "name": "ä \"quoted\"", "big": 2**127 + 1, "none": None}
    save_tensors(tmp_path / "t.safetensors", tensors, about)
    back, said = load_tensors(tmp_path / "t.safetensors")
    assert said == about
    for name, array in tensors.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)


def test_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": np.arange(100.0)})
    whole = path.read_bytes()
    for damaged in (whole[:-8], whole[:20], b"", b"no tensors at all", whole + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            load_tensors(path)
    with pytest.raises(UserError, match="is not a file"):
        load_tensors(tmp_path / "absent.safetensors")
    save_file({"a": np.ones(2)}, path, {"format": "pt"})
    assert load_tensors(path)[1] == {}
    save_file({"a": np.ones(2)}, path, {"minires": "{"})
    with pytest.raises(UserError, match="damaged header"):
        load_tensors(path)


def test_metrics_round_trip_and_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"epoch": epoch, "train_loss": epoch / 3, "test_accuracy": 0.1} for epoch in (1, 2)]
    write_metrics(path, rows)
    assert read_metrics(path) == rows
    for damaged in ('{"epoch": 1', "[1, 2]\n", '{"epoch": 1}\n'):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"not a metrics\.jsonl"):
            read_metrics(path)


# --- recipes ---


def test_recipes_build_what_they_say():
    norm, linear = BatchNorm2d(3), Linear(3, 2)
    parameters = norm.parameters() + linear.parameters()
    kinds = {"onecycle": OneCycleLR, "he2015": MultiStepLR, "cosine": WarmUp, "budget": TriangleLR, "quick": TriangleLR,
             "speedrun": TriangleLR, "speedrun_sgd": TriangleLR}
    assert RECIPES.keys() == kinds.keys()
    for name, kind in kinds.items():
        optimiser = RECIPES[name].make_optimiser(parameters)
        schedule = RECIPES[name].make_schedule(optimiser, 400)
        assert type(optimiser) is (Muon if name == "speedrun" else SGD) and type(schedule) is kind
        assert max(schedule.lr_at(step) for step in range(400)) == pytest.approx(RECIPES[name].lr, rel=0.01)
    schedule = RECIPES["cosine"].make_schedule(RECIPES["cosine"].make_optimiser(parameters), 400)
    assert isinstance(schedule.schedule, CosineLR) and schedule.steps == 20
    he = RECIPES["he2015"].make_schedule(RECIPES["he2015"].make_optimiser(parameters), 64_000)
    assert he.milestones == [32_000, 48_000]  # section 4.2 of the paper
    for steps in (1, 2, 3):
        for recipe in RECIPES.values():
            recipe.make_schedule(recipe.make_optimiser(parameters), steps)


def test_the_default_recipe():
    recipe = make_recipe("onecycle")
    assert (recipe.lr, recipe.weight_decay, recipe.momentum) == (0.2, 5e-4, 0.9)
    assert recipe.nesterov and recipe.augment
    assert default_epochs("shapes") < default_epochs("cifar10") == default_epochs("a/folder")


def test_recipe_overrides_and_mistakes():
    assert make_recipe("he2015", lr=0.05).lr == 0.05
    assert make_recipe("he2015", weight_decay=0.0).weight_decay == 0.0
    assert RECIPES["he2015"].lr == 0.1
    for arguments, message in ((("adam",), "unknown recipe 'adam'"), (("onecycle", 0.0), "lr must be .* above 0, got 0.0"),
                               (("onecycle", float("nan")), "lr must be a number above 0, got nan"),
                               (("onecycle", None, -1), "weight_decay must be a number at least 0, got -1")):
        with pytest.raises(UserError, match=message):
            make_recipe(*arguments)


# --- a run ---


@pytest.mark.parametrize("change", [{"epochs": 0}, {"batch_size": 0}, {"seed": -1}, {"validation": -5}, {"epochs": 1.5},
                                    {"seed": True}, {"batch_size": 10**400}])
def test_settings_out_of_range_are_refused(change):
    (name, value), = change.items()
    with pytest.raises(UserError, match=f"{name.replace('_', ' ')} must be an int .*got {str(value)[:20]}"):
        settings("shapes", **change)


def test_config_rebuilds_the_settings(tmp_path, picture_folder):
    for number, wanted in enumerate((settings(picture_folder), settings(picture_folder, shortcut="B", validation=3,
                                                                        recipe=make_recipe("cosine", lr=0.01)))):
        _, card = build_run(wanted)
        folder = tmp_path / str(number)
        folder.mkdir()
        write_config(folder, wanted, card)
        assert read_config(folder) == wanted
    content = tomllib.loads((folder / "config.toml").read_text())
    assert content["data"]["classes"] == ["bright", "dark"]
    assert content["data"]["image_size"] == 12
    assert len(content["data"]["mean"]) == len(content["data"]["std"]) == 3
    (folder / "config.toml").write_text("epochs = 3")
    with pytest.raises(UserError, match="not the configuration of a run"):
        read_config(folder)
    with pytest.raises(UserError, match="cannot be read"):
        read_config(tmp_path)


def test_test_and_validation_images_are_standardised_as_the_training_images(picture_folder):
    trainer, card = build_run(settings(picture_folder, validation=3))
    raw = trainer.train.dataset.images / 255
    np.testing.assert_allclose(card.mean, raw.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(card.std, raw.std((0, 1, 2)), rtol=1e-5)
    assert len(raw) == 10
    for loader in (trainer.test, trainer.validation):
        x = np.concatenate([x for x, _ in loader])
        np.testing.assert_allclose(x, (loader.dataset.images / 255 - card.mean) / card.std, rtol=1e-4, atol=1e-5)
        assert not loader.augment and not loader.shuffle


def test_no_batch_of_one_image(picture_folder):
    runs = {size: build_run(settings(picture_folder, batch_size=size))[0] for size in (4, 5, 20)}
    sizes = {size: [len(x) for x, _ in run.train] for size, run in runs.items()}
    assert sizes == {4: [4, 4, 4], 5: [5, 5, 3], 20: [13]}


def test_the_seed_decides_the_weights_and_the_batches_but_not_the_data(picture_folder):
    (a, _), (b, _), (c, _) = (build_run(settings(picture_folder, seed=seed)) for seed in (1, 1, 2))
    for name, array in a.model.state_dict().items():
        np.testing.assert_array_equal(array, b.model.state_dict()[name])
    assert not np.array_equal(a.model.conv1.weight.data, c.model.conv1.weight.data)
    first = [next(iter(run.train))[0] for run in (a, b, c)]
    np.testing.assert_array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])
    np.testing.assert_array_equal(a.test.dataset.images, c.test.dataset.images)


def test_a_checkpoint_rebuilds_its_model(tmp_path):
    card = ModelCard("resnet20", 4, "B", "shapes", ("a", "b", "c", "d"), 32, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    model = card.build(np.random.default_rng(5))
    save_tensors(tmp_path / "m.safetensors", model.state_dict(), {**card.about(), "epoch": 1})
    again, said = load_model(tmp_path / "m.safetensors")
    assert said.about() == card.about()
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], array)
    save_tensors(tmp_path / "bare.safetensors", model.state_dict())
    with pytest.raises(UserError, match="does not say its model"):
        load_model(tmp_path / "bare.safetensors")
    assert set(load_file(tmp_path / "m.safetensors")) == set(model.state_dict())


def test_run_folders_are_never_shared(tmp_path, monkeypatch, picture_folder):
    monkeypatch.chdir(tmp_path)
    wanted = settings(picture_folder)

    def begin(out=None):
        return str(begin_run(*build_run(wanted)[:1], wanted, build_run(wanted)[1], out))

    assert [begin() for _ in range(3)] == [f"runs/resnet20-pictures-seed0{suffix}" for suffix in ("", "-2", "-3")]
    (tmp_path / "mine").mkdir()
    assert begin("mine") == "mine"  # still empty
    with pytest.raises(UserError, match=r"is there already.*--resume mine"):
        begin("mine")
    with pytest.raises(UserError, match="cannot be made"):
        begin("mine/metrics.jsonl/deeper")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        f"resnet20-pictures-seed0{suffix}" for suffix in ("", "-2", "-3")]


def test_the_newest_weights(tmp_path):
    import os

    with pytest.raises(UserError, match="there is no run"):
        newest_weights(tmp_path)
    for name, age in (("b", 100), ("a", 300), ("c", 200)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.safetensors").touch()
        os.utime(tmp_path / name / "best.safetensors", (1e9 - age, 1e9 - age))
    assert newest_weights(tmp_path) == tmp_path / "b" / "best.safetensors"
