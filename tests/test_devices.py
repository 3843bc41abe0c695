"""JAX: a killed run ends with the same bits; several devices and processes train as one, up to the order of sums."""

import json
import signal
import socket
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import QUICK_TO_COMPILE
from test_resume import assert_same_run, curves, finish, newest_step, start

from tiny_imagenet import devices
from tiny_imagenet.config import TrainConfig
from tiny_imagenet.devices import Processes
from tiny_imagenet.errors import UserError
from tiny_imagenet.run_dir import list_checkpoints

NEAR = 1e-3  # relative: float32 sums, added up in another order


# What is refused or said


@pytest.mark.slow
def test_several_processes_need_jax_and_settings_that_fit(monkeypatch):
    Processes().connect("")  # only one
    with pytest.raises(UserError, match="set KERAS_BACKEND=jax"):
        Processes(distributed=True).connect("")
    monkeypatch.setattr(devices, "ON_JAX", True)
    monkeypatch.setattr(devices, "jax", pytest.importorskip("jax"), raising=False)
    for address, process_id, words in (
        ("localhost:1", None, "process id .*must be defined.*check"),
        (None, 0, "coordinator_address should be defined.*check"),
        ("localhost:1", 2, "process_id=2.*check"),
        ("localhost:http", 1, "'localhost:http'; .*HOST:PORT"),
    ):
        with pytest.raises(UserError, match=words):
            Processes(False, address, 2, process_id).connect("")


def test_a_batch_that_the_devices_do_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(devices, "device_count", lambda: 3)
    with pytest.raises(UserError, match="batch_size is 64; set it to a multiple of the 3 devices"):
        devices.data_parallel(64).__enter__()


def test_the_main_process_goes_first(monkeypatch):
    events = []
    multihost_utils = SimpleNamespace(sync_global_devices=lambda _: events.append("sync"))
    monkeypatch.setattr(devices, "multihost_utils", multihost_utils, raising=False)
    for index, count in ((0, 2), (1, 2), (0, 1)):
        monkeypatch.setattr(devices, "shard", lambda shard=(index, count): shard)
        with devices.main_process_first():
            events.append(index)
    assert events == [0, "sync", "sync", 1, 0]


def test_a_missing_gpu_and_idle_ones_are_named(monkeypatch, capsys):
    monkeypatch.setattr(devices, "gpu_names", lambda: [])
    devices.check_gpu(required=False)
    with pytest.raises(UserError, match="require_gpu is set, but tensorflow finds no GPU; run: .*pip install"):
        devices.check_gpu(required=True)
    monkeypatch.setattr(devices, "gpu_names", lambda: ["A", "A"])
    devices.check_gpu(required=True)
    assert "one of the 2 GPUs; to use all of them, set KERAS_BACKEND=jax" in capsys.readouterr().out
    assert "2 x A" in devices.describe_hardware()


# Whole runs: with dropout, batch normalization, a schedule of fixed length and averaged weights

SETTINGS = {"model_name": "vgg_16_bn", "width": 0.1, "crop_size": 32, "batch_size": 20, "num_epochs": 2}
SETTINGS |= {"schedule": "linear", "ema_momentum": 0.5, "eval_interval": 6, "summary_interval": 4}
SETTINGS |= {"checkpoint_interval": 4, "histogram_interval": 99}


@pytest.fixture(scope="module")
def one(sample_dir, tmp_path_factory) -> TrainConfig:
    """The settings of a run on one device that was never interrupted."""
    pytest.importorskip("jax")
    folders = {"data_dir": str(sample_dir), "runs_dir": str(tmp_path_factory.mktemp("runs"))}
    config = TrainConfig(config_name="one", **SETTINGS, **folders)
    finish(start(config, backend="jax", signal_at=(0, 0)))
    return config


@pytest.mark.slow
def test_a_run_that_was_killed_under_jax(one):
    killed = replace(one, config_name="killed")
    finish(start(killed, backend="jax", signal_at=(8, signal.SIGKILL)), -signal.SIGKILL)
    assert "resumed at step" in finish(start(killed, "--resume", backend="jax", signal_at=(0, 0)))
    assert_same_run(killed.run_dir, one.run_dir)


def assert_near(folder, other) -> None:
    """The curves and the last checkpoint of two runs are equal up to rounding, which may change a prediction."""
    for ours, theirs in zip(curves(folder), curves(other), strict=True):
        assert ours.pop("split") == theirs.pop("split")
        near = {name: 0.025 if "top" in name else 1e-5 for name in theirs}  # of 40 or 50 predictions, one may change
        assert ours == {name: pytest.approx(value, rel=NEAR, abs=near[name]) for name, value in theirs.items()}
    ours, theirs = (np.load(list_checkpoints(one)[-1] / "arrays.npz") for one in (folder, other))
    assert ours.files == theirs.files
    for name in ours.files:
        if "top_" not in name:
            distance = np.linalg.norm(np.float64(ours[name]) - theirs[name])
            assert distance <= NEAR * np.linalg.norm(np.float64(theirs[name])) + 1e-6, name


@pytest.mark.slow
def test_two_processes_and_then_two_devices_train_as_one_device(one):
    """SIGTERM to one process stops both."""
    two = replace(one, config_name="two")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        words = ("--coordinator-address", f"localhost:{probe.getsockname()[1]}", "--num-processes", 2, "--process-id")
    with ExitStack() as ended:
        pair = [start(two, *words, i, backend="jax", signal_at=(8, i * signal.SIGTERM)) for i in range(2)]
        for process in pair:
            ended.callback(process.kill)  # if the other one has failed
        output, nothing = [finish(process, 128 + signal.SIGTERM) for process in pair]
    step = newest_step(two.run_dir)
    assert 8 <= step < 20
    assert f"stopped at step {step}, checkpoint saved; to continue: KERAS_BACKEND=jax python train.py" in output
    assert "step" not in nothing  # only the main process prints

    flags = f"{QUICK_TO_COMPILE} --xla_force_host_platform_device_count=2"
    output = finish(start(two, "--resume", backend="jax", signal_at=(0, 0), XLA_FLAGS=flags))
    assert f"resumed at step {step}" in output
    hardware = json.loads((two.run_dir / "config.json").read_text())["hardware"]
    assert "2 devices, 2 processes" in hardware and "2 devices, 1 processes" in hardware
    assert_near(two.run_dir, one.run_dir)
