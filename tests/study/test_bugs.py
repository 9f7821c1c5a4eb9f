"""Bug injection: every bug of the catalogue is killed, is gone afterwards, and the table can say that one survived."""
import functools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import minires.layers
from minires.backends import HOST_BACKENDS, use_backend
from minires.cli import main
from minires.errors import UserError
from minires.plots.bugs import draw_bugs
from minires.study import distinct_nonzero, randomise_parameters
from minires.study.bugs import BUGS, NETWORKS, Bug, BugReport, BugRow, Outcome, choose, detect, inject, render, to_json
from minires.study.bugs.catalogue import FAMILIES
from minires.study.bugs.report import sparkline
from minires.study.bugs.training import CLEAN_SEEDS, VERDICTS, train_clean, train_with, verdict

# Bugs that leave every value right in float64, and what finds them.
BY_CONTRACT = {"conv-dx-float32": "shape or dtype", "conv-weight-overwritten": "not added to grad",
               "batchnorm-bias-keeps-dimensions": "shape or dtype", "batchnorm-writes-into-dy": "writes into dy",
               "relu-writes-into-dy": "writes into dy"}
BY_ADJOINT_ALONE = {"conv-weight-rounded"}
WITHOUT_BUG = {"Flatten", "Identity"}  # of the public layers: those that only pass on
HARMLESS = Bug("relu-harmless", "The mask is y >= 0.", ("ReLU",), "relu_backward",
               lambda right, dy, y: np.where(y > 0, dy, 0 * dy))


@functools.cache
def detection(name):
    """What notices a bug of the catalogue."""
    return detect(BUGS[name])


@pytest.mark.parametrize("name", BUGS)
def test_every_bug_is_killed_by_the_check_it_should_be(name):
    found = detection(name)
    assert found.killed and found.noticed >= 1
    assert found.contract == BY_CONTRACT.get(name)
    assert found.by_difference == (name not in BY_CONTRACT and name not in BY_ADJOINT_ALONE)
    assert found.by_adjoint == (found.contract not in ("not added to grad", "writes into dy"))
    assert found.said.split(":")[0] in BUGS[name].cases()


def test_a_harmless_change_survives():
    found = detect(HARMLESS)
    assert not found.killed
    assert (found.noticed, found.cases, found.said) == (0, 1, "")


def test_the_checks_pass_without_a_bug():
    """Every case that any bug is checked on is clean by itself."""
    layers = sorted({layer for bug in BUGS.values() for layer in bug.layers})
    for planned in (False, True):
        bug = Bug("nothing", "", tuple(layers), "relu_backward", lambda right, dy, y: right(dy, y), planned=planned)
        found = detect(bug)
        assert not found.killed, found.said
        assert found.difference < 1e-7


def parts_of(network):
    """The names of the classes of layers, and of the loss, that one of NETWORKS trains."""
    model = network.make(np.random.default_rng(0))
    return {type(part).__name__ for _, part in model.named_layers()} | {type(network.make_loss()).__name__}


def test_the_catalogue():
    """Every public layer and loss has a bug, but for those that need none."""
    assert len(BUGS) >= 25
    covered = {layer for bug in BUGS.values() for layer in bug.layers}
    assert covered == {*minires.layers.__all__, "CrossEntropyLoss", "MSELoss"} - WITHOUT_BUG
    assert all(bug.network in NETWORKS and bug.mistake.endswith(".") for bug in BUGS.values())
    assert len({bug.mistake for bug in BUGS.values()}) == len(BUGS)


def test_bugs_of_one_layer_are_caught_where_they_show():
    """The odd cases are there for a reason: stride, dilation, padding and evaluation bugs hide from the plain one."""
    noticed = {name: detection(name).noticed for name in BUGS}
    assert noticed["conv-dilation-ignored"] == 1 and noticed["conv-last-column-lost"] == 2
    assert noticed["avgpool-padding-not-counted"] == noticed["batchnorm-mean-term-dropped"] == 1
    assert noticed["planned-shortcut-not-added"] == detection("planned-shortcut-not-added").cases - 1  # the plain block


