"""First divergence: distances by hand, and planted differences found at their step, layer and tensor."""
import json
import shutil
import sys
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
import tomli_w

from minires.backends import reference, use_backend
from minires.errors import UserError
from minires.files import load_tensors, save_tensors
from minires.layers import BatchNorm2d, Conv2d
from minires.study import divergence
from minires.study.divergence import FAR, Key, PlannedSide, compare_sides, make_side, measure, random_batch, ulp_distance
from minires.study.runs import compare_runs, compare_settings

KEY = Key("forward", "fc", "y")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with use_backend("reference"):
        yield


# --- units of the last place ---


def neighbour(value, count, kind):
    for _ in range(count):
        value = np.nextafter(kind(value), kind(np.inf))
    return value


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_ulp_distance_by_hand(kind):
    tiny, large, nan, inf = np.finfo(kind).smallest_subnormal, np.finfo(kind).max, np.nan, np.inf
    ones = 127 << 23 if kind == np.float32 else 1023 << 52  # the bits of 1.0: so many floats lie between 0 and 1
    everything = 2 * (255 << 23) if kind == np.float32 else 2 * (2047 << 52)
    rows = [(1, 1, 0), (1, neighbour(1, 1, kind), 1), (-2, neighbour(-2, 5, kind), 5), (0.0, -0.0, 0), (tiny, -tiny, 2),
            (0, tiny, 1), (0, 1, ones), (-1, 1, 2 * ones), (1, 2, ones // (127 if kind == np.float32 else 1023)),
            (large, inf, 1), (inf, inf, 0), (-inf, inf, everything), (nan, nan, 0), (nan, 1, int(FAR)), (inf, nan, int(FAR))]
    a, b, wanted = zip(*rows, strict=True)
    a, b = np.array(a, kind), np.array(b, kind)
    for one, other in ((a, b), (b, a)):
        distance = ulp_distance(one, other)
        assert distance.dtype == np.uint64 and distance.tolist() == list(wanted)
    assert ulp_distance(a.reshape(3, 5)[:, ::2], b.reshape(3, 5)[:, ::2]).shape == (3, 3)


def test_ulp_distance_refuses_what_it_cannot_measure():
    for a, b in ((np.zeros(2), np.zeros(3)), (np.zeros(2), np.zeros(2, np.float32)), (np.arange(2), np.arange(2))):
        with pytest.raises(UserError, match="two float32 or two float64 arrays of one shape"):
            ulp_distance(a, b)


def test_measure_counts_in_units_of_the_largest():
    a = np.array([4, 1e-7, 0.5], np.float32)
    b = a + np.array([0, 4.76837158e-7, 0], np.float32)  # one unit of 4, many of 1e-7
    gap = measure(3, KEY, a, b)
    assert (gap.step, gap.differing, gap.note) == (3, 1 / 3, "") and gap.ulps == pytest.approx(1, rel=1e-6)
    assert gap.elementwise == ulp_distance(a, b).max() > 1e6
    assert measure(1, KEY, a, a.copy()).ulps == 0
    assert measure(1, KEY, a, np.array([4, np.nan, 0.5], np.float32)).ulps == np.inf
    assert measure(1, KEY, np.float32([np.nan, 1]), np.float32([np.nan, 1])).ulps == 0
    assert measure(1, KEY, a, a[:2]).ulps == np.inf and "(3,) against float32 (2,)" in measure(1, KEY, a, a[:2]).note
    assert measure(1, KEY, np.array(3), np.array(3)).ulps == 0 and measure(1, KEY, np.array(3), np.array(4)).ulps == np.inf


def test_a_flipped_unit_is_told():
    gap = measure(1, KEY, np.array([1, 0, 0.0]), np.array([1, 1e-9, 0]))
    assert gap.note == "1 of 3 units are zero on one side only"
    assert measure(1, KEY, np.array([1, -1.0]), np.array([1, -2.0])).note == ""


# --- two sides ---


def run(a="reference", b="reference", steps=2, model="resnet20"):
    x, target = random_batch(2, size=8, dtype=np.float64)
    return compare_sides(make_side(a, model, 0, np.float64), b if not isinstance(b, str) else
                         make_side(b, model, 0, np.float64), x, target, steps)


def test_equal_sides_are_equal_in_every_tensor():
    result = run()
    assert result.first(0) is None and all(a == b for a, b in result.losses) and len(set(result.losses)) == 2
    keys = [gap.key for gap in result.gaps if gap.step == 1]
    network = make_side("reference", "resnet20").model
    layers = [name for name, _ in network.named_layers()]
    for tensor in ("y", "dx"):
        assert {key.layer for key in keys if key.tensor == tensor} == set(layers)
    parameters = [name for name, _ in network.named_parameters()]
    assert sorted(f"{key.layer}.{key.tensor}" for key in keys if key.tensor.endswith(".grad")) == sorted(
        f"{name}.grad" for name in parameters)
    assert [f"{key.layer}.{key.tensor}" for key in keys if key.phase == "update"] == list(network.state_dict())
    assert len(keys) == len(set(keys))


def test_sides_train_and_leave_no_taps():
    side = make_side("reference", "resnet20", 0, np.float64)
    before = side.model.state_dict()
    loss, trace = side.step(*random_batch(2, size=8, dtype=np.float64))
    assert loss > 0 and all(not np.array_equal(array, before[name]) for name, array in side.model.state_dict().items())
    assert not any("listeners" in vars(layer) for _, layer in side.model.named_layers())
    kept = {key: array.copy() for key, array in trace.items()}
    side.step(*random_batch(2, size=8, dtype=np.float64))
    assert all(np.array_equal(array, kept[key]) for key, array in trace.items())  # the next step leaves it alone
    place = [str(key) for key in trace]
    assert place.index("fc.weight.grad") < place.index("fc.dx") < place.index("layer3.2.conv2.weight.grad")


class Planted:
    """A side that, from `step` on, has an attribute of one layer replaced."""

    def __init__(self, step, layer, plant):
        self.side, self.at, self.layer, self.plant, self.steps = make_side("reference", "resnet20", 0, np.float64), step, \
            layer, plant, 0

    def step(self, x, target):
        self.steps += 1
        if self.steps == self.at:
            self.plant(dict(self.side.model.named_layers())[self.layer])
        return self.side.step(x, target)


def wrong_weight_gradient(layer):
    class Wrong(Conv2d):
        def backward(self, dy):
            dx = super().backward(dy)
            self.weight.grad *= 1 + 1e-9
            return dx
    layer.__class__ = Wrong


def wrong_dx(layer):
    class Wrong(Conv2d):
        def backward(self, dy):
            return super().backward(dy) * (1 + 1e-9)
    layer.__class__ = Wrong


def wrong_output(layer):
    class Wrong(BatchNorm2d):
        def forward(self, x):
            return super().forward(x) + 1e-9
    layer.__class__ = Wrong


def wrong_statistics(layer):
    class Wrong(BatchNorm2d):
        def update_running(self, mean, var, m):
            super().update_running(mean, var * (1 + 1e-9), m)
    layer.__class__ = Wrong


PLANTED = {
    "weight gradient": (2, "layer2.1.conv2", wrong_weight_gradient, ("backward", "layer2.1.conv2", "weight.grad")),
    "dx": (1, "layer3.0.conv1", wrong_dx, ("backward", "layer3.0.conv1", "dx")),
    "output": (2, "layer1.0.bn2", wrong_output, ("forward", "layer1.0.bn2", "y")),
    "running variance": (1, "bn1", wrong_statistics, ("update", "bn1", "running_var")),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_difference_is_found(name):
    step, layer, plant, wanted = PLANTED[name]
    result = run(b=Planted(step, layer, plant))
    first = result.first(256)
    assert (first.step, tuple(first.key)) == (step, wanted)
    assert result.first(1e12) is None
    worst = result.growth()[step, wanted[0]]
    assert worst.ulps >= first.ulps and worst.key.phase == wanted[0]


@pytest.mark.parametrize("sides", [("reference", "reference:planned"), ("reference:planned", "reference")])
def test_planned_and_not_share_loss_logits_and_gradients(sides):
    result = run(*sides)
    network = make_side("reference", "resnet20").model
    wanted = {"network.y", "loss.value", *(f"{name}.grad" for name, _ in network.named_parameters()), *network.state_dict()}
    for step in (1, 2):
        assert {str(gap.key) for gap in result.gaps if gap.step == step} == wanted
    assert 0 < max(gap.ulps for gap in result.gaps) < 1e6 and result.first(1e6) is None
    keys = [str(gap.key) for gap in result.gaps if gap.step == 1]
    order = "loss.value", "fc.weight.grad", "conv1.weight.grad", "fc.weight"
    assert sorted(order, key=keys.index) == list(order)


def test_a_broken_back_end_is_found(monkeypatch):
    right = reference.global_avgpool_forward
    result = run(steps=1)
    assert result.first(0) is None
    side = make_side("reference", "resnet20", 0, np.float64)

    class Other:
        def step(self, x, target):
            monkeypatch.setattr(reference, "global_avgpool_forward", lambda x: right(x) * (1 - 1e-12))
            try:
                return side.step(x, target)
            finally:
                monkeypatch.undo()

    first = run(b=Other(), steps=1).first(256)
    assert str(first.key) == "pool.y" and 1e3 < first.ulps < 1e5


def test_torch_agrees_and_shows_the_same_tensors():
    pytest.importorskip("torch", reason="needs PyTorch: pip install 'minires[torch]'").set_num_threads(1)
    from minires.bench.torch_trace import TorchSide

    result = run(b=TorchSide("resnet20", 0, np.float64))
    assert result.first(4096) is None and result.first(0) is not None
    keys = {str(gap.key) for gap in result.gaps}
    own = [name for name, _ in make_side("reference", "resnet20").model.named_parameters()]
    assert {f"{name}.grad" for name in own} | set(own) <= keys
    assert {"layer2.0.shortcut.dx", "layer1.0.shortcut.dx", "conv1.dx", "layer3.2.y", "bn1.running_var"} <= keys
    with pytest.raises(UserError, match="no PyTorch twin"):
        TorchSide("speedrun")


@pytest.mark.parametrize("name", ["gpu", "cpu:fast", "reference:direct", "cpu:direct:winograd2", ""])
def test_unknown_sides(name):
    with pytest.raises(UserError, match="no side to compare"):
        make_side(name, "resnet20")


def test_sides_are_what_they_are_called():
    pytest.importorskip("numba")
    from minires.backends import ops_for
    from minires.backends.cpu import algorithm

    wanted = {"cpu": ("cpu", "auto", False), "reference": ("reference", "auto", False), "planned": ("cpu", "auto", True),
              "reference:planned": ("reference", "auto", True), "cpu:winograd2": ("cpu", "winograd2", False),
              "direct:planned": ("cpu", "direct", True)}
    for name, (backend, convolution, planned) in wanted.items():
        side = make_side(name, "resnet20")
        with ExitStack() as stack:
            for context in side.contexts:
                stack.enter_context(context())
            assert ops_for(np.zeros(1)).__name__ == f"minires.backends.{backend}"
            assert algorithm._chosen.get() == convolution
        assert isinstance(side, PlannedSide) is planned


# --- two runs ---


@pytest.fixture
def pair(tmp_path):
    """Two equal folders of a run of resnet20, made by hand."""
    folder = tmp_path / "one"
    folder.mkdir()
    recipe = {"schedule": "onecycle", "lr": 0.1, "weight_decay": 0.0}
    config = {"minires": "0", "model": "resnet20", "dataset": "shapes", "recipe_name": "onecycle", "epochs": 2,
              "batch_size": 8, "seed": 0, "recipe": recipe}
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    rows = [{"epoch": epoch, "train_loss": 2.0 / epoch, "test_accuracy": 0.1 * epoch, "seconds": 1.0} for epoch in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    weights = make_side("reference", "resnet20").model.state_dict()
    save_tensors(folder / "last.safetensors", weights)
    velocity = {"optimiser.steps": np.array(7), "optimiser.0.velocity": weights["conv1.weight"] * 2,
                "optimiser.3.velocity": weights["layer1.0.conv1.weight"], "model.conv1.weight": weights["conv1.weight"]}
    save_tensors(folder / "state.safetensors", velocity, {"epoch": 2})
    shutil.copytree(folder, tmp_path / "two")
    return folder, tmp_path / "two"


def change(folder, file, name, by):
    tensors, about = load_tensors(folder / file)
    tensors[name] = by(tensors[name])
    save_tensors(folder / file, tensors, about)


def test_runs_part_in_settings_metrics_weights_and_state(pair):
    one, two = pair
    assert compare_settings(one, two) == [] and compare_runs(one, two).first(0) is None
    assert {gap.key.tensor for gap in compare_runs(one, two).gaps} >= {"train_loss", "conv1.weight", "steps",
                                                                     "layer1.0.conv1.weight velocity"}
    change(two, "state.safetensors", "optimiser.3.velocity", lambda array: array * np.float32(1.001))
    assert str(compare_runs(one, two).first(100).key) == "layer1.0.conv1.weight velocity"
    change(two, "last.safetensors", "layer2.1.bn1.bias", lambda array: array + np.float32(1))
    first = compare_runs(one, two).first(100)
    assert (first.key.phase, first.key.tensor) == ("weights", "layer2.1.bn1.bias")
    change(two, "last.safetensors", "conv1.weight", lambda array: np.nextafter(array, np.float32(9)))
    assert compare_runs(one, two).first(0).key.tensor == "conv1.weight"
    assert compare_runs(one, two).first(1).key.tensor == "layer2.1.bn1.bias"
    metrics = (two / "metrics.jsonl").read_text()
    (two / "metrics.jsonl").write_text(metrics.replace("1.0,", "1.001,").replace('"seconds": 1.0', '"seconds": 9.0'))
    first = compare_runs(one, two).first(100)
    assert (first.step, str(first.key)) == (2, "train_loss")
    assert first.ulps == pytest.approx(0.001 / 2 ** -23, rel=1e-3)  # in float32's units
    (two / "metrics.jsonl").write_text(metrics.splitlines()[0])
    first = compare_runs(one, two).first(100)
    assert first.ulps == np.inf and first.note == "2 epochs against 1"
    (two / "config.toml").write_text((two / "config.toml").read_text().replace("lr = 0.1", "lr = 0.2").replace(
        "seed = 0", "seed = 1"))
    assert compare_settings(one, two) == ["seed: 0 against 1", "recipe.lr: 0.1 against 0.2"]


def test_a_tensor_that_one_run_lacks(pair):
    one, two = pair
    tensors, about = load_tensors(two / "last.safetensors")
    del tensors["fc.bias"]
    save_tensors(two / "last.safetensors", tensors, about)
    first = compare_runs(one, two).first(1e18)
    assert first.key.tensor == "fc.bias" and first.note == f"only in {one}"


# --- the command ---


@pytest.fixture
def command(command):
    return partial(command, "study", "diff")


def test_the_command_says_whether_they_part(command, tmp_path, monkeypatch):
    small = random_batch(2, size=8)
    monkeypatch.setattr(divergence, "random_batch", lambda *_: small)
    code, out, error = command("reference", "reference", "--steps", 1)
    assert (code, error) == (0, "") and "reference and reference agree within 256" in out
    code, out, error = command("reference", "reference:planned", "--steps", 1, "--tolerance-ulp", 0, "--out", "growth.png")
    assert (code, error) == (1, "") and (tmp_path / "growth.png").stat().st_size > 10_000
    assert "reference and reference:planned part in step 1, " in out
    assert [line.split()[:2] for line in out.splitlines()[1:4]] == [["1", "forward"], ["1", "backward"], ["1", "update"]]


def test_the_command_compares_runs(command, pair, tmp_path):
    one, two = pair
    assert command("one", "two")[0] == 0
    change(two, "last.safetensors", "fc.weight", lambda array: array + np.float32(1))
    (two / "config.toml").write_text((two / "config.toml").read_text().replace("seed = 0", "seed = 1"))
    code, out, _ = command("one", "two", "--out", "runs.png")
    assert code == 1 and (tmp_path / "runs.png").stat().st_size > 10_000
    assert out.startswith("config.toml differs in seed: 0 against 1\n")
    assert "one and two part in epoch 2, weights, at fc.weight" in out


MISTAKES = {
    "unknown side": (["cpu", "gpu"], "'gpu' is no side to compare"),
    "a run and a back end": (["one", "cpu"], "one is a run's folder and cpu is not"),
    "no run": (["one", "one"], "one/config.toml cannot be read"),
    "unknown model": (["reference", "reference", "--model", "vgg"], "unknown model 'vgg'"),
    "no steps": (["reference", "reference", "--steps", "0"], "steps 0"),
    "one image": (["reference", "reference", "--batch-size", "1"], "batch size 1"),
    "no tolerance": (["reference", "reference", "--tolerance-ulp", "inf"], "--tolerance-ulp inf is no tolerance"),
    "no png": (["reference", "reference", "--out", "x.jpg"], "--out writes a PNG, got x.jpg"),
    "steps of runs": (["one", "one", "--steps", "3"], "--steps is for training two sides, and one and one are runs"),
    "the batch of runs": (["one", "one", "--batch-size", "3"], "--batch-size is for training two sides"),
    "unknown dtype": (["reference", "reference", "--dtype", "float16"], "dtype 'float16'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence(command, tmp_path, name):
    (tmp_path / "one").mkdir()
    arguments, message = MISTAKES[name]
    code, out, error = command(*arguments)
    assert (code, out) == (2, "") and message in error and error.count("\n") == 1


def test_torch_that_is_not_installed(command, monkeypatch):
    monkeypatch.delitem(sys.modules, "minires.bench.torch_trace", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, error = command("torch", "reference")
    assert code == 2 and "torch is not installed: install minires[torch]" in error
