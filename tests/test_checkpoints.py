"""What a run's folder refuses, keeps and throws away: everything that can go wrong with it, in one line each."""

from startup import UserError, keras

import errno
import importlib.metadata
import json
import resource
import shutil
import zipfile
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

import checkpoints
import files
from config import TrainConfig
from dataset import open_dataset

FULL = OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def largest_file(num_bytes):
    """As on a disk that is nearly full: the system refuses to let a file grow beyond this size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def tiny_model(num_classes=3, name="fc1"):
    """From (B, 4) to logits (B, C), compiled; all that a checkpoint holds is built."""
    features = keras.Input((4,), name="features")
    logits = keras.layers.Dense(num_classes, name=name)(features)
    model = keras.Model(features, logits, name="tiny")
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", metrics=[keras.metrics.MeanSquaredError("error")])
    model.train_on_batch(np.ones((2, 4)), np.ones((2, num_classes)))
    return model


def save_state(model, folder, progress, keep):
    """Saves, and waits until it is on disk."""
    config = TrainConfig(folder.parent.name, folder.name, runs_dir=str(folder.parent.parent), keep_checkpoints=keep)
    saver = checkpoints.StateSaver(config)
    try:
        saver.save(model, progress)
        saver.wait()
    finally:
        saver.close()


def progress(step):
    return {"step": step, "best_val_acc": 0.5, "seconds": 1.5, "control": {"lr": 0.1, "val_accs": [], "num_cuts": 0}}


@pytest.fixture
def folder(tmp_path):
    """A run's folder with three checkpoints, at steps 1, 2 and 3."""
    (tmp_path / "checkpoints").mkdir()
    model = tiny_model()
    for step in (1, 2, 3):
        save_state(model, tmp_path, progress(step), keep=3)
    return tmp_path


@pytest.fixture(scope="module")
def data(sample_dir):
    return open_dataset(sample_dir)


@pytest.fixture
def config(sample_dir, tmp_path):
    return TrainConfig(model_name="logistic_regression", data_dir=str(sample_dir), runs_dir=str(tmp_path / "runs"))


@pytest.fixture
def run(config, data):
    """The folder of a new run."""
    return checkpoints.create_run(config, data)


def names(folder):
    return [path.name for path in checkpoints.checkpoints(folder)]


def leftovers(folder):
    return list(folder.rglob(".writing-*"))


# Writing so that nothing is lost


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise FULL

    with pytest.raises(UserError, match="file.txt .No space left on device.; what was saved before is kept"):
        files.write_atomically(path, write)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_the_new_file_is_forced_to_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    events, path = [], tmp_path / "file.txt"
    monkeypatch.setattr(files, "force_to_disk", lambda file: events.append((file.name, path.exists())))
    files.write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert events == [(".writing-file.txt", False), (tmp_path.name, True)]


def test_left_overs_of_a_killed_save_are_in_nobodys_way(tmp_path):
    (tmp_path / ".writing-state").mkdir()
    (tmp_path / ".writing-state" / "half.npz").touch()
    files.write_atomically(tmp_path / "state", lambda path: path.mkdir())
    assert list((tmp_path / "state").iterdir()) == []


def test_a_full_disk_while_the_state_is_saved_keeps_the_states_before(folder):
    with largest_file(100), pytest.raises(UserError, match="step_00000004"):
        save_state(tiny_model(), folder, progress(4), keep=1)
    assert names(folder) == ["step_00000001", "step_00000002", "step_00000003"]
    assert not leftovers(folder)
    checkpoints.read_state(folder / "checkpoints" / "step_00000003")


def test_a_full_disk_while_the_best_model_is_saved_keeps_the_one_before(run, config):
    checkpoints.save_model(tiny_model(), config)
    before = (run / "best.keras").read_bytes()
    with largest_file(100), pytest.raises(UserError, match="best.keras"):
        checkpoints.save_model(tiny_model(), config)
    assert (run / "best.keras").read_bytes() == before
    assert not leftovers(run)


def test_a_run_folder_that_was_removed_is_one_line(folder):
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="step_00000004 .No such file or directory"):
        save_state(tiny_model(), folder, progress(4), keep=1)


# The resumable state


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    model = tiny_model()
    for step in (9, 10, 100, 1000):
        save_state(model, tmp_path, progress(step), keep=2)
    assert names(tmp_path) == ["step_00000100", "step_00001000"]


