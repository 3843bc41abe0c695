"""On several devices and hosts a run is the same as on one, up to the order of its sums; a lost host ends all."""

from startup import UserError

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import JAX_CACHE, ROOT, environment
from test_input_pipe import batches, split

import checkpoints
import distribution
import input_pipe
import train
from config import TrainConfig
from distribution import Share

LOST_WITHIN = 2 * distribution.LOST_SECONDS  # seconds
NEAR = 1e-3  # relative: float32, whose sums are added up in another order
TIMES = {"images_per_second", "seconds"}


# Batches


@pytest.mark.parametrize("settings", [{"hue": 0.05}, {"resized_crop": (44, 64)}], ids=["cut", "scaled"])
@pytest.mark.parametrize("hosts", [2, 3])
def test_the_hosts_shares_are_the_batch(hosts, settings):
    config, data = TrainConfig(batch_size=6, **settings), split(10)
    whole = batches(input_pipe.train_batches(data, config, start_step=1), 4)  # two of them span two epochs
    shares = [Share(host, hosts, hosts) for host in range(hosts)]
    parts = [batches(input_pipe.train_batches(data, config, start_step=1, share=share), 4) for share in shares]
    for step, (pictures, labels) in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([part[step][0] for part in parts]), pictures)
        np.testing.assert_array_equal(np.concatenate([part[step][1] for part in parts]), labels)


@pytest.mark.parametrize(("hosts", "devices"), [(1, 2), (2, 2), (2, 6), (3, 3)])
@pytest.mark.parametrize("num_pictures", [1, 7, 12, 25])
def test_in_an_evaluation_every_picture_weighs_one(hosts, devices, num_pictures, monkeypatch):
    monkeypatch.setattr(input_pipe, "EVAL_BATCH_SIZE", 5)
    data, config = split(num_pictures), TrainConfig()
    shares = [Share(host, hosts, devices) for host in range(hosts)]
    parts = [batches(input_pipe.eval_shares(data, config, share), 99) for share in shares]
    assert len({len(part) for part in parts}) == 1
    found = [example for part in parts for batch in part for example in zip(*batch, strict=True) if example[2]]
    assert sorted(label for _, label, _ in found) == list(range(num_pictures))
    assert all((picture == data.images[label, 4:60, 4:60]).all() for picture, label, _ in found)
    assert {len(batch[1]) % (devices // hosts) for part in parts for batch in part} == {0}


# What is refused


@pytest.mark.parametrize(
    ("coordinator", "num_hosts", "host_id", "answer"),
    [
        ("localhost:1", 2, 2, "host_id 2"),
        ("localhost:1", 1, 0, "--num-hosts"),
        ("localhost", 2, 0, "HOST:PORT"),
        ("localhost:http", 2, 0, "HOST:PORT"),
        ("localhost:99999", 2, 1, "HOST:PORT"),
        ("a..b:1234", 2, 1, "nobody is at a..b:1234 .*; start host 0"),
    ],
)
def test_numbers_that_do_not_fit_are_named(coordinator, num_hosts, host_id, answer, monkeypatch):
    monkeypatch.setattr(distribution.keras.backend, "backend", lambda: "jax")
    with pytest.raises(UserError, match=answer), distribution.joined(coordinator, num_hosts, host_id):
        pass


def test_hosts_need_a_coordinator_and_jax(monkeypatch):
    with pytest.raises(UserError, match="--coordinator HOST:PORT"):
        train.parse(["--num-hosts", "2"])
    monkeypatch.setattr(distribution.keras.backend, "backend", lambda: "tensorflow")
    with pytest.raises(UserError, match="set KERAS_BACKEND=jax"), distribution.joined("localhost:1", 2, 0):
        pass


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Gloo all-reduce failed: Connection closed by peer"), "another host was lost .*--resume"),
        (UserError("the dataset cannot be downloaded (ConnectionError)"), "^error: the dataset cannot be downloaded"),
        (AssertionError("<class 'A'> passed to device_put is not the same on each process: 1"), "of one kind"),
        (ZeroDivisionError("a mistake of ours"), "Traceback"),
    ],
)
def test_what_ends_a_host_is_said_and_called_by_its_name(error, said, monkeypatch, capsys):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    distribution._leave(error, host_id=1)
    assert codes == [1]
    errors = capsys.readouterr().err
    assert re.search(said, errors), errors
    assert errors.count("\n") == 1 or "Traceback" in said


