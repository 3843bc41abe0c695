"""What happens on the terminal: progress bars, output that may be lost, and C++ code that is silenced."""

import io
import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress

from tqdm import tqdm


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

    def __init__(self, total: int, description: str, unit: str, stream) -> None:
        self._line, self._stream = f"{description}: {{:,}} of {total:,} {unit}", stream
        self._done, self._printed = 0, time.monotonic()

    def update(self, count: int = 1) -> None:
        """Counts `count` more; prints a line if one is due."""
        self._done += count
        if (now := time.monotonic()) >= self._printed + 60:
            print(self._line.format(self._done), file=self._stream)
            self._printed = now


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
