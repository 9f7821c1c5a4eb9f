"""The derivations in examples/*.ipynb run from a clean kernel, and what they store is what they compute now.

After a change to a notebook, or to lines of the project that it shows, run and store them:

    python tests/project/test_notebooks.py
"""
import base64
import io
import os
import shutil
import tempfile
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

import minires

PROJECT = Path(minires.__file__).parents[1]
EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
COMPILING = "minires: compiling CPU kernels for this machine (cached for the next time)\n"  # where no cache is
NOTHING_VOLATILE = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                    "language_info": {"name": "python"}}
THUMBNAIL, SAME_PICTURE = (32, 16), 20  # pixels; the grey levels of 255 by which another font may change one of them


def execute(notebook, project=PROJECT):
    """The notebook as a new kernel computes it, without what changes from run to run: versions, times, the compiler's
    announcement. The kernel imports minires from the folder `project`, and reads no start-up files of the user."""
    notebook = nbformat.from_dict(notebook)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(project), "IPYTHONDIR": folder}
        client = NotebookClient(notebook, timeout=300, kernel_name="python3", record_timing=False, coalesce_streams=True,
                                resources={"metadata": {"path": folder}})
        client.execute(env=environment)
    notebook.metadata = nbformat.from_dict(NOTHING_VOLATILE)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if (out.get("name"), out.get("text")) != ("stderr", COMPILING)]
    return notebook


def read(path):
    return nbformat.read(path, as_version=4)


def results(notebook):
    """(source, text of each output, thumbnail of each picture) of every code cell."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shown = [out.get("text") or out.data.get("text/markdown") or out.data["text/plain"] for out in cell.outputs]
            pictures = [thumbnail(out.data["image/png"]) for out in cell.outputs if "image/png" in out.get("data", {})]
            yield cell.source, shown, pictures


def thumbnail(png):
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        return picture.size, np.asarray(picture.convert("L").resize(THUMBNAIL, Image.Resampling.BOX), float)


def assert_same(stored, new):
    """AssertionError unless both notebooks show the same in every cell, pictures up to the rendering of letters."""
    for (source, before, pictures_before), (_, after, pictures_after) in zip(results(stored), results(new), strict=True):
        assert before == after, f"stale output, run `python tests/project/test_notebooks.py`, below\n{source}"
        for (size, old), (new_size, now) in zip(pictures_before, pictures_after, strict=True):
            assert size == new_size and np.abs(old - now).max() < SAME_PICTURE, f"stale picture below\n{source}"


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
    assert 10 <= len(notebook.cells) <= 20
    source = "\n".join(cell.source for cell in code)
    assert "agree(" in source and "inspect.getsource" in source
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


def store():
    """Execute every notebook and write it back."""
    for path in NOTEBOOKS:
        nbformat.write(execute(read(path)), path)
        print(path)


if __name__ == "__main__":
    store()
