"""What all scripts share: errors in one line, exit codes, and commands as a user would type them."""

import functools
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from tiny_imagenet import BACKENDS
from tiny_imagenet.errors import UserError, hint_for, printable
from tiny_imagenet.terminal import lossy_stream

_interrupts: list[int] = []  # Ctrl-C since the command began


def _interrupt(number: int, _frame) -> None:
    _interrupts.append(number)
    raise KeyboardInterrupt


def interrupted() -> bool:
    """Whether Ctrl-C was pressed since the command began, even if a library swallowed the exception."""
    return bool(_interrupts)


def command(main: Callable[[], int | None]) -> Callable[[], None]:
    """Decorates a script's main: an error that the user can fix ends it with one line on stderr and exit code 1."""

    @functools.wraps(main)
    def run() -> None:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, _interrupt)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # stderr is so by itself
        ignore_write_errors("stderr")
        try:
            code = main() or 0
            sys.stdout.flush()  # here, where an error still becomes one line
            sys.exit(code)
        except SystemExit:
            raise
        except BaseException as error:
            sys.exit(exit_status(error))

    return run


def ignore_write_errors(name: str) -> None:
    """Lets "stdout" or "stderr" lose what is printed once its terminal, or the reader of its pipe, is gone."""
    with suppress(OSError, AttributeError, ValueError):  # notebooks and tests have other streams
        setattr(sys, name, lossy_stream(getattr(sys, name).fileno()))


def exit_status(error: BaseException) -> str | int:
    """What a command exits with after this error: a line, or a code.

    Raises:
        The error itself if it is a bug of ours, for its traceback.
    """
    if isinstance(error, UserError):
        return f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return 130  # 128 + SIGINT, as a shell reports it
    if isinstance(error, BrokenPipeError):  # `... | head` closed our output: not worth a line
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError):
        return f"error: {printable(error.filename or 'standard output')}: {error.strerror}; {hint_for(error)}"
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "ResourceExhausted" in text:
        return "error: out of memory; close other programs or, in training, lower --batch-size"
    raise error


def shell_command(*words: str, backend: str | None = None) -> str:
    """A command as it is typed, quoted, after KERAS_BACKEND=... where the backend is not the default.

    Args:
        words: of the command, unquoted.
        backend: Keras's; None: that of this process.
    """
    backend = backend or os.environ["KERAS_BACKEND"]
    return f"KERAS_BACKEND={backend} " * (backend != BACKENDS[0]) + shlex.join(words)