def test_a_state_comes_back_whole(folder):
    model, other = tiny_model(), tiny_model()
    save_state(model, folder, progress(4), keep=1)
    arrays, found = checkpoints.read_state(checkpoints.find_checkpoint(folder, None))
    assert found == progress(4) | {"log_sizes": {}}
    for variable in (*other.variables, *other.optimizer.variables, *other.metrics_variables):
        variable.assign(keras.ops.zeros_like(variable))
    checkpoints.restore_variables(other, arrays, folder)
    for ours, theirs in zip(checkpoints.variables(model).values(), checkpoints.variables(other).values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(arrays) == 2 + 4 + 4  # kernel, bias; step, rate, two momenta; sum and count of loss and error


def test_a_state_holds_the_seeds_of_dropout():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dropout(0.5, seed=7)(inputs))
    model.compile("sgd", "mse")
    assert [name for name in checkpoints.variables(model) if "seed" in name]


def test_another_number_of_classes_is_named_and_changes_nothing(folder):
    path, model = folder / "checkpoints" / "step_00000003", tiny_model(num_classes=5)
    before = model.get_weights()
    arrays, _ = checkpoints.read_state(path)
    with pytest.raises(UserError) as error:
        checkpoints.restore_variables(model, arrays, path)
    for words in ("step_00000003 is another", "fc1/kernel", "(4, 3) there", "(4, 5) here", "step_00000002"):
        assert words in str(error.value)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_another_models_state_is_named(folder):
    path = folder / "checkpoints" / "step_00000001"
    arrays, _ = checkpoints.read_state(path)
    with pytest.raises(UserError, match="another model's: '0000 fc.* there is none before it"):
        checkpoints.restore_variables(tiny_model(name="fc2"), arrays, path)


