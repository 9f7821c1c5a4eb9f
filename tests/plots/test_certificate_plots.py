"""The pictures of the V and of the sharpness, and the commands that draw them."""
import numpy as np
import pytest
from PIL import Image

from minires.plots.certificate import LEAST, draw_sharpness, draw_step_curves
from minires.study.certificate import STEP_CURVES, step_curves


@pytest.fixture
def command(command, monkeypatch, tmp_path):
    """In an empty folder."""
    monkeypatch.chdir(tmp_path)
    return command


def assert_picture(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 400 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def labelled(axes):
    return {line.get_label().split(":")[0]: line for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_a_panel_holds_every_error(tmp_path, figures):
    curves = step_curves()
    assert tuple(curves) == STEP_CURVES
    draw_step_curves(curves, tmp_path / "v.png")
    assert_picture(tmp_path / "v.png")
    assert [axes.get_title(loc="left") for axes in figures[0].axes] == list(curves)
    for axes, curve in zip(figures[0].axes, curves.values(), strict=True):
        lines = labelled(axes)
        assert set(lines) == {"forward", "central"} | ({"complex"} if curve.complex else set())
        for kind, line in lines.items():
            np.testing.assert_array_equal(line.get_xdata(), curve.steps)
            np.testing.assert_array_equal(line.get_ydata(), np.maximum(getattr(curve, kind), LEAST))
        bottom, top = axes.get_ylim()
        assert all(bottom < line.get_ydata().min() and line.get_ydata().max() < top for line in lines.values())
        dashed = [line for line in axes.get_lines() if line.get_label().startswith("_")]
        arms = 1 + sum(size > 1e-8 for size in curve.truncation) * (curve.complex is not None)
        assert len(dashed) == arms
        np.testing.assert_allclose(dashed[0].get_ydata() * np.array(curve.steps), curve.rounding)
    kinked = figures[0].axes[list(curves).index("BasicBlock")]
    assert [text.get_text() for text in kinked.texts] == ["no complex step: a comparison inside"]


def test_step_curves_of_a_class_and_of_a_model():
    assert list(step_curves("BatchNorm2d")) == ["BatchNorm2d", "BatchNorm2d evaluation", "BatchNorm2d frozen"]
    (name, curve), = step_curves("resnet20").items()
    assert name == "resnet20" and curve.best("central")[1] < 1e-7 and "it holds a ReLU" in curve.reason


@pytest.mark.parametrize("panels", [1, 5])
def test_any_number_of_panels(tmp_path, figures, panels):
    curve = step_curves("GlobalAvgPool2d")["GlobalAvgPool2d"]
    draw_step_curves({f"layer {index}": curve for index in range(panels)}, tmp_path / "v.png")
    assert_picture(tmp_path / "v.png")
    assert len(figures[0].axes) == panels


def test_sharpness_holds_every_number(tmp_path, figures):
    rows = [{"step": 10 * index, "loss": 2.0 / (index + 1), "top": 5.0 + index, "bottom": -1.0 / (index + 1)}
            for index in range(6)]
    draw_sharpness(rows, 0.1, "resnet8", tmp_path / "sharpness.png")
    assert_picture(tmp_path / "sharpness.png")
    loss, sharp = figures[0].axes
    assert list(loss.get_lines()[0].get_ydata()) == [row["loss"] for row in rows]
    lines = labelled(sharp)
    for label, key in (("largest", "top"), ("smallest that was met", "bottom")):
        assert list(lines[label].get_xdata()) == [row["step"] for row in rows]
        assert list(lines[label].get_ydata()) == [row[key] for row in rows]
    assert set(lines["2 / learning rate = 20"].get_ydata()) == {20.0} and sharp.get_ylim()[1] > 20


# --- the commands ---


def test_gradcheck_draws_the_v(command, tmp_path):
    code, out, error = command("gradcheck", "MSELoss", "--vcurve", "v.png")
    assert (code, error) == (0, "")
    assert_picture(tmp_path / "v.png")
    assert "adjoint" in out.splitlines()[0]
    curve = step_curves("MSELoss")["MSELoss"]
    step, least = curve.best("forward")
    assert f"best difference quotients of MSELoss: forward {least:.0e} at step {step:.0e}, central" in out
    assert out.endswith("drew their errors at every step into v.png\n")


def test_gradcheck_without_adjoints(command):
    code, out, _ = command("gradcheck", "MSELoss", "--no-adjoint")
    assert code == 0 and "adjoint" not in out and "every gradient is the derivative" in out


@pytest.mark.parametrize(("name", "sentence"), [("v.pdf", "--vcurve writes a PNG, got v.pdf: choose a name"),
                                                ("absent/v.png", "absent/v.png cannot be written")])
def test_gradcheck_refuses_a_place_at_once(command, tmp_path, name, sentence):
    code, out, error = command("gradcheck", "--vcurve", name)
    assert code == 2 and out == "" and sentence in error and len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_sharpness_prints_and_draws(command, tmp_path):
    code, out, error = command("study", "sharpness", "--images", 10, "--steps", 2, "--measurements", 2, "--plain")
    assert code == 0 and all(line.startswith("minires: compiling CPU kernels") for line in error.splitlines())
    lines = out.splitlines()
    assert lines[0] == "plain8 on 10 shapes by gradient descent, 2 / learning rate = 20"
    assert [line.split()[0] for line in lines[2:4]] == ["0", "2"]
    assert all(float(line.split()[2]) > float(line.split()[3]) for line in lines[2:4])
    peak = max(lines[2:4], key=lambda line: float(line.split()[2])).split()
    assert lines[4].startswith(f"the largest eigenvalue peaks at {peak[2]} at step {peak[0]}, ")
    assert_picture(tmp_path / "sharpness.png")


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--depth", "9"], "depth 9 is no ResNet of this family: choose 8, 14, 20"),
    (["--lr", "0"], "learning rate 0.0 is not above 0"),
    (["--images", "3"], "3 images leave classes without one"),
    (["--measurements", "1"], "1 measurements along 150 steps cannot be made"),
    (["--seed", "-1"], "seed -1 is negative"),
    (["--out", "s.svg"], "--out writes a PNG, got s.svg"),
    (["--out", "absent/s.png"], "absent is not a folder"),
])
def test_sharpness_refuses(command, tmp_path, arguments, sentence):
    code, out, error = command("study", "sharpness", *arguments)
    assert code == 2 and out == "" and sentence in error and len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
