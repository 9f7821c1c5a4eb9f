"""Pictures: the curves that are asked for are on them, and the files are pictures."""
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from minires.errors import UserError
from minires.plots import draw_comparison, draw_curves


def rows(epochs, validation=False, scale=1.0):
    made = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "lr": 0.1 / epoch}
        for index, name in enumerate(("train", "test", "validation")[:3 if validation else 2]):
            row |= {f"{name}_loss": scale * (2 + index) / epoch, f"{name}_accuracy": 1 - 0.1 * (index + 1) / epoch}
        made.append(row)
    return made


@pytest.fixture
def figures(monkeypatch):
    """The figures that are made, to look into."""
    made = []

    class Kept(Figure):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr("minires.plots.style.Figure", Kept)
    return made


def lines(axes):
    return [line for line in axes.get_lines() if len(line.get_xdata())]


def assert_picture(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > pixels.shape[0] > 400
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize("epochs", [1, 4, 40])
@pytest.mark.parametrize("validation", [False, True])
def test_curves_hold_every_number(tmp_path, figures, epochs, validation):
    wanted = rows(epochs, validation)
    draw_curves(wanted, tmp_path / "curves.png")
    assert_picture(tmp_path / "curves.png")
    loss, accuracy, rate = figures[0].axes
    sets = ("train", "validation", "test") if validation else ("train", "test")
    for axes, keys in ((loss, [f"{name}_loss" for name in sets]), (accuracy, [f"{name}_accuracy" for name in sets]),
                       (rate, ["lr"])):
        assert len(lines(axes)) == len(keys)
        for line, key in zip(lines(axes), keys, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), range(1, epochs + 1))
            np.testing.assert_array_equal(line.get_ydata(), [row[key] for row in wanted])
    assert [text.get_text().split()[0] for text in loss.get_legend().get_texts()] == list(sets)


def test_comparison_holds_train_and_test_of_every_run(tmp_path, figures):
    runs = {"first": rows(5), "second": rows(8, True, 2.0)}
    draw_comparison(runs, tmp_path / "both.png")
    assert_picture(tmp_path / "both.png")
    loss, accuracy = figures[0].axes
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        drawn = [list(line.get_ydata()) for line in lines(axes)]
        keys = (f"train_{quantity}", f"test_{quantity}")
        assert drawn == [[row[key] for row in run] for run in runs.values() for key in keys]
    names = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert [name.split()[0] for name in names] == ["first", "second"]
    colours = {line.get_color() for line in lines(accuracy)}
    assert len(colours) == 2


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        draw_curves(rows(2), tmp_path / "absent" / "curves.png")
