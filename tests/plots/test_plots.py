"""Pictures: the curves that are asked for are on them, and the files are pictures."""
import numpy as np
import pytest
from PIL import Image

from minires.errors import UserError
from minires.plots import draw_comparison, draw_curves
from minires.plots.divergence import draw_divergence
from minires.plots.landscape import draw_landscapes
from minires.plots.mistakes import draw_confusion
from minires.plots.network import draw_features, draw_filters, draw_grad_cam, draw_saliency
from minires.study.divergence import Gap, Key
from minires.study.landscape import Landscape


def rows(epochs, validation=False, scale=1.0):
    made = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "lr": 0.1 / epoch}
        for index, name in enumerate(("train", "test", "validation")[:3 if validation else 2]):
            row |= {f"{name}_loss": scale * (2 + index) / epoch, f"{name}_accuracy": 1 - 0.1 * (index + 1) / epoch}
        made.append(row)
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


# --- what a network sees ---


def test_filters_share_one_scale(tmp_path, figures, rng):
    weight = rng.standard_normal((3, 3, 3, 10))
    weight[..., 4] = 0
    draw_filters(weight, tmp_path / "filters.png")
    shown = [picture.get_array() for picture in figures[0].axes[0].get_images()]
    assert len(shown) == 10
    np.testing.assert_allclose(shown, 0.5 + weight.transpose(3, 0, 1, 2) / (2 * np.abs(weight).max()))
    assert (shown[4] == 0.5).all()
    with pytest.raises(UserError, match="3 channels in"):
        draw_filters(rng.standard_normal((3, 3, 4, 10)), tmp_path / "none.png")


@pytest.mark.parametrize("channels, signed", [(5, True), (70, False)])
def test_features_are_all_on_one_scale(tmp_path, figures, rng, channels, signed):
    maps = rng.standard_normal((6, 7, channels))
    maps = maps if signed else np.abs(maps)
    draw_features(np.zeros((24, 28, 3), np.uint8), maps, "layer1", tmp_path / "features.png")
    assert_picture(tmp_path / "features.png")
    _, sheet, _bar = figures[0].axes
    panels = sheet.get_images()
    assert [text.get_text() for text in sheet.texts] == [str(index) for index in range(min(channels, 64))]
    assert len(panels) == len(sheet.texts)
    for index, picture in enumerate(panels):
        np.testing.assert_array_equal(picture.get_array(), maps[..., index])
    assert len({picture.get_clim() for picture in panels}) == len({picture.cmap.name for picture in panels}) == 1
    low, high = panels[0].get_clim()
    assert low == (-high if signed else 0)


def test_grad_cam_lies_over_its_image(tmp_path, figures, rng):
    pixels = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
    heat = np.zeros((2, 4, 4))
    heat[0, 3, 0] = 5
    draw_grad_cam(pixels, {"layer3": heat}, ["cat 90%", "dog 80%"], tmp_path / "cam.png")
    image, grey, warm, second, empty = figures[0].axes[0].get_images()
    np.testing.assert_array_equal(image.get_array(), pixels[0])
    np.testing.assert_array_equal(second.get_array(), pixels[1])
    assert grey.get_extent() == warm.get_extent() != empty.get_extent()
    row, column = np.unravel_index(warm.get_array().argmax(), warm.get_array().shape)
    assert row > 96 > 32 > column and warm.get_array().max() == 1
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["cat 90%", "layer3", "dog 80%", "layer3: no evidence"]


def test_saliency_stands_beside_its_image(tmp_path, figures, rng):
    pixels, maps = rng.integers(0, 256, (2, 8, 8, 3), np.uint8), rng.standard_normal((2, 8, 8))
    draw_saliency(pixels, np.abs(maps), maps, ["cat", "dog"], tmp_path / "saliency.png")
    shown = [picture.get_array() for picture in figures[0].axes[0].get_images()]
    for row in (0, 1):
        np.testing.assert_array_equal(shown[3 * row], pixels[row])
        np.testing.assert_array_equal(shown[3 * row + 1], np.abs(maps[row]))
        np.testing.assert_array_equal(shown[3 * row + 2], maps[row])