def test_the_first_host_goes_before_the_others(monkeypatch):
    """Its work is done when theirs begins; all meet after each of the two."""
    came = []
    monkeypatch.setattr(distribution, "anyone", lambda share, flag: came.append((share.host, flag)))
    for host in (0, 1):
        assert distribution.first_then_others(Share(host, 2), lambda: came.append("work") or "done") == "done"
    assert came == ["work", (0, False), (0, False), (1, False), "work", (1, False)]


def with_devices(monkeypatch, *counts) -> None:
    """So many on each host."""
    devices = [SimpleNamespace(process_index=host) for host, count in enumerate(counts) for _ in range(count)]
    monkeypatch.setattr("jax.devices", lambda: devices)


@pytest.mark.parametrize(("batch_size", "near", "fewer"), [(64, "63 or 66", 2), (2, "3", 2), (65, "63 or 66", 1)])
def test_a_batch_that_the_devices_do_not_divide_is_refused(batch_size, near, fewer, monkeypatch):
    with_devices(monkeypatch, 3)
    with pytest.raises(UserError, match=f"batch_size is {batch_size}, which 3 devices do not .* set it to {near}, or"):
        distribution.check_divides(Share(devices=3), batch_size)
    with pytest.raises(UserError, match=f"do not divide; use fewer devices, such as {fewer} "):
        distribution.check_divides(Share(devices=3), batch_size, resuming=True)
    distribution.check_divides(Share(devices=3), 66)


@pytest.mark.parametrize(("batch_size", "advice"), [(66, "such as 2"), (63, "on fewer hosts")])
def test_fewer_devices_are_equally_many_on_each_host(batch_size, advice, monkeypatch):
    with_devices(monkeypatch, 2, 2)
    with pytest.raises(UserError, match=f"fewer devices, {advice} "):
        distribution.check_divides(Share(0, 2, 4), batch_size)


def test_hosts_with_different_numbers_of_devices_are_refused(monkeypatch):
    with_devices(monkeypatch, 1, 2, 3)
    with pytest.raises(UserError, match="the hosts have 1, 2, 3 devices; give each of them equally many"):
        distribution.check_divides(Share(1, 3, 6), 66)


def test_tensorflow_says_who_uses_all_gpus(monkeypatch, capsys):
    monkeypatch.setattr(distribution, "gpu_names", lambda: ["A", "A"])
    distribution.warn_of_idle_gpus()
    assert "one of the 2 GPUs; for all of them set KERAS_BACKEND=jax" in capsys.readouterr().out


# Whole runs


@pytest.fixture(autouse=True)
def nothing_left_running():
    """Ends what a failed test has left."""
    started.clear()
    yield
    for process in started:
        process.kill()
        process.communicate()


started: list[subprocess.Popen] = []