def half(content):
    return content[: len(content) // 2]


def one_bit_flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("file", ["arrays.npz", "progress.json"])
@pytest.mark.parametrize("damage", [half, lambda _: b"", lambda _: b"garbage"])
def test_a_damaged_state_is_named_and_the_one_before_it_offered(folder, file, damage):
    path = folder / "checkpoints" / "step_00000003"
    (path / file).write_bytes(damage((path / file).read_bytes()))
    with pytest.raises(UserError, match="step_00000003 is damaged .*; try --resume-from step_00000002$"):
        checkpoints.read_state(path)


def test_a_flipped_bit_is_found(folder):
    path = folder / "checkpoints" / "step_00000003"
    with np.load(path / "arrays.npz") as arrays:
        kernel = arrays["0000 fc1/kernel"].tobytes()
    content = (path / "arrays.npz").read_bytes()
    assert content.count(kernel) == 1
    (path / "arrays.npz").write_bytes(content.replace(kernel, one_bit_flipped(kernel)))
    with pytest.raises(UserError, match="Bad CRC-32.*fc1/kernel.*step_00000002"):
        checkpoints.read_state(path)


def test_a_damaged_header_inside_a_state_is_named(folder):
    path = folder / "checkpoints" / "step_00000003" / "arrays.npz"
    np.savez(path, kernel=np.zeros(3))
    with zipfile.ZipFile(path, "w") as file:  # whole as a zip; the array's own header lacks its end
        file.writestr("kernel.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f8'  \n")
    with pytest.raises(UserError, match="is damaged"):
        checkpoints.read_state(path.parent)


@pytest.mark.parametrize("flags", [b"\x01\x00", b"\x20\x00"], ids=["encrypted", "patched"])
def test_a_zip_that_claims_to_be_of_another_kind_is_named(folder, flags):
    path = folder / "checkpoints" / "step_00000003" / "arrays.npz"
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # local header, central directory
        start = content.index(signature) + offset
        content[start : start + 2] = flags
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        checkpoints.read_state(path.parent)


def test_a_missing_part_is_named_and_without_an_earlier_state_there_is_nothing_to_offer(folder):
    path = folder / "checkpoints" / "step_00000001"
    (path / "arrays.npz").unlink()
    with pytest.raises(UserError, match="is damaged .*No such file.*start the run anew"):
        checkpoints.read_state(path)


def test_no_pickle_is_read(folder):
    path = folder / "checkpoints" / "step_00000003"
    np.savez(path / "arrays.npz", evil=np.array([{"code": 1}], dtype=object))
    with pytest.raises(UserError, match="is damaged .*allow_pickle=False"):
        checkpoints.read_state(path)


def test_an_unknown_checkpoint_is_answered_with_those_that_there_are(folder):
    with pytest.raises(UserError, match="no checkpoint 'step_7'; it has: step_00000001, step_00000002, step_00000003"):
        checkpoints.find_checkpoint(folder, "step_7")
    assert checkpoints.find_checkpoint(folder, "step_00000002").name == "step_00000002"
    assert checkpoints.find_checkpoint(folder, None).name == "step_00000003"
    with pytest.raises(UserError, match="no checkpoint '../../etc'"):
        checkpoints.find_checkpoint(folder, "../../etc")


def test_going_on_from_an_earlier_checkpoint_drops_the_later_ones(folder):
    checkpoints.drop_after(folder / "checkpoints" / "step_00000002")
    assert names(folder) == ["step_00000001", "step_00000002"]


def test_logs_are_cut_to_where_they_were(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    events = tmp_path / "tensorboard" / "train" / "events"
    events.parent.mkdir(parents=True)
    events.write_bytes(b"12345")
    (tmp_path / "metrics.jsonl").write_text("one\n")
    save_state(tiny_model(), tmp_path, progress(1), keep=1)
    events.write_bytes(b"1234567")
    (tmp_path / "metrics.jsonl").write_text("one\ntwo\n")
    events.with_name("later").touch()
    _, found = checkpoints.read_state(tmp_path / "checkpoints" / "step_00000001")
    checkpoints.cut_logs(tmp_path, found["log_sizes"])
    assert events.read_bytes() == b"12345"
    assert (tmp_path / "metrics.jsonl").read_text() == "one\n"
    assert not events.with_name("later").exists()
    checkpoints.cut_logs(tmp_path, {})  # from the start
    assert checkpoints.log_files(tmp_path) == []


def test_no_file_but_the_runs_own_logs_is_cut(tmp_path, capsys):
    run, mine = tmp_path / "run", tmp_path / "mine.txt"
    (run / "tensorboard" / "train").mkdir(parents=True)
    for path in (mine, run / "config.json"):
        path.write_text("precious")
    checkpoints.cut_logs(run, {str(mine): 3, "../mine.txt": 3, "config.json": 3})
    assert mine.read_text() == (run / "config.json").read_text() == "precious"
    assert capsys.readouterr().err.count("has lost points") == 3


def test_a_run_with_a_link_in_it_is_not_gone_on_with(run, config, data, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    (run / "metrics.jsonl").symlink_to(mine)
    with pytest.raises(UserError, match="metrics.jsonl is a link, which no run makes"):
        checkpoints.reopen_run(config, data)


# A run's folder


def test_a_run_keeps_its_settings_its_classes_and_its_source(run, config, data):
    found, description = checkpoints.read_config(run)
    assert found == config
    assert description["class_ids"] == list(data.class_ids)
    assert description["data"] == {"fingerprint": data.fingerprint, "train": 200, "val": 50}
    assert (run / "source" / "train.py").exists()


def test_a_run_that_exists_is_not_overwritten(run, config, data):
    with pytest.raises(UserError, match="exists; .*--resume.*--config-name"):
        checkpoints.create_run(config, data)


def test_versions_are_those_of_the_modules_whatever_their_wheels_are_called(monkeypatch):
    def no_such_wheel(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", no_such_wheel)
    assert checkpoints.versions().items() >= {"keras": keras.__version__, "numpy": np.__version__}.items()


def test_changed_versions_and_a_changed_model_file_are_refused(run, config, data, monkeypatch):
    (run / "source" / "logistic_regression.py").write_text("# another one")
    with pytest.raises(UserError, match="logistic_regression.py is not what it was"):
        checkpoints.reopen_run(config, data)
    shutil.copy(checkpoints.ROOT / "logistic_regression.py", run / "source")
    monkeypatch.setattr(checkpoints, "versions", lambda: {"keras": "3.0.0"})
    with pytest.raises(UserError, match="keras was .*, now 3.0.0"):
        checkpoints.reopen_run(config, data)


@pytest.mark.parametrize("name", ["train", "losses", "input_pipe", "logistic_regression"])
def test_changed_sources_are_refused_but_not_for_a_comment(run, config, data, name):
    path = run / "source" / f"{name}.py"
    path.write_text(path.read_text() + '\n# a remark\n"""And a docstring."""\n')
    checkpoints.reopen_run(config, data)
    path.write_text(path.read_text() + "\nsomething = 1\n")
    with pytest.raises(UserError, match=f"{name}.py is not what it was; the run's own copy is"):
        checkpoints.reopen_run(config, data)
    path.unlink()
    with pytest.raises(UserError, match=f"{name}.py is missing"):
        checkpoints.reopen_run(config, data)


def test_what_a_model_imports_of_the_project_counts_as_its_source():
    assert checkpoints._model_sources("logistic_regression") == ["logistic_regression"]
    assert checkpoints._model_sources("vgg_16_bn") == ["vgg_16_bn", "normalisation", "vgg_16"]


def test_another_machine_is_said_and_both_are_kept(run, config, data, monkeypatch, capsys):
    first = checkpoints.hardware()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    second = checkpoints.hardware()
    assert second == f"{first}, OMP_NUM_THREADS=1"
    for before, now in ((first, second), (second, first)):
        monkeypatch.setattr(checkpoints, "hardware", lambda now=now: now)
        checkpoints.reopen_run(config, data)
        assert f"was trained on {before}, and goes on on {now}: it will not be" in capsys.readouterr().err
        checkpoints.write_description(config, data)
        checkpoints.reopen_run(config, data)
        assert "goes on" not in capsys.readouterr().err
    assert checkpoints.read_config(run)[1]["hardware"] == f"{first}; then {second}; then {first}"
    monkeypatch.setattr(checkpoints, "hardware", lambda: first[1:])  # another number of cores
    checkpoints.reopen_run(config, data)
    assert "goes on" in capsys.readouterr().err


def test_a_run_that_has_lost_its_states_is_not_begun_again(run, config, data):
    save_state(tiny_model(), run, progress(1), keep=1)
    shutil.rmtree(run / "checkpoints" / "step_00000001")
    with pytest.raises(UserError, match="the states in .*checkpoints are gone; start it anew"):
        checkpoints.reopen_run(config, data)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="checkpoints is gone; start it anew"):
        checkpoints.reopen_run(config, data)


def test_a_run_that_has_lost_its_config_is_not_taken_for_a_new_one(run, config, data):
    save_state(tiny_model(), run, progress(1), keep=1)
    (run / "config.json").unlink()
    with pytest.raises(UserError, match="has lost its config.json; give this run another --config-name"):
        checkpoints.create_run(config, data)


def test_what_does_not_touch_the_mathematics_may_change(run, config, data):
    changed = replace(config, num_epochs=7, summary_interval=3, histogram_interval=2, checkpoint_interval=9)
    changed = replace(changed, keep_checkpoints=5)
    assert checkpoints.reopen_run(changed, data) == run
    checkpoints.write_description(changed, data)
    assert checkpoints.read_config(run)[0] == changed


@pytest.mark.parametrize(
    "change",
    [{"lr": 0.5}, {"seed": 1}, {"batch_size": 32}, {"eval_interval": 7}, {"random_flip": False}, {"width": 0.5}],
    ids=lambda change: next(iter(change)),
)
def test_any_other_change_is_refused_and_named(run, config, data, change):
    (name, now), before = next(iter(change.items())), checkpoints.read_config(run)
    with pytest.raises(UserError, match=f"{name} was {getattr(config, name)}, now {now}"):
        checkpoints.reopen_run(replace(config, num_epochs=7, **change), data)
    assert checkpoints.read_config(run) == before


def test_all_refused_settings_are_named_together(run, config, data):
    with pytest.raises(UserError, match="lr was 0.01, now 0.5; .*momentum was 0.9, now 0.1; start it anew"):
        checkpoints.reopen_run(replace(config, lr=0.5, momentum=0.1), data)


def test_changed_data_are_refused(run, config, data):
    with pytest.raises(UserError, match="pictures or labels in .* are not those that the run began with"):
        checkpoints.reopen_run(config, replace(data, fingerprint="0" * 64))


def test_another_backend_is_refused(run, config, data, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "other")
    with pytest.raises(UserError, match="KERAS_BACKEND was .*, now other"):
        checkpoints.reopen_run(config, data)


def test_a_second_process_is_refused_and_touches_nothing(run, config, data):
    being_written = run / "checkpoints" / ".writing-step_00000001"
    with checkpoints.opened_run(config, data, resume=True):
        being_written.mkdir()
        for resume in (True, False):
            with (
                pytest.raises(UserError, match="being trained by another train.py"),
                checkpoints.opened_run(config, data, resume),
            ):
                pass
        assert being_written.exists()
    with checkpoints.opened_run(config, data, resume=True):  # the first has ended
        assert not being_written.exists()


def test_resuming_a_run_that_is_not_there_makes_no_folder(config, data):
    with pytest.raises(UserError, match="holds no run"), checkpoints.opened_run(config, data, resume=True):
        pass
    assert not config.run_dir.parent.exists()


WRONG_KINDS = '{"config": [], "class_ids": [], "class_names": [], "data": {}}'


def change_config(run, **changes):
    path = run / "config.json"
    description = json.loads(path.read_text())
    description["config"] |= changes
    path.write_text(json.dumps(description))


# Opening the best model


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match="nowhere holds no run"):
        checkpoints.load_run(tmp_path / "nowhere")


def test_a_run_without_an_evaluation(run):
    with pytest.raises(UserError, match="best.keras is not there.*--resume"):
        checkpoints.load_run(run)


@pytest.mark.parametrize("content", ["", "{", "[1]", "\0", "{}", '{"config": {}}', '"x"', WRONG_KINDS])
def test_a_broken_config_is_named(run, content):
    (run / "config.json").write_text(content)
    with pytest.raises(UserError, match="config.json"):
        checkpoints.load_run(run)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_speed": 1}, "unknown setting learning_speed"),
        ({"lr": "fast"}, "lr is 'fast', of a wrong type"),
        ({"batch_size": 1.5}, "batch_size is 1.5, of a wrong type"),
        ({"random_flip": "no"}, "random_flip is 'no', of a wrong type"),
        ({"saturation": 3}, "saturation is 3, of a wrong type"),
        ({"saturation": ["a", "b"]}, "saturation is .*, of a wrong type"),
        ({"saturation": [1, 2, 3]}, "saturation is .*, of a wrong type"),
        ({"loss": "mse"}, "loss is 'mse'; it must be one of: softmax_ce, "),
        ({"precision": "float8"}, "precision is 'float8'; it must be one of: float32, "),
        ({"lr": -1}, "lr is -1"),
        ({"model_name": "../x"}, "model_name is '../x'"),
        ({"model_name": "os"}, "model_name is 'os'; the models are: .*vgg_16"),
        ({"model_name": "train"}, "model_name is 'train'; the models are"),
    ],
)
def test_a_config_of_somebody_else_chooses_only_among_our_models_and_settings(run, changes, words):
    change_config(run, **changes)
    with pytest.raises(UserError, match=words):
        checkpoints.load_run(run)


