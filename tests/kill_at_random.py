"""Kills train.py at random moments of a run, resumes it each time, and compares the end with an uninterrupted run.

`make test-resume` does it 20 times on each backend: before a start's first checkpoint, after one, around an
evaluation and while one is written, in turn. About six minutes on two cores; `--kills 4` is enough for one of each.
"""

import argparse
import random
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from test_resume import SETTINGS, assert_same_run, final_variables, finish, newest_step, start

from tiny_imagenet.config import TrainConfig
from tools.sample_data import draw_sample_set


def newest_log(folder: Path) -> str:
    """The newest of TensorBoard's files; each start of train.py adds one."""
    return max((path.name for path in folder.glob("tensorboard/train/*")), default="")


def moments(folder: Path, draw: random.Random) -> dict[str, Callable[[], bool]]:
    """The kinds of moments: name -> whether it has come. To be called before train.py is started."""
    first, log = newest_step(folder), newest_log(folder)

    def after(condition: bool, longest: float) -> bool:
        return condition and time.sleep(draw.uniform(0, longest)) is None

    def saved(remainder: int | None = None) -> bool:
        step = newest_step(folder)
        return step > first and remainder in (None, step % SETTINGS.eval_interval)

    return {
        "before its first checkpoint": lambda: after(newest_log(folder) != log and not saved(), 0.05),
        "after a checkpoint": lambda: after(saved(), 0.5),
        "around an evaluation": lambda: after(saved(SETTINGS.eval_interval - 2), 0.2),
        "while saving": lambda: saved() and any(folder.glob("checkpoints/.writing-*")),
    }


def kill(config: TrainConfig, backend: str, moment: Callable[[], bool], *words: str) -> None:
    """Starts train.py and kills it when the moment has come."""
    process = start(config, *words, backend=backend)
    while not moment():
        assert process.poll() is None, process.communicate()
        time.sleep(0.0005)
    process.kill()
    finish(process, -signal.SIGKILL)


def kill_at_random(config: TrainConfig, backend: str, kills: int, seed: int) -> str:
    """Trains one run without interruption and one with; returns the SHA-256 with which both end."""
    config = replace(config, num_epochs=3 * kills)  # 30 steps per kill: each start does some, none does all
    whole, killed = (replace(config, config_name=f"{backend}-{name}") for name in ("whole", "killed"))
    finish(start(whole, backend=backend))
    draw = random.Random(seed)
    for number in range(kills):
        kinds = moments(killed.run_dir, draw)
        name = list(kinds)[number % len(kinds)]
        kill(killed, backend, kinds[name], *["--resume"][:number])
        step = newest_step(killed.run_dir)
        print(f"{backend}: kill {number + 1} of {kills}, {name}, at step {step:,} or later", flush=True)
    finish(start(killed, "--resume", backend=backend))
    assert_same_run(killed.run_dir, whole.run_dir)
    return final_variables(whole.run_dir)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how often each run is killed")
    parser.add_argument("--backends", nargs="+", default=["tensorflow", "jax"])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data_dir = draw_sample_set(Path(folder) / "sample", train_per_class=20, val_per_class=5)
        config = replace(SETTINGS, data_dir=str(data_dir), runs_dir=f"{folder}/runs")
        for backend in arguments.backends:
            sha = kill_at_random(config, backend, arguments.kills, arguments.seed)
            print(f"{backend}: after {arguments.kills} kills the same end, bit for bit: SHA-256 {sha}")


if __name__ == "__main__":
    main()
