"""Small helpers around files: names and errors in one line, writing whole or not at all, locks, progress."""

from startup import UserError

import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

ADVICE = {  # on the operating system's errors
    errno.ENOSPC: "free some space on this disk",
    errno.EDQUOT: "free some space in your quota",
    errno.EFBIG: "allow larger files (ulimit -f unlimited)",
} | dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make this place writable, or choose another")


def shown(name: str | Path) -> str:
    """A name as an error may print it: one line, whatever bytes the file system holds."""
    return str(name) if str(name).isprintable() else ascii(str(name))


def is_utf8(name: str) -> bool:
    """Tells whether a name of the file system is UTF-8; Python holds other bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def advice_on(error: OSError) -> str:
    """What to do about an error of the operating system."""
    return f"{ADVICE.get(error.errno, 'check this file or folder')}, then try again"


@contextmanager
def os_errors_named(root: Path):
    """Turns the operating system's errors into one line that names the file and what to do."""
    full = {number: f"{ADVICE[number]} (Tiny ImageNet packed takes 1.3 GB)" for number in (errno.ENOSPC, errno.EDQUOT)}
    refused = "make it readable, and the dataset's folder writable, where the packed pictures are kept"
    advice = ADVICE | full | dict.fromkeys((errno.EACCES, errno.EPERM), refused)
    advice |= {
        errno.EROFS: "copy the dataset to a writable place, for the packed pictures are kept in its folder",
    }
    try:
        yield
    except OSError as error:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(root)
        what = f"{shown(name)}: {error.strerror or error}"
        raise UserError(f"{what}; {advice.get(error.errno, 'check this file or folder')}") from error


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a new file or folder beside `path`, forces it to the disk and gives it its name.

    Raises:
        UserError: it cannot be written (disk full, no permission); what was at `path` is still there.
    """
    temporary = path.with_name(f".writing-{path.name}")  # keeps the ending, by which Keras knows its format
    try:
        remove(temporary)
        write(temporary)
        for file in (*temporary.glob("*"), temporary):  # a folder's files, then itself
            force_to_disk(file)
        temporary.replace(path)
        force_to_disk(path.parent)
    except OSError as error:
        remove(temporary)
        kept = "what was saved before is kept" if path.parent.exists() else f"{path.parent} is gone"
        raise UserError(f"cannot write {path} ({error.strerror or error}); {kept}; {advice_on(error)}") from None
    except BaseException:
        remove(temporary)
        raise


def force_to_disk(path: Path) -> None:
    """Returns when a file's contents, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file or a folder with all that is in it; there may be none."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, refusal: str | None = None):
    """Holds a lock on a folder, so that two processes do not write into it at once; it ends with the process.

    Raises:
        UserError: another process holds it, and there is a `refusal` to say so; else it is waited for.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if refusal:
                raise UserError(refusal) from None
            print(f"waiting for another process that is writing into {shown(folder)}", file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass  # a network disk without locks
        yield
    finally:
        os.close(descriptor)


@contextmanager
def progress(total: int, what: str):
    """A progress bar that still reaches the terminal while file descriptor 2 is held back."""
    stream = sys.stderr
    with suppress(OSError, AttributeError, ValueError):  # notebooks and tests have other streams
        if sys.stderr.fileno() == 2:
            stream = os.fdopen(os.dup(2), "w")
    try:
        with tqdm(total=total, desc=what, unit=" pictures", unit_scale=True, file=stream, disable=None) as bar:
            yield bar
    finally:
        if stream is not sys.stderr:
            stream.close()