def start(cwd: Path, data_dir: Path, *flags, devices: int = 1, **settings) -> subprocess.Popen:
    """train.py under JAX, on so many devices that the processor is taken for."""
    settings = {"data_dir": data_dir, "batch_size": 20, "num_epochs": 2, "eval_interval": 8} | settings
    words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", *str(value).split())]
    words += ["--summary-interval", "5", "--checkpoint-interval", "2"]
    env = environment("jax") | JAX_CACHE
    env["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, ROOT / "train.py", *words, *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started.append(subprocess.Popen(command, cwd=cwd, env=env, **pipes))
    return started[-1]


def ended(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    """What it printed, once it has ended so."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    return output, errors


def assert_same(folder: Path, other: Path, step: int) -> None:
    """The curves and the last state are the same but for rounding, by which a guess may change."""
    values, guesses = {"rel": NEAR, "abs": 1e-5}, {"abs": 0.025}  # one of 50
    lines = [list(map(json.loads, (f / "metrics.jsonl").read_text().splitlines())) for f in (folder, other)]
    for ours, theirs in zip(*lines, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["split"] == theirs["split"]
        for name in ours.keys() - TIMES - {"split"}:
            assert ours[name] == pytest.approx(theirs[name], **(guesses if name.startswith("top_") else values)), name
    arrays = [np.load(f / "checkpoints" / f"step_{step:08d}" / "arrays.npz") for f in (folder, other)]
    assert arrays[0].files == arrays[1].files
    for name in arrays[0].files:
        if "top_" not in name:
            ours, theirs = (np.float64(file[name]) for file in arrays)
            assert np.linalg.norm(ours - theirs) <= NEAR * np.linalg.norm(theirs) + 1e-6, name


@pytest.mark.slow
def test_two_devices_and_two_hosts_train_as_one(sample_dir, tmp_path):
    """With dropout, batch normalisation and averaged weights; five steps, in which no rounding grows large."""
    settings = {"model_name": "vgg_16_bn", "width": 0.1, "schedule": "one_cycle", "batch_size": 80, "eval_interval": 3}
    settings |= {"crop_size": 32, "ema_momentum": 0.5}
    folders = {}
    for devices in (1, 2):
        (tmp_path / str(devices)).mkdir()
        output, _ = ended(start(tmp_path / str(devices), sample_dir, devices=devices, **settings))
        assert "end at step 5 (all epochs done)" in output
        folders[devices] = tmp_path / str(devices) / "runs" / "vgg_16_bn" / "default"
        assert ("on 2 devices on 1 host, each with 40 pictures of a batch" in output) == (devices == 2)
    assert "2 devices on 1 host" in json.loads((folders[2] / "config.json").read_text())["hardware"]
    assert_same(folders[2], folders[1], step=5)

    (tmp_path / "hosts").mkdir()
    for host in start_hosts(tmp_path / "hosts", sample_dir, **settings):
        ended(host)
    assert_same(tmp_path / "hosts" / "runs" / "vgg_16_bn" / "default", folders[1], step=5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start_hosts(cwd: Path, data_dir: Path, *flags, **settings) -> list[subprocess.Popen]:
    meeting = ("--coordinator", f"localhost:{free_port()}", "--num-hosts", 2)
    return [start(cwd, data_dir, *meeting, "--host-id", host, *flags, **settings) for host in (0, 1)]


def wait_for_step(folder: Path, step: int, hosts: list[subprocess.Popen]) -> None:
    """Returns as soon as a state of this step or a later one is saved."""
    end = time.monotonic() + 120
    while not any(int(path.name[5:]) >= step for path in (folder / "checkpoints").glob("step_*")):
        assert all(host.poll() is None for host in hosts), [host.communicate() for host in hosts if host.poll()]
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.slow
def test_two_hosts_stopped_then_one_lost_then_one_alone_train_as_one(sample_dir, tmp_path):
    settings = {
        "model_name": "single_layer_nn",
        "width": 0.1,
        "num_epochs": 20,
        "eval_interval": 60,
        "schedule": "one_cycle",
    }
    for name in ("alone", "hosts"):
        (tmp_path / name).mkdir()
    ended(start(tmp_path / "alone", sample_dir, **settings))
    folder = tmp_path / "hosts" / "runs" / "single_layer_nn" / "default"

    hosts = start_hosts(tmp_path / "hosts", sample_dir, **settings)
    wait_for_step(folder, 2, hosts)
    hosts[1].send_signal(signal.SIGTERM)  # the one that does not write
    output, _ = ended(hosts[0], 143)
    assert re.search("state saved; to go on: KERAS_BACKEND=jax python train.py .* --resume and, on each host", output)
    assert [line for line in ended(hosts[1], 143)[0].splitlines() if "Gloo" not in line] == []  # of C++
    stopped = checkpoints.checkpoints(folder)[-1].name

    hosts = start_hosts(tmp_path / "hosts", sample_dir, "--resume", **settings)
    wait_for_step(folder, int(stopped[5:]) + 10, hosts)
    hosts[1].kill()
    began = time.monotonic()
    _, errors = ended(hosts[0], 1)
    assert "another host was lost" in errors and "start all again with --resume" in errors, errors
    assert "Traceback" not in errors
    assert time.monotonic() - began < LOST_WITHIN

    output, _ = ended(start(tmp_path / "hosts", sample_dir, "--resume", **settings))
    assert "resumed at step" in output
    assert_same(folder, tmp_path / "alone" / "runs" / "single_layer_nn" / "default", step=200)


@pytest.mark.slow
def test_a_host_with_other_settings_ends_all(sample_dir, tmp_path):
    port = free_port()
    meeting = ("--coordinator", f"localhost:{port}", "--num-hosts", 2)
    hosts = [
        start(tmp_path, sample_dir, *meeting, "--host-id", host, model_name="logistic_regression", lr=lr)
        for host, lr in ((0, 0.1), (1, 0.2))
    ]
    for host in hosts:
        _, errors = ended(host, 1)
        assert "the hosts have not the same settings" in errors
    assert not (tmp_path / "runs").exists()


def test_a_host_that_nobody_meets_says_so(monkeypatch):
    monkeypatch.setattr(distribution, "START_SECONDS", 1)
    with pytest.raises(UserError, match=r"nobody is at localhost:\d+ .*; start host 0"):
        distribution._wait_for("localhost", free_port())
