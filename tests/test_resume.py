"""The real train.py, killed and stopped, gives the same as the run that never was: bit for bit."""

from startup import UserError, keras

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import JAX_CACHE, ROOT, environment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

import checkpoints
from config import TrainConfig
from train import train

NUM_STEPS = 40  # 200 pictures, 4 times, 20 a step
SETTINGS = {
    "model_name": "vgg_16",  # dropout and augmentation are on
    "width": 0.05,
    "batch_size": 20,
    "num_epochs": 4,
    "eval_interval": 12,  # 12, 24, 36, and the last, shorter one
    "summary_interval": 5,  # no divisor of it
    "checkpoint_interval": 2,
    "histogram_interval": 8,  # at steps at which nothing else is due
}
TIMES = {"images_per_second", "seconds"}  # what no two runs share


@dataclass(frozen=True)
class Place:
    """Where and how a run is trained."""

    cwd: Path
    data_dir: Path
    backend: str

    @property
    def folder(self) -> Path:
        return self.cwd / "runs" / "vgg_16" / "default"

    def start(self, *flags, **settings) -> subprocess.Popen:
        """Starts train.py."""
        settings = SETTINGS | {"data_dir": self.data_dir} | settings
        pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in settings.items()]
        return subprocess.Popen(
            [sys.executable, ROOT / "train.py", *(word for pair in pairs for word in pair), *flags],
            cwd=self.cwd,
            env=environment(self.backend) | JAX_CACHE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *flags, **settings) -> str:
        """Trains to the end; what train.py printed."""
        process = self.start(*flags, **settings)
        output, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        return output

    def end_by(self, number: int, moment, *flags) -> tuple[int, str, str]:
        """Starts train.py and sends it a signal as soon as `moment` has come: its exit status and its output."""
        process = self.start(*flags)
        while not moment(self):
            assert process.poll() is None, process.communicate()
            time.sleep(0.0005)
        process.send_signal(number)
        output, errors = process.communicate(timeout=200)
        return process.returncode, output, errors

    def last_step(self) -> int:
        """Of the newest checkpoint."""
        return max([int(path.name[5:]) for path in (self.folder / "checkpoints").glob("step_*")], default=0)


def before_the_first_save(place):
    """Training has begun to write its logs."""
    return any((place.folder / "tensorboard").glob("train/*")) and not place.last_step()


def after_step(step):
    """A state of this step or a later one is saved."""
    return lambda place: place.last_step() >= step


def while_saving(place):
    """A save later than the first evaluation has begun and not ended."""
    return place.last_step() >= 14 and any((place.folder / "checkpoints").glob(".writing-*"))


# What is compared


def sha256(arrays) -> str:
    """Over types, shapes and bytes, in the order of the names, which begin with a number."""
    digest = hashlib.sha256()
    for _, array in sorted(arrays.items()):
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def final_state(folder) -> str:
    """Of everything that a step reads or changes, after the last step."""
    with np.load(checkpoints.checkpoints(folder)[-1] / "arrays.npz") as arrays:
        return sha256(arrays)


def best_weights(folder) -> str:
    model = keras.saving.load_model(folder / "best.keras", compile=False)
    return sha256({f"{number:04d}": np.asarray(one) for number, one in enumerate(model.weights)})


def control(folder) -> dict:
    """The rate, its cuts, and the accuracies that they were decided by."""
    path = checkpoints.checkpoints(folder)[-1] / "progress.json"
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in ("seconds", "log_sizes")}


def points(folder) -> list[dict]:
    """Of metrics.jsonl, without times."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def events(folder, split) -> EventAccumulator:
    found = EventAccumulator(str(folder / "tensorboard" / split), size_guidance={"tensors": 0, "histograms": 0})
    return found.Reload()


def charts(folder) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(split, tag) -> (step, value) of every scalar in TensorBoard's files; the value of a time is left out."""
    found = {}
    for split in ("train", "validation"):
        accumulator = events(folder, split)
        for tag in accumulator.Tags()["tensors"]:
            if accumulator.SummaryMetadata(tag).plugin_data.plugin_name != "scalars":
                continue
            series = [(event.step, make_ndarray(event.tensor_proto).item()) for event in accumulator.Tensors(tag)]
            found[split, tag] = [(step, 0.0 if tag in TIMES else value) for step, value in series]
    return found


def histogram_steps(folder) -> dict[str, list[int]]:
    accumulator = events(folder, "train")
    tags = [tag for tag in accumulator.Tags()["tensors"] if tag.startswith(("weights/", "activations/"))]
    return {tag: [event.step for event in accumulator.Tensors(tag)] for tag in tags}


def assert_same_run(folder, reference) -> None:
    assert points(folder) == points(reference)
    assert control(folder) == control(reference)
    assert charts(folder) == charts(reference)
    assert histogram_steps(folder) == histogram_steps(reference)
    assert best_weights(folder) == best_weights(reference)
    assert final_state(folder) == final_state(reference)
    assert not list(folder.rglob(".writing-*"))


# The runs


@pytest.fixture(scope="module")
def reference(sample_dir, tmp_path_factory) -> Place:
    """A run that nothing happened to; all its later states are kept."""
    place = Place(tmp_path_factory.mktemp("reference"), sample_dir, "tensorflow")
    place.run(keep_checkpoints=8)
    return place


