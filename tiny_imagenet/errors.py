"""Errors that a user can fix, each one line: the file or setting, what is wrong, what to do."""

import errno
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


class UserError(Exception):
    """Something the user can fix. The message is one line that names the file or setting and says what to do."""

    def __str__(self) -> str:
        """The message; characters that move the cursor or begin a line, which a file may bring, are escaped."""
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in super().__str__())


HINTS = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some of your disk quota",
    errno.EFBIG: "allow larger files (ulimit -f unlimited)",
    errno.EMFILE: "allow more open files (ulimit -n 4096)",
} | dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "check its permissions, or use another folder")


def hint_for(error: OSError) -> str:
    """What to do about an error of the operating system."""
    return f"{HINTS.get(error.errno, 'check this file or folder')}, then try again"


def printable(name: str | Path) -> str:
    """A name as a message may print it: on one line, whatever bytes the file system holds."""
    return str(name) if str(name).isprintable() else ascii(str(name))


def first_few(items: Sequence[str], limit: int = 3) -> str:
    """The first items, and how many more there are."""
    return ", ".join(map(printable, items[:limit])) + f" and {len(items) - limit} more" * (len(items) > limit)


def warn(notes: Iterable[str]) -> None:
    """Prints each note as a warning."""
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
