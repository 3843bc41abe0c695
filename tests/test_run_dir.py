"""A run's folder: what it holds, and what is refused, warned of or recorded when the run is resumed."""

import json
import os
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest
from helpers import write
from test_faults import file_size_limit

from tiny_imagenet import ROOT, run_dir
from tiny_imagenet.config import TrainConfig
from tiny_imagenet.dataset import open_dataset
from tiny_imagenet.errors import UserError
from tiny_imagenet.run_dir import HAD_CHECKPOINTS, create_run, find_checkpoint, read_config, run_folder
from train import check_settings


@pytest.fixture(scope="module")
def data(sample_dir):
    return open_dataset(sample_dir)


@pytest.fixture
def config(sample_dir, tmp_path):
    return TrainConfig("logistic_regression", data_dir=str(sample_dir), runs_dir=str(tmp_path / "runs"))


@pytest.fixture
def run(config, data):
    """The folder of a new run."""
    return create_run(config, data)


def add_checkpoint(run, step):
    (run / "checkpoints" / f"step_{step:08d}").mkdir()
    (run / "checkpoints" / HAD_CHECKPOINTS).touch()


def resume(config, data):
    """As train.py does it."""
    with run_folder(config, data, resume=True):
        run_dir.write_config(config, data)


def test_a_run_keeps_its_settings_classes_versions_and_sources(run, config, data):
    found, description = read_config(run)
    assert found == config
    assert (description.class_ids, description.class_names) == (data.class_ids, data.class_names)
    assert description.data == run_dir.DataSummary(data.fingerprint, train=200, val=50)
    assert description.versions.items() >= {"keras": keras.__version__, "numpy": np.__version__}.items()
    for name in ("train.py", "logistic_regression.py", "tiny_imagenet/checkpoint.py"):
        assert (run / "source" / name).read_bytes() == (ROOT / name).read_bytes()


def test_a_run_is_not_overwritten_even_without_its_config(run, config, data):
    with pytest.raises(UserError, match="already exists; .*--resume.*--config-name"):
        check_settings(replace(config, lr=0.5, eval_interval=10**6), resuming=False)  # before anything slow
    add_checkpoint(run, 1)
    (run / "config.json").unlink()
    with pytest.raises(UserError, match="holds a run without its config.json; give this run another --config-name"):
        create_run(config, data)


# Resuming: what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"random_flip": False, "num_epochs": 7}, "random_flip was True, now False"),
        ({"lr": 0.5, "momentum": 0.1}, "lr was 0.01, now 0.5; momentum was 0.9, now 0.1"),
        ({"schedule": "cosine", "num_epochs": 7}, "num_epochs was 50, now 7; schedule was plateau, now cosine"),
        ({"init_from": "runs/other"}, "init_from was none, now runs/other"),
    ],
)
def test_settings_that_change_the_result_are_refused_by_name(run, config, data, changes, words):
    before = (run / "config.json").read_bytes()
    refusal = f"^cannot resume {run}: {words}; start a new run with another --config-name"
    with pytest.raises(UserError, match=f"{refusal}$"):
        resume(replace(config, **changes), data)
    (run / "best.keras").touch()  # a trained model, which another run can start from
    with pytest.raises(UserError, match=f"{refusal}, from this run's parameters with --init-from {run}$"):
        resume(replace(config, **changes), data)
    assert (run / "config.json").read_bytes() == before


@pytest.mark.parametrize("place", ["metrics.jsonl", "checkpoints/step_00000001/arrays.npz", "source/train.py"])
def test_links_pipes_and_devices_are_refused(run, config, data, tmp_path, place):
    path = write(run / place, "")
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(tmp_path / "mine")):
        path.unlink()
        make(path)
        with pytest.raises(UserError, match=f"{path} is a link, a pipe or a device, which no run creates; remove it"):
            resume(config, data)
    (run / "config.json").unlink()
    shutil.rmtree(run / "checkpoints")
    if path.is_symlink():
        with pytest.raises(UserError, match="is a link, a pipe or a device"):
            create_run(config, data)


def test_other_data_and_another_backend_are_refused(run, config, data, monkeypatch):
    with pytest.raises(UserError, match="images or labels in .* are not those the run was trained on"):
        resume(config, replace(data, fingerprint="0" * 64))
    monkeypatch.setattr(keras.backend, "backend", lambda: "other")
    with pytest.raises(UserError, match="KERAS_BACKEND was .*, now other"):
        resume(config, data)


def test_a_run_that_lost_its_checkpoints_is_not_started_again(run, config, data):
    resume(config, data)  # it may have none yet
    add_checkpoint(run, 1)
    for lost in ("checkpoints/step_00000001", "checkpoints"):
        shutil.rmtree(run / lost)
        with pytest.raises(UserError, match="the checkpoints of .* are gone; start a new run"):
            resume(config, data)


def test_a_second_process_is_refused_and_touches_nothing(run, config, data):
    unfinished = run / "checkpoints" / ".writing-step_00000001"
    with run_folder(config, data, resume=True):
        unfinished.mkdir()
        for resuming in (True, False):
            with pytest.raises(UserError, match="is being trained by another train.py; wait for it .*or stop it"):
                run_folder(config, data, resuming).__enter__()
        assert unfinished.exists()
    resume(config, data)  # the first has ended
    assert not unfinished.exists()


