"""Several devices and processes train as one device does, up to the order of sums; all stop at the same step."""

import json
import signal
import socket
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import QUICK_TO_COMPILE
from test_resume import curves, finish, newest_step, start

from tiny_imagenet import devices
from tiny_imagenet.config import TrainConfig
from tiny_imagenet.devices import Processes
from tiny_imagenet.errors import UserError
from tiny_imagenet.run_dir import list_checkpoints

NEAR = 1e-3  # relative: float32 sums, added up in another order


# What is refused or said


@pytest.mark.parametrize(
    ("processes", "words"),
    [
        (Processes(coordinator_address="localhost:1", num_processes=2), "set all of --coordinator-address"),
        (Processes(num_processes=2, process_id=0), "set all of --coordinator-address"),
        (Processes(coordinator_address="localhost:1", num_processes=2, process_id=2), "process_id=2.*check"),
        (
            Processes(coordinator_address="localhost:http", num_processes=2, process_id=1),
            "'localhost:http'; .*HOST:PORT",
        ),
    ],
)
def test_settings_of_processes_that_do_not_fit_are_named(processes, words, monkeypatch):
    monkeypatch.setattr(devices, "ON_JAX", True)
    monkeypatch.setattr(devices, "jax", pytest.importorskip("jax"), raising=False)
    with pytest.raises(UserError, match=words):
        processes.connect("")


def test_several_processes_need_jax():
    Processes().connect("")  # only one
    with pytest.raises(UserError, match="set KERAS_BACKEND=jax"):
        Processes(distributed=True).connect("")


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


# Whole runs


@pytest.fixture
def run_program():
    """Starts test_resume's program under JAX; ends what a failed test has left running."""
    started = []

    def run(*arguments, signal_at=(0, 0), **options):
        started.append(start(*arguments, backend="jax", signal_at=signal_at, **options))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


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
def test_two_devices_and_two_processes_train_as_one_device(sample_dir, tmp_path, run_program):
    """With dropout, batch normalization and averaged weights; the processes are stopped and resumed."""
    settings = {"model_name": "vgg_16_bn", "width": 0.1, "crop_size": 32, "batch_size": 20, "num_epochs": 2}
    settings |= {"schedule": "linear", "ema_momentum": 0.5, "eval_interval": 15, "summary_interval": 4}
    settings |= {"data_dir": str(sample_dir), "runs_dir": str(tmp_path), "checkpoint_interval": 1}
    one, two, processes = (TrainConfig(config_name=name, **settings) for name in ("one", "two", "processes"))
    process = run_program(one)
    flags = f"{QUICK_TO_COMPILE} --xla_force_host_platform_device_count=2"
    assert "on 2 devices, 10 images each" in finish(run_program(two, XLA_FLAGS=flags))
    finish(process)
    assert_near(two.run_dir, one.run_dir)

    def run_processes(*words, code=0, signal_at=(0, 0)):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        words += ("--coordinator-address", address, "--num-processes", 2, "--process-id")
        pair = [run_program(processes, *words, 0), run_program(processes, *words, 1, signal_at=signal_at)]
        output, nothing = [finish(process, code) for process in pair]
        assert "step" not in nothing  # only the main process prints
        return output

    output = run_processes(code=128 + signal.SIGTERM, signal_at=(2, signal.SIGTERM))
    step = newest_step(processes.run_dir)
    assert 2 < step < 20
    assert f"stopped at step {step}, checkpoint saved; to continue: KERAS_BACKEND=jax python train.py" in output
    assert f"resumed at step {step}" in run_processes("--resume")
    assert_near(processes.run_dir, one.run_dir)
    assert "2 devices, 2 processes" in json.loads((processes.run_dir / "config.json").read_text())["hardware"]