def gradients(bug, backend):
    """[dx, parameter gradients ...] of the bug's first case."""
    rng = np.random.default_rng(0)
    make, shape = next(iter(bug.cases().values()))
    layer = randomise_parameters(make(rng).astype(np.float64), rng)
    with use_backend(backend):
        y = layer.forward(distinct_nonzero(shape, rng))
        dx = layer.backward(rng.standard_normal(y.shape))
    return [dx.copy(), *(parameter.grad.copy() for parameter in layer.parameters())]


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_the_engine_is_clean_again(bug):
    before = gradients(bug, "reference")
    with inject(bug, ("reference",)):
        pass
    with pytest.raises(ZeroDivisionError), inject(bug, ("reference",)):
        raise ZeroDivisionError
    after = gradients(bug, "reference")
    assert all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("backend", HOST_BACKENDS)
def test_a_bug_is_planted_in_every_back_end_or_in_one(backend):
    bug, other = BUGS["relu-mask-forgotten"], next(name for name in HOST_BACKENDS if name != backend)
    right = gradients(bug, backend)[0]
    with inject(bug):
        assert not np.array_equal(gradients(bug, backend)[0], right)
    with inject(bug, (other,)):
        assert np.array_equal(gradients(bug, backend)[0], right)


def test_inherited_and_own_methods_are_put_back():
    block, own = minires.layers.BasicBlock, minires.layers.Conv2d.__dict__["backward"]
    with inject(BUGS["block-shortcut-forgotten"], ("reference",)):
        assert "backward" in vars(block)
    assert "backward" not in vars(block)
    with inject(BUGS["conv-bias-dropped"], ("reference",)):
        assert vars(minires.layers.Conv2d)["backward"] is not own
    assert vars(minires.layers.Conv2d)["backward"] is own


def test_names_and_families():
    assert choose() == list(BUGS.values())
    assert [bug.name for bug in choose(["mse", "conv-bias-dropped"])] == ["conv-bias-dropped", "mse-two-lost",
                                                                         "mse-averaged-over-rows"]
    with pytest.raises(UserError, match=r"unknown bug 'conv-bias-droped': did you mean conv-bias-dropped"):
        choose(["conv-bias-droped"])
    with pytest.raises(UserError, match=r"unknown bug 'zzz': choose a family, conv, maxpool, .*mse, "):
        choose(["zzz"])
    assert set(FAMILIES) == {name.split("-")[0] for name in BUGS}


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch):
    """Networks that train for 16 steps."""
    networks = {name: replace(each, steps=16) for name, each in NETWORKS.items()}
    for module in ("training", "report"):
        monkeypatch.setattr(f"minires.study.bugs.{module}.NETWORKS", networks)


def outcome(*losses):
    return Outcome(losses, 0.5)


def test_verdicts():
    clean = (outcome(2.0, 0.4), outcome(2.0, 0.2))  # finals 1.2 and 1.1
    assert verdict(outcome(2.0, 0.4), clean) == "no trace"
    assert verdict(outcome(2.0, 0.59), clean) == "looks fine"
    assert verdict(outcome(2.0, 0.61), clean) == "learns worse"
    assert verdict(outcome(2.0, 1.9), clean) == "learns nothing"
    assert verdict(outcome(2.0, 6.1), clean) == verdict(outcome(2.0, math.nan), clean) == "diverged"


def test_training_feels_a_bug_and_forgets_it(short):
    clean = train_clean("residual")
    assert [len(each.losses) for each in clean] == [16] * len(CLEAN_SEEDS)
    assert len({each.losses for each in clean}) == len(CLEAN_SEEDS)
    bad = train_with(BUGS["batchnorm-count-of-one-image"])
    assert bad.losses[0] == clean[0].losses[0] and bad.loss > 2 * clean[0].loss
    assert verdict(bad, clean) == "diverged"
    assert verdict(train_with(BUGS["conv-weight-overwritten"]), clean) == "no trace"
    assert train_clean("residual") == clean


