"""Files: atomic writes, temporary folders and locks."""

import fcntl
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiny_imagenet.errors import UserError, hint_for, printable


@contextmanager
def disk_errors(path: Path):
    """Turns an OSError into a UserError that names its file, or `path` if it has none."""
    try:
        yield
    except OSError as error:
        name = error.filename if isinstance(error.filename, str | bytes | os.PathLike) else path
        raise UserError(f"{printable(os.fsdecode(name))}: {error.strerror or error}; {hint_for(error)}") from error


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
