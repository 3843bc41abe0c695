"""Reads files that anyone may have written: only regular ones, of a bearable size, with values of the right types."""

import json
import sys
import zipfile
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from tiny_imagenet.errors import UserError, printable
from tiny_imagenet.file_utils import disk_errors

MAX_BYTES = 2**28  # of a text file; the curves of a long run have a tenth of that
NAMES = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", tuple: "a list"}
MAX_EXPANSION = 10  # of a zip file of weights, which are random numbers: 1.1 is usual


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
