"""Running the notebooks of examples/: from a clean kernel, and comparing what they show with what they store.

    python tests/notebooks.py [NAME ...]        run them, or those whose names begin so, and store them again

after a change to a notebook, or to lines of the project that it shows.
"""
import base64
import io
import os
import sys
import tempfile
from pathlib import Path

import nbformat
import numpy as np
from nbclient import NotebookClient
from paths import EXAMPLES
from PIL import Image

import minires

PROJECT = Path(minires.__file__).parents[1]
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
        assert before == after, f"stale output, run `python tests/notebooks.py`, below\n{source}"
        for (size, old), (new_size, now) in zip(pictures_before, pictures_after, strict=True):
            assert size == new_size and np.abs(old - now).max() < SAME_PICTURE, f"stale picture below\n{source}"


def store(names):
    """Execute the notebooks whose names begin with one of `names`, or all, and write them back."""
    for path in NOTEBOOKS:
        if not names or path.name.startswith(tuple(names)):
            nbformat.write(execute(read(path)), path)
            print(path)


if __name__ == "__main__":
    store(sys.argv[1:])
