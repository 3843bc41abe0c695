"""A run that is killed or stopped, then resumed, ends with the same bits as one that was not."""

import hashlib
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import JAX_CACHE, environment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

import vgg_16
from tiny_imagenet import ROOT
from tiny_imagenet.checkpoint import CheckpointManager
from tiny_imagenet.config import TrainConfig, differences
from tiny_imagenet.model_io import load_run
from tiny_imagenet.run_dir import list_checkpoints, read_seconds
from train import train

SETTINGS = TrainConfig(
    width=0.05,  # of VGG-16, with dropout and augmentation
    crop_size=32,
    batch_size=40,
    num_epochs=7,  # 35 steps: 200 images, 7 times, 40 per step
    eval_interval=10,  # at 10, 20, 30 and, after a shorter interval, 35
    summary_interval=4,  # no divisor of it
    checkpoint_interval=2,
    histogram_interval=15,  # at steps where nothing else is due
)
TIMES = {"images_per_second", "seconds"}  # differ between any two runs

BLOCKS = ((64,), (128,))  # of VGG-16: two convolutions instead of ten are compiled in a third of the time
PROGRAM = f"""
import os, sys, time
import train, vgg_16
from tiny_imagenet import devices
from tiny_imagenet.checkpoint import CheckpointManager
from tiny_imagenet.summaries import Summaries

vgg_16.BLOCKS = {BLOCKS}
if devices.ON_JAX:
    Summaries.start = lambda *_: None  # images and the graph, which take long and are the same as TensorFlow's
first_step, number = int(sys.argv.pop(1)), int(sys.argv.pop(1))

def save_then_signal(self, model, state, save=CheckpointManager.save):
    save(self, model, state)
    if number and state.step >= first_step:
        os.kill(os.getpid(), number)
        time.sleep(1)

CheckpointManager.save = save_then_signal
train.main()
"""  # train.py with a shallow model; sends itself a signal as it starts to save a checkpoint of FIRST_STEP or later


def start(config: TrainConfig, *words, backend="tensorflow", signal_at=None, **env) -> subprocess.Popen:
    """Starts train.py or, with `signal_at` = (first_step, number), the program above; number 0 is no signal."""
    flags = []
    for name, (value, _) in differences(config, TrainConfig()).items():
        flags += ["--" + name.replace("_", "-"), *(value if isinstance(value, tuple) else [value])]
    script = ["-c", PROGRAM, *signal_at] if signal_at else [ROOT / "train.py"]
    command = [sys.executable, *map(str, [*script, *flags, *words])]
    env = environment(backend) | JAX_CACHE | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """Waits for the end; what the process printed."""
    output, errors = process.communicate(timeout=600)
    assert process.returncode == code, errors
    return output


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    return max((int(path.name[5:]) for path in list_checkpoints(folder)), default=0)


# What is compared


def final_variables(folder) -> str:
    """SHA-256 of everything that a step reads or changes, after the last step."""
    digest = hashlib.sha256()
    with np.load(list_checkpoints(folder)[-1] / "arrays.npz") as arrays:
        for _, array in sorted(arrays.items()):  # the names begin with a number
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def final_weights(folder) -> list[bytes]:
    """Of best.keras or last.keras."""
    return [np.asarray(weight).tobytes() for weight in load_run(folder).model.weights]


def final_state(folder) -> dict:
    """The learning rate, its cuts, and the accuracies that decided them."""
    values = json.loads((list_checkpoints(folder)[-1] / "state.json").read_text())
    return {name: value for name, value in values.items() if name not in ("seconds", "log_sizes")}


def curves(folder) -> list[dict]:
    """The lines of metrics.jsonl, without times."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def charts(folder) -> dict[tuple[str, str], list[tuple]]:
    """(split, tag) -> [(step, value)] of TensorBoard's files, without the values of times and texts."""
    found = {}
    for split in ("train", "validation"):
        events = EventAccumulator(str(folder / "tensorboard" / split), size_guidance={"tensors": 0}).Reload()
        for tag in events.Tags()["tensors"]:
            exact = tag not in TIMES and events.SummaryMetadata(tag).plugin_data.plugin_name != "text"
            series = [(event.step, make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
            found[split, tag] = [(step, value.tolist() if exact else None) for step, value in series]
    return found


def assert_same_run(folder, reference) -> None:
    """All that two runs leave is the same but for times."""
    for compared in (curves, charts, final_state, final_weights, final_variables):
        assert compared(folder) == compared(reference), compared
    assert not list(folder.rglob(".writing-*"))


# The runs


@pytest.fixture(scope="module", autouse=True)
def shallow_model():
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(vgg_16, "BLOCKS", BLOCKS)
        yield


@pytest.fixture(scope="module")
def reference(sample_dir, tmp_path_factory) -> Path:
    """The folder of a run that was never interrupted."""
    return train(replace(SETTINGS, data_dir=str(sample_dir), runs_dir=str(tmp_path_factory.mktemp("reference"))))


def test_no_step_is_missing_or_logged_twice(reference):
    for (split, tag), series in charts(reference).items():
        interval = 15 if tag.startswith(("weights/", "activations/")) else 4
        expected = [10, 20, 30, 35] if split == "validation" else list(range(interval, 36, interval))
        assert [step for step, _ in series if step] in ([], expected), tag  # []: written once, at the start
    assert [point["step"] for point in curves(reference) if point["split"] == "validation"] == [10, 20, 30, 35]


@pytest.mark.slow
def test_a_run_that_was_killed_and_then_stopped(reference, sample_dir, tmp_path, monkeypatch, capsys):
    """It is then resumed in one process, as in a notebook, where the optimizer of the second model is called sgd_1."""
    config = replace(SETTINGS, data_dir=str(sample_dir), runs_dir=str(tmp_path), num_epochs=4)
    finish(start(config, signal_at=(12, signal.SIGKILL)), -signal.SIGKILL)
    assert 10 <= newest_step(config.run_dir) < 20

    def save_then_signal(self, model, state, save=CheckpointManager.save):
        save(self, model, state)
        if state.step >= 16:
            monkeypatch.undo()
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(CheckpointManager, "save", save_then_signal)
    with pytest.raises(SystemExit) as end:
        train(config, resume=True)
    assert end.value.code == 128 + signal.SIGTERM
    step, (output, errors) = newest_step(config.run_dir), capsys.readouterr()
    command = f"python train.py --model-name vgg_16 --config-name default --runs-dir {tmp_path} --resume"
    assert f"stopped at step {step}, checkpoint saved; to continue: {command}" in output
    assert "stopping after this step or evaluation" in errors

    config = replace(config, num_epochs=SETTINGS.num_epochs)  # longer than it was meant to be
    train(config, resume=True)
    assert f"resumed at step {step}" in capsys.readouterr().out
    assert_same_run(config.run_dir, reference)
    seconds = read_seconds(config.run_dir)
    train(config, resume=True)
    assert read_seconds(config.run_dir) == seconds  # it had ended
