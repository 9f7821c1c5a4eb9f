"""The folder of a run: whole from its first instant on, and locked while a run lives in it."""
import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

from minires.errors import UserError
from minires.files import UNFINISHED, give_usual_rights, unfinished

LOCK = ".lock"
PARTS = (LOCK, "config.toml", "state.safetensors", "metrics.jsonl")  # what a folder in the making may hold
BEGUN = "begun-"  # after UNFINISHED, how the name of a folder in the making begins
ABANDONED = 60  # seconds after which a folder in the making that nobody holds is a leftover


class FolderLock:
    """Held by the process that trains into `folder`; the system lets go of it when the process dies, however it dies.

    UserError when another holds it, and when the folder cannot be written.
    """

    def __init__(self, folder):
        self.path = Path(folder) / LOCK
        while True:
            try:
                self._file = self.path.open("a+")
            except OSError as error:
                raise UserError(f"the run's folder {folder} cannot be written ({error.strerror}): choose another, or make "
                                "it writable") from error
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.seek(0)
                holder = self._file.read(100).strip() or "unknown"
                self._file.close()
                raise UserError(f"another run is alive in {folder} (process {holder}): wait for its end, or choose another "
                                "folder") from None
            except OSError:
                pass  # a mount that knows no locks
            # The holder before may have removed the file after it was opened here: then it is nobody's.
            with contextlib.suppress(OSError):
                if os.fstat(self._file.fileno()).st_ino == self.path.stat().st_ino:
                    break
            self._file.close()
        with contextlib.suppress(OSError):
            self._file.truncate(0)
            self._file.write(str(os.getpid()))
            self._file.flush()

    def release(self):
        """Let others in."""
        if not self._file.closed:
            with contextlib.suppress(OSError):
                self.path.unlink()
            self._file.close()

    def __del__(self):
        if hasattr(self, "_file"):
            self.release()


def make_folder(path, fill):
    """Make the folder of a new run and return its FolderLock: it is whole from its first instant.

    fill(folder) writes what it must hold; that is done under another name, which is then changed. UserError when `path` is
    there already and not an empty folder, or cannot be made.
    """
    path = Path(path)
    try:
        if path.exists() and not (path.is_dir() and _is_empty(path)):
            raise _taken(path)
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the run's folder {path} cannot be made ({error.strerror}): choose another") from error
    _remove_abandoned(path.parent)
    try:
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{UNFINISHED}{BEGUN}"))
    except OSError as error:
        if not path.is_dir():
            raise UserError(f"the run's folder {path} cannot be made ({error.strerror}): choose another") from error
        return _fill_in_place(path, fill)
    lock = None
    try:
        lock = FolderLock(folder)
        fill(folder)
        give_usual_rights(folder, 0o777)
        folder.rename(path)  # over an empty folder, too, but over no other
    except OSError as error:
        _drop(lock, folder)
        if isinstance(error, UserError):
            raise
        if not path.is_dir():
            raise UserError(f"the run's folder {path} cannot be made ({error.strerror}): choose another") from error
        if not _is_empty(path):
            raise _taken(path) from None
        return _fill_in_place(path, fill)  # a mount point, say, which cannot be replaced
    except BaseException:
        _drop(lock, folder)
        raise
    lock.path = path / LOCK
    return lock


def open_folder(path, names):
    """The FolderLock of a run that is there; what killed saves of the files `names` left is removed."""
    if not Path(path).is_dir():
        raise UserError(f"{path} is not a folder: expected that of a run")
    lock = FolderLock(path)
    for name in names:
        for leftover in unfinished(path, f"{name}."):
            with contextlib.suppress(OSError):
                leftover.unlink()
    return lock


def _is_empty(path):
    return not any(entry.name != LOCK for entry in path.iterdir())


def _taken(path):
    return UserError(f"{path} is there already: choose another --out, or continue the run in it with --resume {path}")


def _fill_in_place(path, fill):
    lock = FolderLock(path)
    try:
        if not _is_empty(path):
            raise _taken(path)
        fill(path)
    except BaseException:
        lock.release()
        raise
    return lock


def _drop(lock, folder):
    if lock is not None:
        lock.release()
    shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent):
    """Remove what runs left that were killed while they made their folder: nothing that holds anything else."""
    for folder in unfinished(parent, BEGUN):
        with contextlib.suppress(OSError, UserError):
            old = time.time() - folder.stat().st_mtime > ABANDONED
            if old and all(part.name in PARTS or part.name.startswith(UNFINISHED) for part in folder.iterdir()):
                _drop(FolderLock(folder), folder)