def test_no_step_is_missing_or_doubled_or_goes_backwards(reference):
    found = charts(reference.folder)
    for (split, tag), series in found.items():
        steps = [step for step, _ in series]
        assert all(before < after for before, after in pairwise(steps)), (split, tag)
        assert steps == ([12, 24, 36, 40] if split == "validation" else list(range(5, 41, 5)))
    assert {tag for split, tag in found if split == "validation"} == {"data_loss", "top_1", "top_5", "seconds"}
    assert [point["step"] for point in points(reference.folder) if point["split"] == "validation"] == [12, 24, 36, 40]


def test_a_run_that_is_killed_and_stopped_again_and_again_ends_as_if_nothing_had_happened(reference, tmp_path):
    place = Place(tmp_path, reference.data_dir, "tensorflow")
    assert place.end_by(signal.SIGKILL, before_the_first_save)[0] == -signal.SIGKILL
    assert place.end_by(signal.SIGKILL, after_step(6), "--resume")[0] == -signal.SIGKILL
    assert place.end_by(signal.SIGKILL, while_saving, "--resume")[0] == -signal.SIGKILL

    status, output, errors = place.end_by(signal.SIGINT, after_step(place.last_step() + 2), "--resume")
    assert (status, errors.strip().count("\n")) == (128 + signal.SIGINT, 0)
    assert "stopping after this step" in errors
    go_on = "python train.py --model-name vgg_16 --config-name default --resume"
    assert f"stopped at step {place.last_step()}, state saved; to go on: {go_on}" in output

    status, output, errors = place.end_by(signal.SIGTERM, after_step(place.last_step() + 2), "--resume")
    assert (status, errors.strip().count("\n")) == (128 + signal.SIGTERM, 0)
    assert f"stopped at step {place.last_step()}" in output

    assert place.last_step() < NUM_STEPS
    assert f"resumed at step {place.last_step()}" in place.run("--resume")
    assert_same_run(place.folder, reference.folder)


def earlier(place: Place) -> list[str]:
    """The names of three states in a row, none of them the last; where the disk was slow, some steps have none."""
    return [path.name for path in checkpoints.checkpoints(place.folder)][1:4]


def test_going_on_from_an_earlier_checkpoint_repeats_what_followed(reference, tmp_path):
    place = Place(tmp_path, reference.data_dir, "tensorflow")
    shutil.copytree(reference.folder, place.folder)
    name = earlier(reference)[0]
    assert f"resumed at step {int(name[5:])}" in place.run("--resume-from", name)
    assert_same_run(place.folder, reference.folder)


def test_going_back_takes_the_best_model_back_too(reference, tmp_path, monkeypatch):
    """Each state has the best model of its time beside it; here nothing is trained after it was taken up."""
    folder = tmp_path / "vgg_16" / "default"
    shutil.copytree(reference.folder, folder)
    name = earlier(reference)[0]
    then = folder / "checkpoints" / name / "best.keras"
    expected = then.read_bytes()
    (folder / "best.keras").write_bytes(b"of a later step")
    clock = []
    monkeypatch.setattr("train.run_intervals", lambda steps, *_: clock.append(steps.progress.seconds))
    train(replace(checkpoints.read_config(folder)[0], runs_dir=str(tmp_path)), resume_from=name)
    assert (folder / "best.keras").read_bytes() == expected
    assert clock == [checkpoints.read_seconds(reference.folder)]  # which does not go back


def test_a_refused_checkpoint_costs_neither_later_ones_nor_logs(reference, tmp_path):
    folder = tmp_path / "vgg_16" / "default"
    shutil.copytree(reference.folder, folder)
    states = checkpoints.checkpoints(folder)
    before, name, _ = earlier(reference)
    np.savez(folder / "checkpoints" / name / "arrays.npz", other=np.zeros(3))
    config = replace(checkpoints.read_config(folder)[0], runs_dir=str(tmp_path))
    with pytest.raises(UserError, match=f"{name} is another model's.*; try --resume-from {before}"):
        train(config, resume_from=name)
    assert checkpoints.checkpoints(folder) == states
    assert points(folder) == points(reference.folder)


def test_the_same_seed_gives_the_same_model_and_another_one_another(sample_dir, tmp_path):
    """In one process, as in a notebook, where Keras counts on: the second optimizer is called sgd_1."""
    config = TrainConfig("logistic_regression", data_dir=str(sample_dir), runs_dir=str(tmp_path))
    config = replace(config, batch_size=20, num_epochs=4, eval_interval=20)
    whole = train(config)
    half = replace(config, config_name="halves", num_epochs=2)
    assert train(half) == train(replace(half, num_epochs=4), resume=True)
    assert_same_run(half.run_dir, whole)
    seconds = checkpoints.read_seconds(whole)
    assert train(config, resume=True) == whole
    assert checkpoints.read_seconds(whole) == seconds  # it had ended
    assert final_state(train(replace(config, config_name="other", seed=1))) != final_state(whole)


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly_under_jax_too(sample_dir, tmp_path):
    pytest.importorskip("jax")
    whole, killed = (Place(tmp_path / name, sample_dir, "jax") for name in ("whole", "killed"))
    for place in (whole, killed):
        place.cwd.mkdir()
    whole.run()
    assert killed.end_by(signal.SIGKILL, after_step(14))[0] == -signal.SIGKILL
    assert "resumed at step" in killed.run("--resume")
    assert_same_run(killed.folder, whole.folder)
