"""Files: atomic writes, locks, JSON; and what happens on the terminal meanwhile."""

import fcntl
import io
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tiny_imagenet.errors import UserError, hint_for, printable


@contextmanager
def disk_errors(path: Path):
    """Turns an OSError into a UserError that names its file, or `path` if it has none."""
    try:
        yield
    except OSError as error:
        name = error.filename if isinstance(error.filename, str | bytes | os.PathLike) else path
        raise UserError(f"{printable(os.fsdecode(name))}: {error.strerror or error}; {hint_for(error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path} ({getattr(error, 'strerror', None) or error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object; train.py did not write it")
    return content


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary path next to `path`, forces what it wrote to the disk and renames it to `path`.

    Raises:
        UserError: it cannot be written (disk full, no permission); what was at `path` is still there.
    """
    temporary = path.with_name(f".writing-{path.name}")  # keeps the suffix, by which Keras knows the format
    try:
        remove(temporary)
        write(temporary)
        for file in (*temporary.glob("*"), temporary):  # a folder's files, then the folder
            fsync(file)
        temporary.replace(path)
        fsync(path.parent)
    except BaseException as error:
        remove(temporary)
        if not isinstance(error, OSError):
            raise
        kept = "the previous version is kept" if path.parent.exists() else f"{path.parent} is gone"
        raise UserError(f"cannot write {path} ({error.strerror or error}); {kept}; {hint_for(error)}") from None


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def fsync(path: Path) -> None:
    """Returns when a file's contents, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file, or a folder with everything in it, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but hidden files."""
    return all(path.name.startswith(".") for path in folder.iterdir())


@contextmanager
def temporary_folder(parent: Path, name: str):
    """A new folder NAME-<16 random digits> in `parent`, which must be locked; it is removed at the end.

    Those that killed processes left are removed first. Nothing else has such a name.
    """
    for path in parent.iterdir():
        if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{16}}", path.name) and not path.is_symlink():
            remove(path)
    folder = parent / f"{name}-{secrets.token_hex(8)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        remove(folder)


@contextmanager
def folder_lock(folder: Path, refusal: str | None = None):
    """Holds a lock on a folder, so that two processes do not write into it at once; it ends with the process.

    Raises:
        UserError: another process holds it and a `refusal` is given; without one, this waits.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if refusal:
                raise UserError(refusal) from None
            print(f"waiting for another process that is writing into {printable(folder)}", file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass  # a network disk without locks
        yield
    finally:
        os.close(descriptor)


@contextmanager
def quiet_stderr():
    """Holds back what C++ code writes to file descriptor 2; it is shown if the block raises or the process dies."""
    # A process of its own outlives an abort; Ctrl-C on the terminal ends it too, so that nothing is shown
    holder = subprocess.Popen(["sh", "-c", 'held=$(cat); printf "%s" "$held" >&2'], stdin=subprocess.PIPE)
    saved = os.dup(2)
    os.dup2(holder.stdin.fileno(), 2)
    try:
        yield
        holder.kill()
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        holder.communicate()


class LossyOutput(io.FileIO):
    """A descriptor to which writing never fails: without a terminal or a reader, what is written is lost."""

    def write(self, data) -> int:
        """Writes what can be written."""
        with suppress(OSError):
            super().write(data)
        return len(data)


def lossy_stream(descriptor: int, closefd: bool = False) -> io.TextIOWrapper:
    """A text stream to a descriptor that may be lost while the program runs."""
    output = LossyOutput(descriptor, "w", closefd=closefd)
    return io.TextIOWrapper(output, sys.stderr.encoding, errors="backslashreplace", line_buffering=True)


class ProgressLines:
    """In place of a bar, for log files and notebooks: one line a minute."""

    INTERVAL = 60  # seconds

    def __init__(self, total: int, description: str, unit: str, stream) -> None:
        self._line, self._stream = f"{description}: {{:,}} of {total:,} {unit}", stream
        self._done, self._due = 0, time.monotonic() + self.INTERVAL

    def update(self, count: int = 1) -> None:
        """Counts `count` more; prints a line if one is due."""
        self._done += count
        if time.monotonic() >= self._due:
            print(self._line.format(self._done), file=self._stream)
            self._due = time.monotonic() + self.INTERVAL


@contextmanager
def progress_bar(total: int, description: str, unit: str = "images"):
    """A bar, or lines without a terminal, that is shown even inside `quiet_stderr` if it was opened before."""
    with ExitStack() as stack:
        stream = sys.stderr
        with suppress(OSError, AttributeError, ValueError):  # notebooks and tests have other streams
            if sys.stderr.fileno() == 2:
                stream = stack.enter_context(lossy_stream(os.dup(2), closefd=True))
        if stream.isatty():
            options = {"unit": f" {unit}", "unit_scale": True, "dynamic_ncols": True, "leave": None}
            yield stack.enter_context(tqdm(total=total, desc=description, file=stream, **options))
        else:
            yield ProgressLines(total, description, unit, stream)