# Resuming: what may change


def test_settings_that_change_no_step_may_change(run, config, data, capsys):
    changed = replace(config, num_epochs=7, summary_interval=3, histogram_interval=2, checkpoint_interval=9)
    changed = replace(changed, keep_checkpoints=5, require_gpu=True, skip_bad_images=True)
    resume(changed, data)
    assert read_config(run)[0] == changed
    assert capsys.readouterr().err == ""


def test_other_sources_versions_and_hardware_are_warned_of_and_recorded(run, config, data, monkeypatch, capsys):
    for name in ("losses", "evaluate", "resnet_18", "tiny_imagenet/plots"):  # no step depends on the last three
        (run / "source" / f"{name}.py").write_text("# another one")
    (run / "source" / "tiny_imagenet" / "layers.py").unlink()
    then, first = run_dir.versions(), run_dir.describe_hardware()
    monkeypatch.setattr(run_dir, "versions", lambda: then | {"python": "3.14.0", "keras": "9.0"})
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # it changes the order of sums
    second = f"{first}, OMP_NUM_THREADS=7"
    changes = f"python was {then['python']}, now 3.14.0; keras was {keras.__version__}, now 9.0; "
    changes += f"the hardware was {first}, now {second}; sources changed: losses.py, layers.py"
    for _ in range(2):
        resume(config, data)
        warning = f"warning: {run} is resumed in another environment, so not bit for bit: {changes}\n"
        assert capsys.readouterr().err == warning
        description = read_config(run)[1]
        assert description.resumed == (changes,)  # once
        assert description.hardware == f"{first}; then {second}"
        assert description.versions == then  # those with which it began


def test_a_model_that_builds_on_another_depends_on_its_file_too(config, data, capsys):
    config = replace(config, model_name="vgg_16_bn")
    for name in ("vgg_16", "resnet_18"):
        (create_run(replace(config, config_name=name), data) / "source" / f"{name}.py").unlink()
        resume(replace(config, config_name=name), data)
    assert [line.rpartition(": ")[2] for line in capsys.readouterr().err.splitlines()] == ["vgg_16.py"]


def test_a_disk_that_is_full_names_the_copy_of_the_sources(config, data):
    with file_size_limit(100), pytest.raises(UserError, match=f"^{config.run_dir}/source/evaluate.py: File too large"):
        create_run(config, data)


# Reading a run


def test_a_checkpoint_is_found_by_its_name(run):
    assert find_checkpoint(run, None) is None
    for step in (2, 1, 3):
        add_checkpoint(run, step)
    assert find_checkpoint(run, "step_00000002").name == "step_00000002"
    assert find_checkpoint(run, None).name == "step_00000003"
    for name in ("step_7", "../../etc"):
        with pytest.raises(UserError, match=f"no checkpoint '{name}'; it has: step_00000001, step_00000002, step_"):
            find_checkpoint(run, name)


def test_a_damaged_or_missing_config_is_named(run, config, data):
    path = run / "config.json"
    whole = json.loads(path.read_text())
    changes = [
        {"class_ids": 3},
        {"class_names": [1]},
        {"data": {"train": 1, "val": 1}},
        {"data": None},
        {"hardware": []},
    ]
    changes += [{"config": []}, {"config": {"speed": 1}}, {"config": {"lr": "x"}}, {"versions": {"keras": 3}}]
    for content in (
        "",
        "[1]",
        "\0",
        "{}",
        "[" * 10**5,
        "9" * 5000,
        *(json.dumps(whole | change) for change in changes),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=f"^{path}: |^{path} is damaged: .*; restore the original file$"):
            resume(config, data)
    os.truncate(path, 2**29)  # sparse: it takes no space on the disk
    with pytest.raises(UserError, match=f"^{path} is larger than 256 MB; restore the original file$"):
        read_config(run)
    path.write_text(json.dumps(whole | {"hardware": "\x1b[2Ja\nb"}))
    assert read_config(run)[1].hardware == r"'\x1b[2Ja\nb'"
    with pytest.raises(UserError, match="is not a run"):
        resume(replace(config, config_name="nowhere"), data)
    assert not (run.parent / "nowhere").exists()


def test_a_run_has_ended_if_its_last_line_says_so(run):
    path = run / "metrics.jsonl"
    for text, seconds in (("", 0.0), ('{"split": "train", "seconds": 3}\n', 3.0)):
        path.write_text(text)
        assert run_dir.read_seconds(run) == seconds
        with pytest.raises(UserError, match="has not finished training; continue it with train.py --resume"):
            run_dir.check_ended(run)
    path.write_text('not read\n{"split": "end", "seconds": 5.5}\n')
    run_dir.check_ended(run)
    end = '{"split": "end", "seconds": %s}'
    damages = [end % value for value in ('"x"', "NaN", "1e400", "9" * 400, "9" * 5000, "true", "null")]
    for damage in ('{"split"', '{"split": "end"}', "[]", '{"split": "stop", "seconds": 1}', "[" * 10**5, *damages):
        path.write_text(damage)
        with pytest.raises(UserError, match=f"^{path} is damaged: .*; restore the original file$"):
            run_dir.read_seconds(run)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="metrics.jsonl is not a regular file"):
        run_dir.read_seconds(run)
