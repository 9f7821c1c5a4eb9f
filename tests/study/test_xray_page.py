"""The X-ray of models and runs, as numbers and as a page: what is quoted is what was measured, and a browser shows it."""
import json
import os
import re
import shutil
import signal
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from minires.backends import use_backend
from minires.cli import main
from minires.data import make_shapes
from minires.errors import UserError
from minires.files import load_tensors
from minires.study.xray import Order, write_xray, xray
from minires.study.xray.page import require_folder
from minires.study.xray.quote import FORMATS
from minires.study.xray.subject import is_run, model_subject, run_subject, twin_of
from minires.training.recipes import make_recipe
from minires.training.run import Settings, build_run, write_config

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars")
WIDTH, HEIGHT = 1000, 4000
STAGES = ("gradients", "parts", "paths", "lesions", "activity")


@pytest.fixture(scope="module", autouse=True)
def small_world():
    """Small pictures, batches and networks (of 6 blocks), computed without compiling."""
    with pytest.MonkeyPatch.context() as patch, use_backend("reference"):
        for module in ("minires.study.xray.subject", "minires.training.run"):
            patch.setattr(f"{module}.load_dataset", lambda *_, **__: (make_shapes(48, 0, 16), make_shapes(12, 1, 16)))
        patch.setattr("minires.study.xray.subject.BATCH_SIZE", 8)
        yield


