"""What a training run tells its user: a bar with rate and time left on a terminal or in a notebook, a line an epoch
everywhere."""
import time

EVERY, WIDTH = 0.2, 30  # seconds between two states of a notebook's bar, and its letters


class NotebookBar:
    """A line below the cell of a notebook, written again and again, and empty at the end."""

    def __init__(self):
        from IPython.display import display

        self._line = display({"text/plain": ""}, raw=True, display_id=True)
        self._written = 0.0

    def update(self, done, text):
        """done: the share that is done, 0 to 1."""
        if time.monotonic() - self._written > EVERY:
            self._written, filled = time.monotonic(), round(WIDTH * done)
            self._line.update({"text/plain": f"{'━' * filled}{'╌' * (WIDTH - filled)} {text}"}, raw=True)

    def stop(self):
        self._line.update({"text/plain": ""}, raw=True)


def is_live(console):
    """Whether a bar can be drawn again and again: FORCE_COLOR lets rich take a log file for a terminal, which it is not."""
    return console.is_terminal and console.file.isatty()


class Progress:
    """Shows a run of `epochs` epochs of `steps` steps. Use as a context manager; `show=False` is silent."""

    def __init__(self, epochs, steps, done_epochs=0, show=True):
        self.epochs, self.steps, self.show = epochs, steps, show
        if not show:
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.console = Console(soft_wrap=True, highlight=False, markup=False)
        self.bar = Bar(TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"), BarColumn(),
                       TextColumn("{task.fields[status]}"), TimeRemainingColumn(), TextColumn("left"),
                       console=self.console, disable=not is_live(self.console), transient=True)
        self.task = self.bar.add_task("train", total=epochs * steps, completed=done_epochs * steps, epochs=epochs,
                                      epoch=done_epochs + 1, status="first step")
        # rich's own needs ipywidgets in a notebook.
        self.line = NotebookBar() if self.console.is_jupyter else None

    def __enter__(self):
        if self.show:
            self.bar.start()
        return self

    def __exit__(self, *error):
        if self.show:
            self.bar.stop()
            if self.line:
                self.line.stop()

    def begin_epoch(self, epoch, step=0, seconds=0.0):
        """Epoch number `epoch`, counted from 1, begins, or goes on after so many steps and seconds."""
        self.began = time.perf_counter() - seconds
        if self.show:
            self.bar.update(self.task, epoch=epoch, completed=(epoch - 1) * self.steps + step)

    def step(self, score):
        """A step is done; score: the epoch's so far."""
        if self.show and (is_live(self.console) or self.line):
            self.bar.update(self.task, advance=1)
            if score.images:  # a device's first batches are still waiting to be read
                rate = score.images / (time.perf_counter() - self.began)
                status = f"loss {score.loss:.3f}   accuracy {score.accuracy:.1%}   {rate:,.0f} images/s"
                self.bar.update(self.task, status=status)
                if self.line:
                    task = self.bar.tasks[0]
                    self.line.update(task.completed / task.total, f"epoch {task.fields['epoch']}/{self.epochs}   {status}")

    def note(self, text):
        """Something the user should know."""
        if self.show:
            self.console.print(text)

    def end_epoch(self, row):
        """An epoch is done and evaluated; row: its line of metrics.jsonl."""
        if not self.show:
            return
        sets = [name for name in ("train", "validation", "test") if f"{name}_loss" in row]
        scores = "   ".join(f"{name} {row[f'{name}_loss']:.4f} {row[f'{name}_accuracy']:7.2%}" for name in sets)
        self.console.print(f"epoch {row['epoch']:>{len(str(self.epochs))}}/{self.epochs}   {scores}   "
                           f"{row['images_per_second']:,.0f} images/s   {row['seconds']:.1f} s")
