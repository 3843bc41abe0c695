"""The real train.py as a contender: its speed with pipeline and summaries, the cost of an evaluation, its memory."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tiny_imagenet import ROOT

STEPS = 2  # between two points of the curves
WARM_UP, COUNTED = 1, 3  # points


def resident_memory(pid: int) -> float | None:
    """Anonymous resident memory of a process in MB (without mapped files, which the system can drop)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), None)


@contextmanager
def training(*settings: str) -> Iterator[tuple[subprocess.Popen, Path]]:
    """Runs train.py during the block and gives it and the folder of its runs; then it is killed, the folder removed."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, str(ROOT / "train.py"), *settings, "--runs-dir", folder]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors) as process:
            try:
                yield process, Path(folder)
                if process.poll():
                    errors.seek(0)
                    raise RuntimeError(f"train.py exited with {process.returncode}: {errors.read().strip()[-500:]}")
            finally:
                process.kill()
                process.wait()


def wait_for(process: subprocess.Popen, condition: Callable[[], bool]) -> float:
    """Waits until the condition holds or the process has ended; returns the time, by `time.perf_counter()`."""
    while process.poll() is None and not condition():
        time.sleep(0.05)
    return time.perf_counter()


def read_points(folder: Path) -> list[dict]:
    """The complete lines of metrics.jsonl, of the only run in a folder of runs."""
    text = "".join(path.read_text() for path in folder.glob("*/*/metrics.jsonl"))
    return [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]


def vgg_16_fast(data_dir: Path) -> Callable[[], float]:
    """Images per second by train.py's own log, after the first points."""
    settings = ("--recipe", "vgg_16_fast", "--data-dir", str(data_dir), "--summary-interval", str(STEPS))

    def run_round() -> float:
        with training(*settings) as (process, folder):
            wait_for(process, lambda: len(read_points(folder)) >= WARM_UP + COUNTED)
            points = read_points(folder)[WARM_UP : WARM_UP + COUNTED]
        return len(points) / sum(1 / point["images_per_second"] for point in points)

    return run_round


def vgg_16_evaluation(data_dir: Path) -> Callable[[], float]:
    """Seconds from the last step before an evaluation until its checkpoint is on disk, with histograms."""
    settings = ("--recipe", "vgg_16_fast", "--data-dir", str(data_dir))
    settings += ("--summary-interval", "2", "--eval-interval", "2")

    def run_round() -> float:
        with training(*settings) as (process, folder):
            start = wait_for(process, lambda: bool(read_points(folder)))
            return wait_for(process, lambda: any(folder.glob("*/*/checkpoints/step_*"))) - start

    return run_round


def single_layer_memory(data_dir: Path) -> Callable[[], float]:
    """The peak anonymous resident memory, in GB, of training single_layer_nn, with evaluations and saves."""
    settings = ("--recipe", "single_layer_nn", "--data-dir", str(data_dir), "--num-epochs", "1")
    settings += ("--eval-interval", "100", "--checkpoint-interval", "50")

    def run_round() -> float:
        samples = [0.0]
        with training(*settings) as (process, _):
            while process.poll() is None:
                samples.append(resident_memory(process.pid) or 0.0)
                time.sleep(0.1)
        return max(samples) * 2**20 / 1e9

    return run_round
