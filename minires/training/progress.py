"""What a training run tells its user: a bar with rate and time left on a terminal, a line an epoch everywhere."""
import time


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
                       console=self.console, disable=not self.console.is_terminal, transient=True)
        self.task = self.bar.add_task("train", total=epochs * steps, completed=done_epochs * steps, epochs=epochs,
                                      epoch=done_epochs + 1, status="first step")

    def __enter__(self):
        if self.show:
            self.bar.start()
        return self

    def __exit__(self, *error):
        if self.show:
            self.bar.stop()

    def begin_epoch(self, epoch):
        """Epoch number `epoch`, counted from 1, begins."""
        self.began = time.perf_counter()
        if self.show:
            self.bar.update(self.task, epoch=epoch)

    def step(self, score):
        """A step is done; score: the epoch's so far."""
        if self.show and self.console.is_terminal:
            self.bar.update(self.task, advance=1)
            if score.images:  # a device's first batches are still waiting to be read
                rate = score.images / (time.perf_counter() - self.began)
                status = f"loss {score.loss:.3f}   accuracy {score.accuracy:.1%}   {rate:,.0f} images/s"
                self.bar.update(self.task, status=status)

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
