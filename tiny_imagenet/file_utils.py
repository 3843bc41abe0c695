"""Files: reading what anyone may have written, atomic writes, locks; and what happens on the terminal meanwhile."""

import fcntl
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import contextmanager, suppress
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
    except OSError as error:
        remove(temporary)
        kept = "the previous version is kept" if path.parent.exists() else f"{path.parent} is gone"
        raise UserError(f"cannot write {path} ({error.strerror or error}); {kept}; {hint_for(error)}") from None
    except BaseException:
        remove(temporary)
        raise


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
    """Holds back what C++ code writes to file descriptor 2; if an exception is raised, it is shown after all."""
    with tempfile.TemporaryFile() as held:
        saved = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


@contextmanager
def progress_bar(total: int, description: str):
    """A bar over `total` images that reaches the terminal even inside `quiet_stderr`, if it was opened before."""
    stream = sys.stderr
    with suppress(OSError, AttributeError, ValueError):  # notebooks and tests have other streams
        if sys.stderr.fileno() == 2:
            stream = os.fdopen(os.dup(2), "w")
    try:
        with tqdm(total=total, desc=description, unit=" images", unit_scale=True, file=stream, disable=None) as bar:
            yield bar
    finally:
        if stream is not sys.stderr:
            stream.close()