@pytest.mark.parametrize("name", [name for name, bug in BUGS.items() if bug.planned])
def test_a_plan_has_the_bug_in_every_step(name, monkeypatch):
    """What a plan repeats without Python (cpu) is what it computes operator by operator (the reference)."""
    networks = {name: replace(each, steps=5) for name, each in NETWORKS.items()}
    monkeypatch.setattr("minires.study.bugs.training.NETWORKS", networks)
    monkeypatch.setattr("minires.study.bugs.training.CLEAN_SEEDS", (0,))
    found = {}
    for backend in HOST_BACKENDS:
        with use_backend(backend):
            found[backend] = train_with(BUGS[name]).losses
    (clean,) = train_clean("residual, planned")
    assert found["cpu"][0] == clean.losses[0] and np.abs(np.array(found["cpu"]) / clean.losses - 1).max() > 1e-3
    np.testing.assert_allclose(found["cpu"], found["reference"], rtol=1e-4)


def test_a_clean_network_learns_its_pictures(monkeypatch):
    monkeypatch.setattr("minires.study.bugs.training.CLEAN_SEEDS", (0,))
    (final,) = train_clean("residual")
    assert final.accuracy > 0.9 and final.loss < 0.6 < 2 < final.losses[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_bug_is_felt_by_its_network(name):
    """The network has the bug's layers: its backward passes go through what is wrong."""
    network = NETWORKS[name]
    parts = parts_of(network)
    for bug in BUGS.values():
        if bug.network == name:
            assert parts & set(bug.layers), bug.name
            assert bug.planned == network.planned


# --- the table, JSON and the command ----------------------------------------------------------------------------------


def test_sparkline():
    assert sparkline([2.0] * 6 + [1.0] * 6, 2.0) == "██████▅▅▅▅▅▅"
    assert sparkline([9.0, math.inf], 2.0) == "█!"


def test_the_table_says_what_happened():
    clean = (outcome(2.0, 0.4), outcome(2.0, 0.2))
    rows = [BugRow(BUGS["conv-bias-dropped"], detection("conv-bias-dropped"), outcome(2.0, 0.5), clean),
            BugRow(BUGS["relu-writes-into-dy"], detection("relu-writes-into-dy"), outcome(2.0, math.nan), clean),
            BugRow(BUGS["conv-weight-rounded"], detection("conv-weight-rounded"), outcome(2.0, 1.0), clean)]
    lines = render(BugReport(tuple(rows))).splitlines()
    assert lines[0].split() == ["bug", "differences", "contract", "adjoint", "cases", "loss", "clean", "accuracy", "loss",
                                "curve", "training"]
    adjoint = f"{detection('conv-bias-dropped').adjoint:.1e}"
    assert lines[1].split()[:5] == ["conv-bias-dropped", "1.0e+00", "-", adjoint, "4/5"]
    assert lines[1].split()[5:8] == ["1.25", "1.2", "50%"] and lines[1].endswith("looks fine")
    assert "writes into dy" in lines[2] and lines[2].endswith("█!          diverged")
    assert lines[5] == "every bug is killed: 1 by difference quotients, 1 by the contract, 2 by the adjoint (1 by it alone)"
    assert lines[-1].startswith("1 of 3 would not be seen in the loss")
    detailed = render(BugReport(tuple(rows)), details=True).splitlines()
    assert detailed[2].strip() == BUGS["conv-bias-dropped"].mistake
    assert "bias has relative error 1.0e+00" in detailed[3]
    values = json.loads(json.dumps(to_json(BugReport(tuple(rows))), allow_nan=False))
    assert values["killed"] == 3
    assert values["bugs"][1]["training"]["loss"] is None and values["bugs"][1]["training"]["verdict"] == "diverged"
    assert values["bugs"][0]["difference"] == detection("conv-bias-dropped").difference


def run(arguments, capsys):
    """(exit code, stdout, stderr) of a command line."""
    with pytest.raises(SystemExit) as stop:
        main(["study", "bugs", *arguments])
    return stop.value.code or 0, *capsys.readouterr()


def test_the_command_kills_and_exits_0(capsys):
    code, text, _ = run(["relu", "linear-bias-averaged", "--no-training", "--details"], capsys)
    assert code == 0
    assert [line.split()[0] for line in text.splitlines() if line.startswith(("relu-", "linear-"))] == [
        "relu-mask-from-dy", "relu-mask-forgotten", "relu-writes-into-dy", "linear-bias-averaged"]
    assert "every bug is killed: 3 by difference quotients, 1 by the contract" in text
    assert "loss curve" not in text


def test_a_survivor_is_named_and_exits_1(capsys, monkeypatch):
    monkeypatch.setitem(BUGS, HARMLESS.name, HARMLESS)
    code, text, _ = run(["relu-harmless", "relu-mask-forgotten", "--no-training"], capsys)
    assert code == 1
    assert "SURVIVED relu-harmless: The mask is y >= 0." in text
    assert "1 of 2 bugs are killed" in text and "every bug is killed" not in text


def test_the_command_draws_and_writes_json(capsys, short, tmp_path):
    picture = tmp_path / "bugs.png"
    code, text, err = run(["mse", "--json", "--out", str(picture)], capsys)
    assert code == 0 and "drew 2 loss curves" in err
    values = json.loads(text)
    assert [bug["name"] for bug in values["bugs"]] == ["mse-two-lost", "mse-averaged-over-rows"]
    assert [bug["training"]["verdict"] for bug in values["bugs"]][1] == "diverged"
    with Image.open(picture) as image:
        assert image.format == "PNG" and len(image.convert("RGB").getcolors(1 << 20)) > 50


def test_the_list(capsys):
    code, text, _ = run(["--list"], capsys)
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()] == list(BUGS)
    assert all(bug.mistake in text for bug in BUGS.values())


