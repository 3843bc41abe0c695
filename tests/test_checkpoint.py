"""Checkpoints: written whole or not at all, restored exactly, and whatever is damaged in one is named."""

import io
import json
import re
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np
import pytest

from tiny_imagenet import file_utils
from tiny_imagenet.checkpoint import CheckpointManager, TrainState, check_length, parse_state, variables
from tiny_imagenet.config import TrainConfig
from tiny_imagenet.errors import UserError
from tiny_imagenet.run_dir import list_checkpoints
from tiny_imagenet.schedules import TrainControl
from tiny_imagenet.summaries import cut_logs


def tiny_model(num_classes=3, name="fc1"):
    """From (B, 4) to logits (B, C), with dropout; everything that a checkpoint holds is built."""
    features = keras.Input((4,), name="features")
    logits = keras.layers.Dense(num_classes, name=name)(keras.layers.Dropout(0.5, name="dropout")(features))
    model = keras.Model(features, logits, name="tiny")
    metrics = [keras.metrics.MeanSquaredError("error")]
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", metrics=metrics, run_eagerly=True)
    model.train_on_batch(np.ones((2, 4)), np.ones((2, num_classes)))
    return model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def config(tmp_path):
    config = TrainConfig("tiny", runs_dir=str(tmp_path), eval_interval=4, keep_checkpoints=3)
    (config.run_dir / "checkpoints").mkdir(parents=True)
    return config