def train(folder, model, epochs=2):
    settings = Settings(model, "shapes", "he2015", make_recipe("he2015", lr=0.01), epochs, 16, seed=5, validation=16)
    trainer, card = build_run(settings, folder, progress=False)
    initial = trainer.model.state_dict()
    folder.mkdir()
    write_config(folder, settings, card)
    trainer.fit(epochs)
    return initial


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{model: (its run's folder, its initial weights)}."""
    place = tmp_path_factory.mktemp("runs")
    return {model: (place / model, train(place / model, model)) for model in ("resnet14", "plain14")}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """(report, folder) of a model and its twin, trained for three steps."""
    folder = tmp_path_factory.mktemp("page")
    report = xray(Order("resnet14", images=4, train_steps=3))
    assert write_xray(report, folder) == folder / "xray.html"
    return report, folder


class Page(HTMLParser):
    """What a page refers to, the numbers it quotes, and its text."""

    def __init__(self, content):
        super().__init__()
        self.references, self.numbers, self.texts, self._open = [], [], [], None
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.references += [(tag, name, attributes[name]) for name in ("src", "href", "srcset", "data", "action", "poster")
                            if name in attributes]
        if tag == "data":
            self._open = [attributes["data-key"], attributes["value"], ""]
        elif tag == "sup" and self._open:
            self._open[2] += "^"

    def handle_data(self, text):
        self.texts.append(text)
        if self._open:
            self._open[2] += text

    def handle_endtag(self, tag):
        if tag == "data":
            self.numbers.append(tuple(self._open))
            self._open = None


def at(report, key):
    for part in key.split("."):
        report = report[int(part)] if isinstance(report, list) else report[part]
    return report


def test_a_model_and_its_twin_are_measured_before_and_after_training(page):
    report, _ = page
    residual, plain = report["networks"]
    assert (residual["name"], residual["residual"], residual["blocks"]) == ("resnet14", True, 6)
    assert (plain["name"], plain["residual"], plain["parameters"]) == ("plain14", False, residual["parameters"])
    for network in report["networks"]:
        assert [(moment["label"], moment["at"]) for moment in network["moments"]] == [("initialisation", 0), ("step 3", 3)]
        assert [record["at"] for record in network["along_training"]] == [0, 1, 2, 3]
        assert [step for step, _ in network["losses"]] == [1, 2, 3]
        assert network["final_loss"] == network["losses"][-1][1]
        for moment in network["moments"]:
            assert max(block["error"] for block in moment["blocks"]) < 1e-6 and moment["paths"]["error"] < 1e-6
            assert len(moment["blocks"]) == len(moment["branches"]) == 6 and len(moment["paths"]["norm"]) == 7
            assert len(moment["lesions"]["lesions"]) == (12 if network["residual"] else 6)
            assert moment["lesion_statistics"] == "batch"
            found, first, last = moment["findings"], moment["blocks"][0], moment["blocks"][-1]
            assert found["gradient_ratio"] == first["whole"] / last["whole"]
            assert found["error"] == max([block["error"] for block in moment["blocks"]] + [moment["paths"]["error"]])
            along = next(record for record in network["along_training"] if record["at"] == moment["at"])
            assert along["blocks"]["layer1.0"] == pytest.approx(first["whole"])
        start, end = network["moments"]
        assert start["blocks"][0]["whole"] != end["blocks"][0]["whole"]
    # The stem is the same: the twin has the same weights.
    first = [network["moments"][0]["activity"][0] for network in report["networks"]]
    assert first[0] == first[1]


def test_findings_come_from_the_measurements(page):
    moment = page[0]["networks"][0]["moments"][0]
    found, share = moment["findings"], np.array(moment["paths"]["share"])
    assert share[found["peak"]] == share.max()
    assert share[:found["low"]].sum() < 0.05 <= share[:found["low"] + 1].sum()
    assert share[:found["high"]].sum() < 0.95 <= share[:found["high"] + 1].sum()
    changes = {cut["block"]: cut["change"] for cut in moment["lesions"]["lesions"] if cut["part"] == "shortcut"}
    assert found["worst_shortcut_change"] == changes[found["worst_shortcut"]] == max(changes.values())
    assert found["median_shortcut_change"] == np.median(list(changes.values()))


def test_the_page_needs_nothing_else_and_quotes_the_json(page):
    report, folder = page
    content = (folder / "xray.html").read_text(encoding="utf-8")
    stored = json.loads((folder / "xray.json").read_text())
    assert stored == json.loads(json.dumps(report))
    parsed = Page(content)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link|<iframe", re.sub(r"base64,[^\"]+", "", content))
    assert {(tag, name) for tag, name, _ in parsed.references} == {("img", "src")}
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert pictures == sorted([f"{stage}_{name}.png" for stage in ("initialisation", "trained") for name in STAGES]
                              + ["training.png"])
    embedded = [value for *_, value in parsed.references]
    assert len(embedded) == len(pictures) and all(value.startswith("data:image/png;base64,") for value in embedded)
    assert len(parsed.numbers) > 150
    for key, value, text in parsed.numbers:
        assert float(value) == at(stored, key), key
        written = {re.sub("<[^>]*>", "", FORMATS[how](at(stored, key)).replace("<sup>", "^")) for how in FORMATS}
        assert text in written, key
    assert "".join(parsed.texts).count("times that at its last") == 4


def test_a_folder_that_cannot_be_written_is_one_sentence(page, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*below \(Not a directory\): choose another --out"):
        write_xray(page[0], tmp_path / "file" / "below")
    require_folder(tmp_path / "new" / "below")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match=r"\(.* is not writable\): choose another --out"):
        require_folder(tmp_path / "new")


@pytest.mark.parametrize(("value", "how", "text"), [
    (4740.4, "short", "4,740"), (36.44, "short", "36.4"), (0.2884, "short", "0.288"), (-0.000212, "short", "\u22120.000212"),
    (1.5e-9, "short", "1.5·10<sup>\u22129</sup>"), (12, "short", "12"), (0.0, "short", "0"), (0.662, "percent", "66.2 %"),
    (0.0, "percent", "0 %"), (1.9e-5, "percent", "1.9·10<sup>\u22123</sup> %"), (-0.03, "signed", "\u22120.030"),
    (1.4e-14, "error", "1.4·10<sup>\u221214</sup>"), (0.0, "error", "0")])
def test_numbers_are_written_for_reading(value, how, text):
    assert FORMATS[how](value) == text


def test_a_browser_shows_the_page(page, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed: looked for {', '.join(BROWSERS)}")
    shot = tmp_path / "shot.png"
    command = [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={WIDTH},{HEIGHT}",
               f"--screenshot={shot}", (page[1] / "xray.html").as_uri()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert shot.is_file(), output
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    written = (pixels < 200).all(2)
    for start in range(0, HEIGHT, 500):  # text and figures all the way down
        assert 0.005 < written[start:start + 500].mean() < 0.5, start
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):  # the figures' lines: they are shown
        assert (np.abs(pixels - colour).max(2) < 8).sum() > 200, colour
    # Nothing is cut off at the right.
    assert (pixels[:, -8:] > 245).all()


def test_a_run_is_seen_at_its_beginning_its_best_and_its_last_epoch(runs):
    folder, initial = runs["resnet14"]
    subject = run_subject(folder)
    for name, array in subject.moments[0].network.state_dict().items():
        np.testing.assert_array_equal(array, initial[name])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: row["validation_accuracy"])["epoch"]
    files = {best: "best.safetensors", 2: "last.safetensors"}
    assert [moment.at for moment in subject.moments] == [0, *sorted(files)]
    for moment in subject.moments[1:]:
        weights, _ = load_tensors(folder / files[moment.at])
        for name, array in moment.network.state_dict().items():
            np.testing.assert_array_equal(array, weights[name])
        assert moment.settled

    report = xray(Order(str(folder), images=4))
    run, twin = report["networks"]
    assert run["unit"] == "epoch" and run["losses"] == [[row["epoch"], row["train_loss"]] for row in rows]
    assert [moment["lesion_statistics"] for moment in run["moments"]] == ["batch", *["running"] * len(files)]
    assert run["moments"][-1]["lesions"]["loss"] == pytest.approx(rows[-1]["test_loss"], rel=1e-4)  # all 12 test images
    assert twin["name"] == "plain14" and [moment["at"] for moment in twin["moments"]] == [0]


def test_two_runs_beside_each_other(runs):
    report = xray(Order(str(runs["resnet14"][0]), twin=str(runs["plain14"][0]), images=4))
    assert [network["name"] for network in report["networks"]] == ["resnet14", "plain14"]
    assert all(network["moments"][-1]["at"] == 2 for network in report["networks"])


def test_networks_of_one_name_are_told_apart(runs):
    folder = str(runs["resnet14"][0])
    report = xray(Order(folder, twin="resnet14", images=4))
    assert [network["name"] for network in report["networks"]] == [f"resnet14 ({folder})", "resnet14"]


def test_a_plain_model_is_held_against_its_residual_twin():
    plain = model_subject("plain14", 10)
    residual = twin_of(plain, 10)
    assert residual.name == "resnet14"
    weights = residual.moments[0].network.state_dict()
    for name, array in plain.moments[0].network.state_dict().items():
        np.testing.assert_array_equal(array, weights[name])


@pytest.mark.parametrize(("arguments", "message"), [
    (["resnet21"], "'resnet21' is neither the folder of a run"),
    (["resnet14", "--images", "1"], "1 images are too few: batch normalisation needs 2 or more"),
    (["resnet14", "--images", "500"], "500 images were asked for and shapes has 48"),
    (["resnet14", "--train-steps", "-1"], "training for -1 steps is not possible"),
    (["resnet14", "--seed", "-1"], "seed -1 is negative"),
    (["resnet14", "--twin", "vgg16"], "'vgg16' is neither"),
    (["plain14", "--shortcut", "B"], "plain14 has no shortcuts"),
    (["RUN", "--train-steps", "3"], "--train-steps trains fresh models"),
    (["RUN", "--shortcut", "B"], "--shortcut is for models"),
    (["resnet14", "--out", "FILE/below"], "file is no folder): choose another --out"),
    (["resnet14", "--twin", "resnet14"], "resnet14 was to be held against itself: name another"),
    (["resnet21", "--out", "new"], "'resnet21' is neither the folder of a run"),
])
def test_what_does_not_fit_is_one_sentence(arguments, message, runs, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    places = {"RUN": str(runs["resnet14"][0]), "FILE/below": str(tmp_path / "file" / "below")}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["xray", *(places.get(argument, argument) for argument in arguments)])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("minires: error: ") and message in lines[-1]
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]  # no empty folder either


def test_a_run_without_an_epoch_is_refused(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs["resnet14"][0], folder)
    assert is_run(str(folder))
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no epoch yet"):
        run_subject(folder)
    (folder / "last.safetensors").unlink()
    with pytest.raises(UserError, match="is not a file"):
        xray(Order(str(folder)))


def test_the_command_writes_beside_the_run_and_says_what_it_found(runs, capsys, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs["plain14"][0], folder)
    with pytest.raises(SystemExit) as stopped:
        main(["xray", str(folder), "--images", "3"])
    assert not stopped.value.code
    output = capsys.readouterr()
    content = (folder / "xray" / "xray.html").read_text(encoding="utf-8")
    assert "after training: plain14 to epoch 2" in content and "Through the identity, through the branch</h2>" in content
    assert "plain14, epoch 2: gradient norm of the first block over the last" in output.out
    assert str(folder / "xray" / "xray.html") in output.out
    assert "plain14, initialisation: gradients" in output.err  # no terminal: plain lines
