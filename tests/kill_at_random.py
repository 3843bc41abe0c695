"""Kills a real train.py at random moments of one run, resumes it each time, and compares the end with a whole run's.

`make test-resume` does it 20 times on each backend; every fourth kill falls into a save. About a quarter of an hour.
"""

import argparse
import random
import signal
import tempfile
import time
from pathlib import Path

from test_resume import Place, assert_same_run, final_state

from sample_data import draw_sample_set


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
        moment = draw.uniform(0, 0.5)  # seconds after the first save of this start, or after one began
        began = killed.last_step()

        def now(place, began=began, in_save=number % 4 == 3):
            saving = any((place.folder / "checkpoints").glob(".writing-*"))
            return place.last_step() > began and (saving if in_save else True)

        def wait_and_see(place, now=now, moment=moment, in_save=number % 4 == 3):
            return now(place) and (in_save or time.sleep(moment) is None)

        flags = ["--num-epochs", str(epochs), *(["--resume"] if number else [])]
        status, _, errors = killed.end_by(signal.SIGKILL, wait_and_see, *flags)
        assert status == -signal.SIGKILL, errors
        where = "in a save" if number % 4 == 3 else f"{moment:.2f} s after a save"
        print(f"{backend}: kill {number + 1} of {kills} at step {killed.last_step()} or later, {where}", flush=True)
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