@pytest.mark.parametrize(("arguments", "message"), [
    (["no-such-bug"], "unknown bug 'no-such-bug'"),
    (["--no-training", "--out", "x.png"], "--out draws the loss curves of training, and --no-training leaves them out"),
    (["--list", "--json"], "--list only names the bugs: leave out --json"),
    (["--out", "x.svg"], "--out writes a PNG, got x.svg"),
    (["--out", "absent/x.png"], "the picture absent/x.png cannot be written: absent is not a folder"),
])
def test_mistakes_of_the_user(arguments, message, capsys):
    code, text, err = run(arguments, capsys)
    assert (code, text) == (2, "") and err.startswith(f"minires: error: {message}") and err.count("\n") == 1


def test_curves_of_the_picture(tmp_path, figures):
    """Each panel holds the clean curves and the bug's, cut at the panel's upper edge."""
    panels = [{"name": "first", "verdict": "looks fine", "losses": [2.0, 1.0, 0.5], "clean": [[2.0, 1.0, 0.4]], "stride": 8,
               "label": "0.5"},
              {"name": "second", "verdict": "diverged", "losses": [2.0, 99.0], "clean": [[2.0, 1.0, 0.4]], "stride": 8,
               "label": "inf"}]
    draw_bugs(panels, VERDICTS, tmp_path / "bugs.png")
    first, second = figures[0].axes
    assert [list(line.get_ydata()) for line in first.get_lines()] == [[2.0, 1.0, 0.4], [2.0, 1.0, 0.5]]
    assert [list(line.get_ydata()) for line in second.get_lines()] == [[2.0, 1.0, 0.4], [2.0, 2.5], [2.5]]
    assert [axes.get_title(loc="left") for axes in figures[0].axes] == ["first", "second"]
    shown = {text.get_text() for text in figures[0].legends[0].get_texts()}
    assert shown == {"looks fine", "diverged", "clean, three seeds"}
