"""Files: reading what anyone may have written, atomic writes, locks; and what happens on the terminal meanwhile."""

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
import zipfile
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from tqdm import tqdm

from tiny_imagenet.errors import UserError, hint_for, printable

MAX_BYTES = 2**28  # of a text file; the curves of a long run have a tenth of that
NAMES = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", tuple: "a list"}
MAX_EXPANSION = 10  # of a zip file of weights, which are random numbers: 1.1 is usual


@contextmanager
def disk_errors(path: Path):
    """Turns an OSError into a UserError that names its file, or `path` if it has none."""
    try:
        yield
    except OSError as error:
        name = error.filename if isinstance(error.filename, str | bytes | os.PathLike) else path
        raise UserError(f"{printable(os.fsdecode(name))}: {error.strerror or error}; {hint_for(error)}") from error


def check_regular(path: Path) -> None:
    """Raises UserError for a pipe or a device, which may never end, and for a folder; there may be nothing."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file; remove it, or restore the original file")


def check_archive(path: Path) -> None:
    """Raises an exception if `path` is no zip file, or one that takes much more memory than space on the disk."""
    check_regular(path)
    with zipfile.ZipFile(path) as archive:
        num_bytes = sum(member.file_size for member in archive.infolist())
    if num_bytes > MAX_EXPANSION * path.stat().st_size + 2**20:
        raise ValueError(f"it expands to {num_bytes:,} bytes")


def read_file(path: Path) -> bytes:
    """The contents of a file; raises UserError if it cannot be read, is no regular file, or is far too large."""
    check_regular(path)
    with disk_errors(path):
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES >> 20} MB; restore the original file")
        return path.read_bytes()


def parse_json(text: bytes, kind: Any, path: Path) -> Any:
    """The JSON text of the file `path`, as `kind` (see `convert`); raises UserError if it is something else."""
    try:
        return convert(kind, json.loads(text), "it")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}; restore the original file") from None


def read_json(path: Path, kind: Any = dict) -> Any:
    """What a JSON file holds, as `kind`; raises UserError if it cannot be read or is something else."""
    return parse_json(read_file(path), kind, path)


def convert(kind: Any, value: Any, name: str) -> Any:
    """Checks a value of JSON, and converts it to what `kind` says.

    Args:
        kind: str, int, float, bool, Literal, `X | None`, tuple, list, dict, or a dataclass of these. A dataclass takes
            its defaults for what is missing, and ignores what it does not know.
        value: as `json.loads` returns it.
        name: of the value, for the message.

    Raises:
        ValueError: the value is of another kind.
    """
    origin, kinds = get_origin(kind) or kind, get_args(kind)
    if origin is UnionType:
        return None if value is None else convert(kinds[0], value, name)
    if is_dataclass(kind) and isinstance(value, dict):
        for item in fields(kind):
            if item.name not in value and item.default is MISSING and item.default_factory is MISSING:
                raise ValueError(f"{name} has no {item.name!r}")
        known = [item for item in fields(kind) if item.name in value]
        return kind(**{item.name: convert(item.type, value[item.name], item.name) for item in known})
    if origin in (tuple, list) and isinstance(value, list | tuple):
        every = kinds if origin is tuple and kinds[-1] is not ... else kinds[:1] * len(value)
        if len(every) != len(value):
            raise ValueError(f"{name} has {len(value)} parts; it must have {len(every)}")
        return origin(convert(*both, name) for both in zip(every, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {printable(key): convert(kinds[1], part, key) for key, part in value.items()} if kinds else value
    if origin is Literal and value in kinds or kind is bool and type(value) is bool:
        return value
    if kind is int and type(value) is int and abs(value) < 2**63:
        return value
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:  # not NaN
        return float(value)
    if kind is str and isinstance(value, str):
        return printable(value)
    expected = f"one of: {', '.join(kinds)}" if origin is Literal else NAMES.get(origin, "an object")
    raise ValueError(f"{name} is {repr(value)[:50]}; it must be {expected}")


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
