"""The real train.py as a contender: its speed with its pipeline and curves, what an evaluation costs, its memory."""

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
WARM, COUNTED = 1, 3  # points


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
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, str(ROOT / "train.py"), *settings, "--runs-dir", folder]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors) as process:
            try:
                yield process, Path(folder)
                if process.poll():
                    errors.seek(0)
                    raise RuntimeError(f"train.py ended with {process.returncode}: {errors.read().strip()[-500:]}")
            finally:
                process.kill()
                process.wait()


def wait_for(process: subprocess.Popen, reached: Callable[[], bool]) -> float:
    """Waits until something has come about or the process has ended; the time by `time.perf_counter()`."""
    while process.poll() is None and not reached():
        time.sleep(0.05)
    return time.perf_counter()


def points(folder: Path) -> list[dict]:
    """The whole lines of metrics.jsonl, of the one run in a folder of runs."""
    text = "".join(path.read_text() for path in folder.glob("*/*/metrics.jsonl"))
    return [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]


def vgg_16_fast(data_dir: Path) -> Callable[[], float]:
    """Pictures a second by train.py's own log, after the first points."""
    settings = ("--recipe", "vgg_16_fast", "--data-dir", str(data_dir), "--summary-interval", str(STEPS))

    def timed_round() -> float:
        with training(*settings) as (process, folder):
            wait_for(process, lambda: len(points(folder)) >= WARM + COUNTED)
            found = points(folder)[WARM : WARM + COUNTED]
        return len(found) / sum(1 / point["images_per_second"] for point in found)

    return timed_round


def vgg_16_evaluation(data_dir: Path) -> Callable[[], float]:
    """Seconds from the last step before an evaluation until its state is on disk: with histograms and both saves."""
    settings = (
        "--recipe",
        "vgg_16_fast",
        "--data-dir",
        str(data_dir),
        "--summary-interval",
        "2",
        "--eval-interval",
        "2",
    )

    def timed_round() -> float:
        with training(*settings) as (process, folder):
            start = wait_for(process, lambda: bool(points(folder)))
            return wait_for(process, lambda: any(folder.glob("*/*/checkpoints/step_*"))) - start

    return timed_round


def single_layer_memory(data_dir: Path) -> Callable[[], float]:
    """The largest anonymous resident memory, in GB, of training single_layer_nn, with evaluations and saves."""
    settings = (
        "--recipe",
        "single_layer_nn",
        "--data-dir",
        str(data_dir),
        "--num-epochs",
        "1",
        "--eval-interval",
        "100",
    )

    def timed_round() -> float:
        samples = [0.0]
        with training(*settings, "--checkpoint-interval", "50") as (process, _):
            while process.poll() is None:
                samples.append(resident(process.pid) or 0.0)
                time.sleep(0.1)
        return max(samples) * 2**20 / 1e9

    return timed_round