def test_confusion_writes_every_count_and_the_mistakes(tmp_path, figures, rng):
    matrix = np.array([[8, 1, 0], [2, 7, 0], [0, 0, 0]])
    mistakes = [(rng.integers(0, 256, (8, 8, 3), np.uint8), "cat", "dog", 0.973)] * 7
    draw_confusion(matrix, ("cat", "dog", "owl"), mistakes, tmp_path / "confusion.png")
    assert_picture(tmp_path / "confusion.png")
    grid, sheet = figures[0].axes
    written = {(int(y), int(x)): text.get_text() for text in grid.texts for x, y in [text.get_position()]}
    assert written == {(0, 0): "8", (0, 1): "1", (1, 0): "2", (1, 1): "7"}
    assert "15 of 18 right (83.33%)" in {grid.get_title(loc="left")}
    assert [text.get_text() for text in sheet.texts] == ["cat →\ndog 97.3%"] * 7
    assert len({tuple(picture.get_extent()) for picture in sheet.get_images()}) == 7
    draw_confusion(np.diag([3, 4]), ("a", "b"), [], tmp_path / "perfect.png")
    assert_picture(tmp_path / "perfect.png")


def test_landscapes_hold_curves_and_surfaces(tmp_path, figures):
    steps = np.linspace(-1, 1, 5)
    bowl = 0.1 + steps[:, None] ** 2 + 3 * steps ** 2
    broken = bowl.copy()
    broken[0, 0], broken[4, 4] = np.nan, np.inf
    surfaces = {"one": Landscape(steps, bowl, bowl), "two": Landscape(steps, broken, broken)}
    curves = {name: Landscape(steps, part.loss[:, 2], part.loss[:, 2]) for name, part in surfaces.items()}
    draw_landscapes(curves, surfaces, tmp_path / "landscape.png")
    assert_picture(tmp_path / "landscape.png")
    left, first, second, _bar = figures[0].axes
    assert [list(line.get_ydata()) for line in lines(left)] == [list(curve.loss) for curve in curves.values()]
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == ("one", "two")


def test_divergence_holds_every_gap(tmp_path, figures):
    gaps = [Gap(step, Key(phase, f"layer{place}", "y"), float(ulps), ulps, 0.5)
            for step, phase, place, ulps in [(1, "forward", 1, 0), (1, "forward", 2, 7), (1, "update", 1, 3),
                                             (2, "forward", 1, 90), (2, "forward", 2, 700), (2, "update", 1, 30)]]
    gaps.append(Gap(2, Key("update", "layer2", "y"), np.inf, 1, 1.0))
    draw_divergence(gaps, ("cpu", "reference"), 64, tmp_path / "divergence.png")
    assert_picture(tmp_path / "divergence.png")
    outputs, weights = figures[0].axes
    drawn = [list(line.get_ydata()) for line in lines(outputs) if line.get_marker() == "o"]
    assert drawn == [[0, 7], [90, 700]]
    assert [text.get_text() for text in outputs.get_xticklabels()] == ["layer1.y", "layer2.y"]
    endless = [line for line in lines(weights) if line.get_marker() == "^"]
    assert [list(line.get_xdata()) for line in endless] == [[1]] and endless[0].get_ydata()[0] > 700
    assert [text.get_text() for text in outputs.get_legend().get_texts()] == ["step 1", "step 2"]


def test_divergence_of_runs_goes_by_epoch(tmp_path, figures):
    gaps = [Gap(epoch, Key("metrics", "", name), 2.0 * epoch, 1, 1.0) for epoch in (1, 2, 3) for name in ("lr", "loss")]
    gaps += [Gap(3, Key("weights", "", name), 5.0, 5, 1.0) for name in ("a", "b")]
    draw_divergence(gaps, ("one", "two"), 0, tmp_path / "runs.png")
    metrics, weights = figures[0].axes
    drawn = [line for line in lines(metrics) if line.get_marker() == "o"]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in drawn] == [([1, 2, 3], [2, 4, 6])] * 2
    assert [list(line.get_ydata()) for line in lines(weights) if line.get_marker() == "o"] == [[5, 5]]
