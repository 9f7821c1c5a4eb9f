"""A cell that trains shows a bar, without ipywidgets, and leaves the epochs' lines."""
import nbformat
from notebooks import execute

TRAINING = """
import numpy as np
import minires.training.progress as progress
from minires import SGD, Sequential, Trainer, use_backend
from minires.data import Dataset, Loader
from minires.layers import Flatten, Linear

progress.EVERY = 0
written, update = [], progress.NotebookBar.update
progress.NotebookBar.update = lambda self, done, text: written.append(f"{done:.2f} {text}") or update(self, done, text)
rng = np.random.default_rng(0)
data = Dataset(rng.integers(0, 256, (8, 4, 4, 3), np.uint8), rng.integers(0, 2, 8), ("a", "b"))
batches = Loader(data, 4, mean=(0.5,) * 3, std=(0.5,) * 3)
model = Sequential(Flatten(), Linear(48, 2))
with use_backend("reference"):
    Trainer(model, SGD(model.parameters(), 0.1), batches, batches).fit(epochs=2)
print(*written, sep="\\n")
"""


def test_a_cell_that_trains_shows_a_bar():
    (cell,) = execute(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(TRAINING)])).cells
    shown = [out.get("text") or out["data"]["text/plain"] for out in cell.outputs]
    assert shown[0] == ""  # the bar is gone
    assert [line.split()[:3] for line in shown[-1].splitlines()] == [
        [share, "epoch", f"{epoch}/2"] for share, epoch in [("0.25", 1), ("0.50", 1), ("0.75", 2), ("1.00", 2)]]
    assert "images/s" in shown[-1] and sum("epoch" in text and "test" in text for text in shown[1:-1]) == 2