def state_at(step):
    return TrainState(TrainControl(0.1, [0.25] * (step // 4), 1), step, best_val_acc=0.5, seconds=1.5)


def save(config, model, *steps):
    """Saves checkpoints, and waits until they are on disk."""
    with closing(CheckpointManager(config)) as manager:
        for step in steps:
            manager.save(model, state_at(step))
        manager.wait()


def restore(config, model, name=None, total_steps=100):
    with closing(CheckpointManager(config)) as manager:
        return manager.restore(model, name, total_steps)


def names(config):
    return [path.name for path in list_checkpoints(config.run_dir)]


def test_a_failed_write_keeps_the_previous_version_and_leaves_nothing_else(tmp_path):
    def write(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    (path := tmp_path / "file.txt").write_text("old")
    with pytest.raises(UserError, match="file.txt .No space left on device.; the previous version is kept; free some"):
        file_utils.write_atomically(path, write)
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])


def test_a_new_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    events, path = [], tmp_path / "file.txt"
    (tmp_path / ".writing-file.txt").mkdir()  # left by a killed write
    monkeypatch.setattr(file_utils, "fsync", lambda file: events.append((file.name, path.exists())))
    file_utils.write_text(path, "new")
    assert events == [(".writing-file.txt", False), (tmp_path.name, True)]


def test_everything_is_restored_exactly_and_only_the_newest_are_kept(config, model):
    save(config, model, 8, 9, 10, 100)
    assert names(config) == ["step_00000009", "step_00000010", "step_00000100"]
    other = tiny_model()
    for variable in variables(other).values():
        variable.assign(keras.ops.zeros_like(variable))
    assert restore(config, other) == state_at(100)
    for ours, theirs in zip(variables(model).values(), variables(other).values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(variables(model)) == 11  # kernel, bias, seed; step, learning rate, 2 momenta; sum, count of 2 metrics


def test_a_checkpoint_of_another_model_is_named_and_changes_nothing(config, model):
    save(config, model, 1, 2)
    for options, shape in (({"num_classes": 5}, "(4, 5)"), ({"name": "fc2"}, "None")):
        other = tiny_model(**options)
        before = other.get_weights()
        words = re.escape(f"'0001 fc1/kernel' has shape (4, 3), not {shape}; try --resume-from step_00000001")
        with pytest.raises(UserError, match=f"step_00000002 is of another model: {words}"):
            restore(config, other)
        assert all(map(np.array_equal, before, other.get_weights()))


@pytest.mark.parametrize("hard_links", [True, False])
def test_rewinding_restores_the_model_and_the_logs_of_that_step(config, model, monkeypatch, hard_links):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    if not hard_links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    best, metrics = config.run_dir / "best.keras", config.run_dir / "metrics.jsonl"
    events = config.run_dir / "tensorboard" / "train" / "events"
    events.parent.mkdir(parents=True)
    for step in (1, 2, 3):
        file_utils.write_text(best, f"of step {step}")
        events.write_text("123"[:step])
        metrics.write_text(f'{{"split": "train", "seconds": {10 * step}}}\n' * step)
        save(config, model, step)
    events.with_name("later").touch()
    assert restore(config, model, "step_00000002").seconds == 30  # time does not go back
    assert (best.read_text(), events.read_text(), metrics.read_text().count("\n")) == ("of step 2", "12", 2)
    assert not events.with_name("later").exists()
    assert names(config) == ["step_00000001", "step_00000002"]


def test_without_a_checkpoint_a_run_starts_again(config, model):
    for name in ("best.keras", "metrics.jsonl"):
        (config.run_dir / name).write_text("half a li")
    assert restore(config, model) == TrainState(TrainControl(config.lr))
    assert [path.name for path in config.run_dir.iterdir()] == ["checkpoints"]


def test_no_file_but_logs_is_cut(config, tmp_path, capsys):
    mine, settings = tmp_path / "mine.txt", config.run_dir / "config.json"
    for path in (mine, settings):
        path.write_text("precious")
    cut_logs(config.run_dir, {str(mine): 3, "../../mine.txt": 3, "config.json": 3})
    assert mine.read_text() == settings.read_text() == "precious"
    assert capsys.readouterr().err.count("lost points") == 3


@pytest.mark.parametrize(("step", "num_evaluations", "wrong", "right"), [(3, 0, (2, 3), 4), (3, 1, (2, 4), 3)])
def test_a_run_of_another_length_is_not_resumed_where_its_evaluations_differ(step, num_evaluations, wrong, right):
    """Every four steps and at the end."""
    config, state = TrainConfig(eval_interval=4), TrainState(TrainControl(0.1, [0.5] * num_evaluations), step)
    check_length(Path("there"), state, config, right)
    for total_steps in wrong:
        with pytest.raises(UserError, match=f"^there is not of a run of {total_steps} steps .*--num-epochs it was sav"):
            check_length(Path("there"), state, config, total_steps)


# Damage


def flip_a_bit(content):
    place = content.index(b"\n", content.index(b"fc1/kernel.npy")) + 1  # after the array's header
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def pickle_code(_):
    np.savez(file := io.BytesIO(), evil=np.array([{"code": 1}], dtype=object))
    return file.getvalue()


def fill_the_memory(_):
    np.savez_compressed(file := io.BytesIO(), large=np.zeros(10**6))
    return file.getvalue()


DAMAGES = [(file, damage, "") for file in ("arrays.npz", "state.json") for damage in (lambda c: c[:99], lambda _: b"")]
DAMAGES += [("arrays.npz", flip_a_bit, "Bad CRC-32.*fc1/kernel"), ("arrays.npz", pickle_code, "allow_pickle=False")]
DAMAGES += [("arrays.npz", fill_the_memory, "it expands to 8,")]


@pytest.mark.parametrize(("file", "damage", "words"), DAMAGES)
def test_a_damaged_checkpoint_is_named_and_costs_neither_older_ones_nor_logs(config, model, file, damage, words):
    save(config, model, 1, 2)
    for step, advice in ((2, "try --resume-from step_00000001$"), (1, "there is no older one; start the run again$")):
        path = config.run_dir / "checkpoints" / f"step_{step:08d}" / file
        path.write_bytes(damage(path.read_bytes()))
        (config.run_dir / "metrics.jsonl").touch()
        with pytest.raises(UserError, match=f"{path.parent.name} is damaged .*{words}.*; {advice}"):
            restore(config, model, path.parent.name)
    assert len(names(config)) == 2
    assert (config.run_dir / "metrics.jsonl").exists()


def test_a_state_is_read_as_it_was_written_and_nothing_else():
    values = json.loads(json.dumps(asdict(state_at(20)) | {"log_sizes": {"metrics.jsonl": 7}}))
    assert parse_state(values, "step_00000020") == (state_at(20), {"metrics.jsonl": 7})
    changes = [{"step": step} for step in (20.5, "20", -20, 21, None)]  # 21: not what the folder's name says
    changes += [{"seconds": [1]}, {"best_val_acc": "0.5"}, {"control": {}}, {"control": None}]
    changes += [{"control": values["control"] | change} for change in ({"lr": "x"}, {"val_accs": 3}, {"num_cuts": 0.5})]
    changes += [{"log_sizes": sizes} for sizes in ({"a": -1}, {"a": "many"}, [1], None)]
    for change in changes:
        with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
            parse_state(values | change, "step_00000020")
            pytest.fail(f"accepted: {change}")
