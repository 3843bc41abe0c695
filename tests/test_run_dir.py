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


CHANGES = [
    ({"random_flip": False, "num_epochs": 7}, "random_flip was True, now False"),
    ({"lr": 0.5, "init_from": "runs/other"}, "lr was 0.01, now 0.5; init_from was none, now runs/other"),
    ({"schedule": "cosine", "num_epochs": 7}, "num_epochs was 50, now 7; schedule was plateau, now cosine"),
]


@pytest.mark.parametrize(("changes", "words"), CHANGES)
def test_settings_that_change_the_result_are_refused_by_name(run, config, data, changes, words):
    before = (run / "config.json").read_bytes()
    refusal = f"^cannot resume {run}: {words}; start a new run with another --config-name"
    with pytest.raises(UserError, match=f"{refusal}$"):
        resume(replace(config, **changes), data)
    (run / "best.keras").touch()  # a trained model, which another run can start from
    with pytest.raises(UserError, match=f"{refusal}, from this run's parameters with --init-from {run}$"):
        resume(replace(config, **changes), data)
    assert (run / "config.json").read_bytes() == before


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_links_pipes_and_devices_are_refused(run, config, data, make):
    path = run / "source" / "mine"
    make(path)
    with pytest.raises(UserError, match=f"{path} is a link, a pipe or a device, which no run creates; remove it"):
        resume(config, data)
    (run / "config.json").unlink()
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
    changed = replace(config, num_epochs=7, summary_interval=3, keep_checkpoints=5, require_gpu=True)
    resume(changed, data)
    assert read_config(run)[0] == changed
    assert capsys.readouterr().err == ""


def test_other_sources_versions_and_hardware_are_warned_of_and_recorded(run, config, data, monkeypatch, capsys):
    (run / "source" / "losses.py").write_text("# another one")
    write(run / "source" / "tiny_imagenet" / "removed_since.py", "")
    then, first = run_dir.versions(), run_dir.describe_hardware()
    monkeypatch.setattr(run_dir, "versions", lambda: then | {"python": "3.14.0", "keras": "9.0"})
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # it changes the order of sums
    second = f"{first}, OMP_NUM_THREADS=7"
    changes = f"python was {then['python']}, now 3.14.0; keras was {keras.__version__}, now 9.0; "
    changes += f"hardware was {first}, now {second}; sources changed: losses.py, tiny_imagenet/removed_since.py"
    for _ in range(2):
        resume(config, data)
        warning = f"warning: {run} is resumed in another environment, so perhaps not bit for bit: {changes}\n"
        assert capsys.readouterr().err == warning
        description = read_config(run)[1]
        assert description.resumed == (changes,)  # once
        assert description.hardware == f"{first}; then {second}"
        assert description.versions == then  # those with which it began


def test_a_disk_that_is_full_names_the_copy_of_the_sources(config, data):
    with file_size_limit(100), pytest.raises(UserError, match=rf"^{config.run_dir}/source/\w+.py: File too large"):
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


CONFIG_CHANGES = [{"class_ids": 3}, {"class_names": [1]}, {"data": {"train": 1, "val": 1}}, {"data": None}]
CONFIG_CHANGES += [{"hardware": []}, {"versions": {"keras": 3}}]
CONFIG_CHANGES += [{"config": value} for value in ([], {"speed": 1}, {"lr": "x"})]


def test_a_damaged_or_missing_config_is_named(run, config, data):
    path = run / "config.json"
    whole = json.loads(path.read_text())
    changed = [json.dumps(whole | change) for change in CONFIG_CHANGES]
    for content in ("", "[1]", "\0", "{}", "[" * 10**5, "9" * 5000, *changed):
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


END = '{"split": "end", "seconds": %s}'
DAMAGES = [END % value for value in ('"x"', "NaN", "1e400", "9" * 400, "9" * 5000, "true", "null")]
DAMAGES += ['{"split"', '{"split": "end"}', "[]", '{"split": "stop", "seconds": 1}', "[" * 10**5]


def test_a_run_has_ended_if_its_last_line_says_so(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for text, seconds in (("", 0.0), ('{"split": "train", "seconds": 3}\n', 3.0)):
        path.write_text(text)
        assert run_dir.read_seconds(tmp_path) == seconds
        with pytest.raises(UserError, match="has not finished training; continue it with train.py --resume"):
            run_dir.check_ended(tmp_path)
    path.write_text("not read\n" + END % 5.5)
    run_dir.check_ended(tmp_path)
    for damage in DAMAGES:
        path.write_text(damage)
        with pytest.raises(UserError, match=f"^{path} is damaged: .*; restore the original file$"):
            run_dir.read_seconds(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="metrics.jsonl is not a regular file"):
        run_dir.read_seconds(tmp_path)
