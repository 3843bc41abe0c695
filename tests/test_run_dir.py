"""A run's folder: what it holds, and what is refused, warned of or recorded when the run is resumed."""

import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest

from tiny_imagenet import ROOT, run_dir
from tiny_imagenet.config import TrainConfig
from tiny_imagenet.dataset import open_dataset
from tiny_imagenet.errors import UserError
from tiny_imagenet.run_dir import HAD_CHECKPOINTS, create_run, find_checkpoint, read_config, run_folder


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
    assert description["class_ids"] == list(data.class_ids)
    assert description["data"] == {"fingerprint": data.fingerprint, "train": 200, "val": 50}
    assert description["versions"].items() >= {"keras": keras.__version__, "numpy": np.__version__}.items()
    for name in ("train.py", "logistic_regression.py", "tiny_imagenet/checkpoint.py"):
        assert (run / "source" / name).read_bytes() == (ROOT / name).read_bytes()


def test_a_run_is_not_overwritten_even_without_its_config(run, config, data):
    with pytest.raises(UserError, match="already exists; .*--resume.*--config-name"):
        create_run(config, data)
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
    ],
)
def test_settings_that_change_the_result_are_refused_by_name(run, config, data, changes, words):
    before = (run / "config.json").read_bytes()
    with pytest.raises(UserError, match=f"cannot resume {run}: {words}; start a new run"):
        resume(replace(config, **changes), data)
    assert (run / "config.json").read_bytes() == before


def test_other_data_another_backend_and_links_are_refused(run, config, data, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="images or labels in .* are not those the run was trained on"):
        resume(config, replace(data, fingerprint="0" * 64))
    (run / "metrics.jsonl").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(UserError, match="metrics.jsonl is a symbolic link, which no run creates; replace it"):
        resume(config, data)
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
    (run / "source" / "losses.py").write_text("# another one")
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
        assert description["resumed"] == [changes]  # once
        assert description["hardware"] == f"{first}; then {second}"
        assert description["versions"] == then  # those with which it began


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
    wrong = '{"config": %s, "class_ids": [], "class_names": [], "data": {}}'
    for content in ("", "[1]", "\0", "{}", wrong % "[]", wrong % '{"speed": 1}'):
        (run / "config.json").write_text(content)
        with pytest.raises(UserError, match="config.json"):
            resume(config, data)
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
    for damage in ('{"split"', '{"split": "end"}', "[]", '{"split": "end", "seconds": "x"}'):
        path.write_text(damage)
        with pytest.raises(UserError, match="metrics.jsonl is damaged"):
            run_dir.read_seconds(run)
