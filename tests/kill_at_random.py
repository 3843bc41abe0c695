"""Kills a real train.py at random moments of one run, resumes it each time, and compares the end with a whole run's.

`make test-resume` does it 20 times on each backend: before the first save of a start, between saves, around an
evaluation, inside a save, in turn. About six minutes on two cores.
"""

import argparse
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from test_resume import SETTINGS, Place, assert_same_run, final_state

from sample_data import draw_sample_set

EVALUATION = SETTINGS["eval_interval"]  # steps


def newest_log(place: Place) -> str:
    """The name of the newest of TensorBoard's files, which each start adds to."""
    return max((path.name for path in (place.folder / "tensorboard").glob("train/*")), default="")


def moments(place: Place, draw: random.Random) -> dict[str, Callable[[Place], bool]]:
    """The kinds of moments at which a start is killed: name -> whether it has come. Call it before the start."""
    began, log = place.last_step(), newest_log(place)

    def later(now: bool, most: float) -> bool:
        return now and time.sleep(draw.uniform(0, most)) is None

    def saved(place: Place) -> bool:
        return place.last_step() > began

    return {
        "before its first save": lambda place: later(newest_log(place) != log and not saved(place), 0.05),
        "after a save": lambda place: later(saved(place), 0.5),
        "around an evaluation": lambda place: later(
            saved(place) and place.last_step() % EVALUATION == EVALUATION - 2, 0.2
        ),
        "in a save": lambda place: saved(place) and any((place.folder / "checkpoints").glob(".writing-*")),
    }


def kill_at_random(backend: str, kills: int, seed: int, folder: Path) -> str:
    """Trains once whole and once killed, on the same data; returns the SHA-256 that both end with."""
    data_dir = folder / "sample"
    if not data_dir.exists():
        draw_sample_set(data_dir, train_per_class=20, val_per_class=5)
    whole, killed = (Place(folder / f"{backend}-{name}", data_dir, backend) for name in ("whole", "killed"))
    for place in (whole, killed):
        place.cwd.mkdir()
    epochs = 3 * kills  # 30 steps a kill: each start does some, none does all
    whole.run(num_epochs=epochs)
    draw = random.Random(seed)
    for number in range(kills):
        kinds = moments(killed, draw)
        name = list(kinds)[number % len(kinds)]
        flags = ["--num-epochs", str(epochs), *(["--resume"] if number else [])]
        status, _, errors = killed.end_by(signal.SIGKILL, kinds[name], *flags)
        assert status == -signal.SIGKILL, errors
        print(f"{backend}: kill {number + 1} of {kills}, {name}, step {killed.last_step()} or later", flush=True)
    killed.run("--resume", num_epochs=epochs)
    assert_same_run(killed.folder, whole.folder)
    return final_state(whole.folder)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how often each run is killed")
    parser.add_argument("--backends", nargs="+", default=["tensorflow", "jax"])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for backend in arguments.backends:
            sha = kill_at_random(backend, arguments.kills, arguments.seed, Path(folder))
            print(f"{backend}: {arguments.kills} kills, the same end bit for bit, SHA-256 {sha}")


if __name__ == "__main__":
    main()