def image_model(num_classes):
    pictures = keras.Input((56, 56, 3), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 128, offset=-1)(pictures))
    return keras.Model(pictures, keras.layers.Dense(num_classes)(x))


def test_a_truncated_best_model_is_named(run, config):
    checkpoints.save_model(image_model(10), config)
    path = run / "best.keras"
    path.write_bytes(half(path.read_bytes()))
    with pytest.raises(UserError, match="best.keras is damaged or no .keras file; train it, or get it, again"):
        checkpoints.load_run(run)


def test_a_best_model_of_another_number_of_classes_is_named(run, config):
    checkpoints.save_model(image_model(7), config)
    with pytest.raises(UserError, match="best.keras has 7 classes, but config.json names 10$"):
        checkpoints.load_run(run)


@pytest.mark.parametrize("shape", [(56, 56, 1), (4,), ()], ids=str)
def test_a_best_model_that_takes_no_pictures_is_named(run, config, shape):
    inputs = keras.Input(shape)
    x = keras.layers.Reshape((-1,))(inputs) if shape else keras.ops.expand_dims(inputs, -1)
    checkpoints.save_model(keras.Model(inputs, keras.layers.Dense(10)(x)), config)
    with pytest.raises(
        UserError, match=r"best.keras makes .*, but pictures \(None, S, S, 3\) must become logits \(None, C\)"
    ):
        checkpoints.load_run(run)


def test_a_best_model_that_gives_maps_is_named(run, config):
    pictures = keras.Input((56, 56, 3))
    checkpoints.save_model(keras.Model(pictures, keras.layers.Conv2D(10, 1)(pictures)), config)
    with pytest.raises(UserError, match="best.keras makes .* must become logits"):
        checkpoints.load_run(run)


def test_a_best_model_that_brings_code_is_refused(run, config):
    pictures = keras.Input((56, 56, 3), dtype="uint8")
    x = keras.layers.Lambda(lambda pictures: keras.ops.mean(keras.ops.cast(pictures, "float32"), (1, 2)))(pictures)
    checkpoints.save_model(keras.Model(pictures, keras.layers.Dense(10)(x)), config)
    with pytest.raises(UserError, match="best.keras cannot be loaded"):
        checkpoints.load_run(run)


def test_a_best_model_comes_back(run, config, data):
    model = image_model(10)
    checkpoints.save_model(model, config)
    found = checkpoints.load_run(run)
    np.testing.assert_array_equal(
        found.model.predict_on_batch(data.val.images[:3, :56, :56]),
        model.predict_on_batch(data.val.images[:3, :56, :56]),
    )
    assert found.class_names == data.class_names
