"""What a run leaves is whole and can be gone on with, whatever ends it: signals, kills, full disks, other runs."""
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_training import assert_same_tensors, coloured, loader, make_trainer, without_times

import minires
from minires.backends import use_backend
from minires.errors import UserError
from minires.files import load_tensors, save_tensors, write_atomically
from minires.training import Trainer
from minires.training.folder import LOCK, FolderLock, make_folder
from minires.training.stopping import Stopped


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing to compile, no picture at the end, and no signal ignored, as in a shell's background they may be."""
    monkeypatch.setattr("minires.plots.draw_curves", lambda *_: None)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    with use_backend("reference"):
        yield
    for number, handler in before.items():
        signal.signal(number, handler)


def stop_at(trainer, step, number=signal.SIGTERM):
    """Have the trainer's optimiser send the process a signal within its update number `step`, counted from 1."""
    real = trainer.optimiser.step

    def update():
        real()
        if trainer.optimiser.steps == step:
            os.kill(os.getpid(), number)

    trainer.optimiser.step = update
    return trainer


# --- signals and the position within an epoch ---


def test_a_run_stopped_at_any_step_goes_on_to_the_same_bits(tmp_path):
    options = {"dropout": 0.3, "epochs": 2, "validation": loader(coloured(60, 3))}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.fit(2)
    for step in (1, 3, 5, 6, 7, 11, 12):  # 6 in an epoch
        folder = tmp_path / str(step)
        number = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)[step % 3]
        with pytest.raises(Stopped) as stop:
            stop_at(make_trainer(folder, **options), step, number).fit(2)
        assert stop.value.number == number
        second = make_trainer(folder, **options).restore()
        assert (second.epoch, second.step) == (((step - 1) // 6, (step - 1) % 6 + 1))
        second.fit(2)
        assert without_times(second.rows) == without_times(whole.rows)
        for name in ("last.safetensors", "best.safetensors"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (step, name)
        ends = [load_tensors(tmp_path / name / "state.safetensors") for name in (str(step), "whole")]
        assert_same_tensors(*(tensors for tensors, _ in ends))
        assert ends[0][1]["random"] == ends[1][1]["random"]


def test_one_generator_for_everything_resumes_too(tmp_path):
    def make(out):
        trainer = make_trainer(out, dropout=0.3)
        shared = trainer.train.rng = trainer.model[4].rng = np.random.default_rng(7)
        assert shared is trainer.model[4].rng
        return trainer

    make(tmp_path / "whole").fit(1)
    with pytest.raises(Stopped):
        stop_at(make(tmp_path / "parts"), 3).fit(1)
    make(tmp_path / "parts").restore().fit(1)
    a, b = (load_tensors(tmp_path / name / "last.safetensors")[0] for name in ("whole", "parts"))
    assert_same_tensors(a, b)


def test_a_loader_of_ones_own_is_gone_through_again(tmp_path):
    class Mine:
        def __init__(self):
            self.rng, self.data = np.random.default_rng(3), loader(coloured(90, 1))

        def __len__(self):
            return 6

        def __iter__(self):
            for x, target in self.data:
                yield x + self.rng.normal(0, 0.1, x.shape).astype(np.float32), target

    def make(out):
        trainer = make_trainer(out)
        trainer.train = Mine()
        return trainer

    make(tmp_path / "whole").fit(1)
    with pytest.raises(Stopped):
        stop_at(make(tmp_path / "parts"), 3).fit(1)
    make(tmp_path / "parts").restore().fit(1)
    a, b = (load_tensors(tmp_path / name / "last.safetensors")[0] for name in ("whole", "parts"))
    assert_same_tensors(a, b)


def test_the_same_trainer_goes_on_after_a_stop(tmp_path):
    make_trainer(tmp_path / "whole").fit(2)
    trainer = stop_at(make_trainer(tmp_path / "parts"), 4)
    with pytest.raises(Stopped):
        trainer.fit(2)
    trainer.fit(2)
    a, b = (load_tensors(tmp_path / name / "last.safetensors")[0] for name in ("whole", "parts"))
    assert_same_tensors(a, b)


def test_a_second_signal_stops_at_once_and_handlers_are_put_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    trainer = make_trainer(tmp_path)
    real = trainer.optimiser.step

    def update():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        real()

    trainer.optimiser.step = update
    with pytest.raises(KeyboardInterrupt) as stop:
        trainer.fit(1)
    assert not isinstance(stop.value, Stopped) and trainer.optimiser.steps == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_what_nohup_ignores_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert len(stop_at(make_trainer(tmp_path), 2, signal.SIGHUP).fit(1)) == 1
    finally:
        signal.signal(signal.SIGHUP, before)


def test_within_an_epoch_the_state_is_saved_every_so_often(tmp_path, monkeypatch):
    steps = []
    from minires.training import trainer as module

    real = module.save_state
    monkeypatch.setattr(module, "save_state", lambda path, tensors, at, *rest: (steps.append((at.epoch, at.step)),
                                                                               real(path, tensors, at, *rest)))
    clock = iter(range(0, 10_000, 60))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))  # a step takes a minute
    make_trainer(tmp_path / "a", save_every="2m").fit(1)
    assert steps[0] == (0, 0) and steps[-1] == (1, 0) and {(0, 2), (0, 4)} <= set(steps)
    steps.clear()
    make_trainer(tmp_path / "b", save_every=0).fit(1)
    assert steps == [(0, 0), (1, 0)]
    for wrong in ("5 minutes", "-3s", -1, True, None):
        with pytest.raises(UserError, match="save_every"):
            make_trainer(tmp_path / "c", save_every=wrong)


# --- the folder ---


def test_a_run_is_locked_while_it_lives(tmp_path):
    trainer = make_trainer(tmp_path)
    real = trainer.optimiser.step

    def update():
        assert (tmp_path / LOCK).read_text() == str(os.getpid())
        with pytest.raises(UserError, match=f"another run is alive in .*process {os.getpid()}"):
            make_trainer(tmp_path).restore()
        real()

    trainer.optimiser.step = update
    trainer.fit(1)
    assert not (tmp_path / LOCK).exists()
    first = make_trainer(tmp_path).restore()
    with pytest.raises(UserError, match="another run is alive"):
        make_trainer(tmp_path).restore()
    first.fit(2)
    make_trainer(tmp_path).restore()


def test_a_lock_that_was_removed_between_opening_and_locking_is_not_held_twice(tmp_path, monkeypatch):
    first = FolderLock(tmp_path)
    real, calls = Path.open, []

    def opened(self, *arguments, **options):
        file = real(self, *arguments, **options)
        if self.name == LOCK and not calls:
            calls.append(first.release())  # the holder ends just now
        return file

    monkeypatch.setattr(Path, "open", opened)
    second = FolderLock(tmp_path)
    assert (tmp_path / LOCK).exists()
    with pytest.raises(UserError, match="another run is alive"):
        FolderLock(tmp_path)
    second.release()


def test_only_one_of_two_new_runs_gets_a_folder(tmp_path):
    """Both begin while the folder is not there; the second to finish is refused and leaves nothing."""
    def fill(folder):
        (folder / "a").write_text("1")

    def fill_late(folder):
        fill(folder)
        make_folder(tmp_path / "run", fill).release()

    with pytest.raises(UserError, match="is there already"):
        make_folder(tmp_path / "run", fill_late)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["a"]


def test_leftovers_of_kills_are_removed_and_other_files_are_not(tmp_path):
    trainer = make_trainer(tmp_path / "runs" / "one")
    trainer.fit(1)
    run = tmp_path / "runs" / "one"
    (run / ".minires-state.safetensors.abc").write_bytes(b"half")
    (run / ".minires-picture.png.abc").write_bytes(b"somebody else's")
    make_trainer(run).restore()
    assert {path.name for path in run.iterdir() if path.name.startswith(".minires")} == {".minires-picture.png.abc"}
    old, new, notes, full = (tmp_path / "runs" / f".minires-{name}" for name in ("begun-a", "begun-b", "notes", "begun-c"))
    for folder in (old, new, notes, full):
        folder.mkdir()
        (folder / "state.safetensors").touch()
    (full / "thesis.tex").touch()
    for folder in (old, notes, full):
        os.utime(folder, (1e9, 1e9))
    make_trainer(tmp_path / "runs" / "two").fit(1)
    assert not old.exists() and new.exists(), "what a killed run left, and what may be in the making"
    assert notes.exists() and full.exists(), "what is somebody else's"


# --- disks ---


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ENOENT])
def test_a_save_that_fails_is_one_sentence_and_the_last_save_stands(tmp_path, monkeypatch, code):
    whole = make_trainer(tmp_path / "whole")
    whole.fit(2)
    trainer = make_trainer(tmp_path / "run")
    trainer.fit(1)
    files = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}

    def fail(_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(UserError, match=r"cannot be written .*go on with minires train --resume"):
            trainer.fit(2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == files
    make_trainer(tmp_path / "run").restore().fit(2)
    assert_same_tensors(*(load_tensors(tmp_path / name / "last.safetensors")[0] for name in ("run", "whole")))


def test_a_folder_that_vanishes_is_one_sentence(tmp_path):
    import shutil

    trainer = make_trainer(tmp_path / "run")
    real = trainer.optimiser.step

    def update():
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        real()

    trainer.optimiser.step = update
    with pytest.raises(UserError, match="cannot be written"):
        trainer.fit(1)


def test_a_mount_that_refuses_chmod_is_written_all_the_same(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    write_atomically(tmp_path / "x", b"1")
    assert (tmp_path / "x").read_bytes() == b"1" and len(list(tmp_path.iterdir())) == 1
    make_trainer(tmp_path / "run").fit(1)


def test_a_full_disk_from_the_command_line(tmp_path):
    """The kernel refuses files above some kilobytes: the state before step 1 cannot be written."""
    rng = np.random.default_rng(0)
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "data" / name / "1.png")
    program = ("from minires.backends import use_backend; from minires.cli import main\n"
               "with use_backend('reference'): main(['train', '--dataset', 'data', '--epochs', '1', '--out', 'r'])")
    environment = {**os.environ, "PYTHONPATH": str(Path(minires.__file__).parents[1])}
    result = subprocess.run(["bash", "-c", 'ulimit -f 64; exec "$0" -c "$1"', sys.executable, program], cwd=tmp_path,
                            check=False, capture_output=True, text=True, env=environment)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert "state.safetensors cannot be written (File too large)" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


# --- checksums, and what is not finite ---


def test_a_changed_byte_is_noticed(tmp_path):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": np.arange(100.0), "b": np.ones((2, 3), np.float32)}, {"epoch": 1})
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.choice(len(whole), 200, replace=False):
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        try:
            tensors, about = load_tensors(path)
        except UserError:
            continue
        # JSON has spellings that mean the same: then nothing may differ.
        assert about in ({"epoch": 1}, {}) and tensors.keys() == {"a", "b"}
        np.testing.assert_array_equal(tensors["a"], np.arange(100.0), strict=True)
        np.testing.assert_array_equal(tensors["b"], np.ones((2, 3), np.float32), strict=True)


def test_resuming_on_other_data_is_refused_and_another_machine_is_told(tmp_path):
    make_trainer(tmp_path).fit(1)
    other = make_trainer(tmp_path)
    other.train.dataset.images[3, 4, 5, 0] ^= 1
    with pytest.raises(UserError, match=r"the train data is not what the run began with .90 images"):
        other.restore()
    other = make_trainer(tmp_path)
    other.test = loader(coloured(59, 2))
    with pytest.raises(UserError, match="the test data is not what"):
        other.restore()
    tensors, about = load_tensors(tmp_path / "state.safetensors")
    assert make_trainer(tmp_path).restore().notes == []
    about["fingerprint"]["environment"]["numpy"] = "1.0"
    save_tensors(tmp_path / "state.safetensors", tensors, about)
    trainer = make_trainer(tmp_path).restore()
    assert len(trainer.notes) == 1 and "environment" in trainer.notes[0] and "numpy 1.0 then" in trainer.notes[0]
    trainer.fit(2)
    other = make_trainer(tmp_path)
    other.optimiser.weight_decay = 0.1
    assert "optimiser.weight_decay 0.0005 then, 0.1 now" in other.restore().notes[0]


def test_a_state_with_a_foreign_header_changes_nothing(tmp_path):
    make_trainer(tmp_path).fit(1)
    tensors, about = load_tensors(tmp_path / "state.safetensors")
    for name, wrong in (("random", None), ("random", {}), ("random", {"loader": {"bit_generator": "MT19937"}}),
                        ("epoch", "1"), ("epoch", True), ("step", -1), ("score", None),
                        ("seconds", "nan"), ("began", []), ("lr", [1])):
        save_tensors(tmp_path / "state.safetensors", tensors, about | {name: wrong})
        trainer = make_trainer(tmp_path)
        before = trainer.model.state_dict()
        with pytest.raises(UserError, match=r"no state of this training run|has 1 epochs"):
            trainer.restore()
        assert_same_tensors(before, trainer.model.state_dict())


def test_a_trainer_refuses_what_is_no_model(tmp_path):
    with pytest.raises(UserError, match="model must be a Layer"):
        Trainer("resnet20", None, [], [])
