"""The derivations in examples/*.ipynb run from a clean kernel, and what they store is what they compute now.

After a change to a notebook, or to lines of the project that it shows: python tests/notebooks.py
"""
import base64
import io
import shutil

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from notebooks import NOTEBOOKS, PROJECT, assert_same, execute, read, results
from paths import EXAMPLES
from PIL import Image


def test_all_derivations_are_there():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_convolution", "02_batchnorm", "03_softmax_cross_entropy", "04_pooling", "05_residual_block", "06_whole_resnet",
        "07_winograd_and_fusion", "08_plan"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_computes_what_it_stores(path):
    stored = read(path)
    assert_same(stored, execute(stored))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_whole(path):
    notebook = read(path)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(out.get("name") == "stderr" for cell in code for out in cell.outputs)
    assert 10 <= len(notebook.cells) <= 22
    shown = "\n".join(cell.source for cell in code)
    assert "agree(" in shown and "source(" in shown
    assert any(pictures for _, _, pictures in results(notebook))


def test_a_stale_text_and_a_stale_picture_are_seen():
    def notebook(text, shade):
        picture = io.BytesIO()
        Image.new("L", (60, 40), shade).save(picture, "png")
        png = {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": "<Figure>"}
        outputs = [nbformat.v4.new_output("stream", text=text), nbformat.v4.new_output("display_data", data=png)]
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("show()", outputs=outputs)])

    assert_same(notebook("1.5", 250), notebook("1.5", 252))
    with pytest.raises(AssertionError, match="stale output"):
        assert_same(notebook("1.5", 250), notebook("1.6", 250))
    with pytest.raises(AssertionError, match="stale picture"):
        assert_same(notebook("1.5", 250), notebook("1.5", 200))


@pytest.mark.parametrize("stem, right, wrong", [
    ("01_convolution", "padded[window] += patches[:, :, :, i, j]", "padded[window] = patches[:, :, :, i, j]"),
    ("02_batchnorm", "(dy - dbias / m - x_hat * (dweight / m))", "(dy - dbias / m)"),
    ("03_softmax_cross_entropy", "return dlogits / N", "return dlogits"),
    ("04_pooling", "won = argmax[:, :, :, None] ==", "won = argmax[:, :, :, None] <="),
])
def test_a_notebook_fails_on_a_wrong_gradient(stem, right, wrong, tmp_path):
    shutil.copytree(PROJECT / "minires", tmp_path / "minires", ignore=shutil.ignore_patterns("__pycache__"))
    reference = tmp_path / "minires" / "backends" / "reference.py"
    source = reference.read_text()
    assert source.count(right) == 1
    reference.write_text(source.replace(right, wrong))
    with pytest.raises(CellExecutionError) as stopped:
        execute(read(EXAMPLES / f"{stem}.ipynb"), tmp_path)
    assert stopped.value.ename in ("AssertionError", "GradientError")
