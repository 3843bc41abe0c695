"""The real train.py as a contender: its speed with all logging on, and the memory that it does not share."""

from startup import ROOT

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

STEPS = 2  # between two points of the curves
WARM, COUNTED = 1, 2  # points


def resident(pid: int) -> float | None:
    """Anonymous resident memory of a process in MB (mapped files are left out: the system can drop them)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), None)


@contextmanager
def training(*settings: str) -> Iterator[tuple[subprocess.Popen, Path]]:
    """A train.py that runs while the block does, and the folder of its runs; then it is killed and all is removed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), *settings, "--runs-dir", folder]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process, Path(folder)
            finally:
                process.kill()
                process.wait()


def vgg_16_fast(data_dir: Path) -> Callable[[], float]:
    """Pictures a second by train.py's own log, after the first points."""
    settings = ("--recipe", "vgg_16_fast", "--data-dir", str(data_dir), "--summary-interval", str(STEPS))

    def timed_round() -> float:
        with training(*settings) as (process, folder):
            points = []
            while len(points) < WARM + COUNTED:
                if process.poll() is not None:
                    raise RuntimeError(process.stderr.read())
                time.sleep(0.5)
                text = "".join(path.read_text() for path in folder.glob("*/*/metrics.jsonl"))
                points = [json.loads(line) for line in text.splitlines()]
        return COUNTED / sum(1 / point["images_per_second"] for point in points[WARM : WARM + COUNTED])

    return timed_round


def single_layer_memory(data_dir: Path) -> Callable[[], float]:
    """The largest anonymous resident memory, in GB, of some seconds of training single_layer_nn."""

    def timed_round() -> float:
        with training("--recipe", "single_layer_nn", "--data-dir", str(data_dir)) as (process, folder):
            while not any(folder.glob("*/*/tensorboard/train/*")):
                time.sleep(0.1)
            samples, end = [], time.monotonic() + 40  # an evaluation and a save among them
            while time.monotonic() < end and process.poll() is None:
                samples.append(resident(process.pid) or 0.0)
                time.sleep(0.1)
        return max(samples) / 1000

    return timed_round
