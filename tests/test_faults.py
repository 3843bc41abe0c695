"""What goes wrong while a run trains: no finite loss, wrong labels, the disk, the run's folder; and bfloat16."""

from startup import UserError, keras

import ctypes
import json
import math
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, assert_one_line_error, run_script
from test_resume import best_weights, control, final_state, points
from tqdm import tqdm

import checkpoints
from config import TrainConfig
from distribution import WHOLE
from train import Progress, Steps, TrainControl, parse, train

OVERFLOW = {"lr": 1e5, "reg": 1e38}  # the first loss is a number; the weights after the first step are none


@pytest.fixture(autouse=True)
def float32_again():
    """A model sets the number format of the whole process."""
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def config(sample_dir, tmp_path):
    """A run of 20 steps, evaluated at 10 and 20."""
    settings = {"data_dir": str(sample_dir), "runs_dir": str(tmp_path / "runs"), "batch_size": 20, "num_epochs": 2}
    return TrainConfig("logistic_regression", eval_interval=10, **settings)


def flags(config):
    """The command line of a run."""
    names = ("model_name", "config_name", "data_dir", "runs_dir", "width", "batch_size", "num_epochs", "eval_interval")
    names += ("checkpoint_interval", "keep_checkpoints")
    return [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]


def states(folder):
    """The names of the run's checkpoints, oldest first."""
    return [path.name for path in checkpoints.checkpoints(folder)]


def file_times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# A loss that is no number


def test_a_growing_loss_ends_the_run_and_the_last_good_state_is_kept(config):
    """Each step multiplies the weights by 1 - lr * reg = -99, so that the sum of their squares overflows."""
    config = replace(config, lr=1.0, reg=100.0, checkpoint_interval=1, keep_checkpoints=20)
    with pytest.raises(UserError) as error:
        train(config)
    found = re.match(r"the loss is inf at step (\d+); the state of (step_\d+) is kept; .*--lr", str(error.value))
    step, last = int(found[1]), found[2]
    assert last == states(config.run_dir)[-1]
    arrays, progress = checkpoints.read_state(config.run_dir / "checkpoints" / last)
    assert 2 < progress["step"] < step
    assert all(np.isfinite(array).all() for array in arrays.values())
    with pytest.raises(UserError, match=f"the loss is inf at step {step};"):  # it can be loaded; all goes as before
        train(config, resume=True)


def test_a_loss_that_is_no_number_is_one_line_of_the_command(config):
    settings = ("--lr", "1e6", "--reg", "1e6", "--checkpoint-interval", "1")
    result = run_script("train.py", *flags(config), *settings, cwd=config.data_dir)
    assert_one_line_error(result, "the loss is", "at step", "step_00000001 is kept", "--lr (now 1e+06)")
    assert not (config.run_dir / "best.keras").exists()


@pytest.mark.parametrize("checkpoint_interval", [500, 8])
def test_the_step_whose_loss_is_no_number_is_named_though_it_is_read_a_step_later(config, checkpoint_interval):
    config = replace(config, checkpoint_interval=checkpoint_interval)
    states = SimpleNamespace(busy=lambda: False, wait=lambda: None)
    steps = Steps(
        config, None, states, Progress(TrainControl(config.lr), step=5), SimpleNamespace(signal=None), 0.0, WHOLE
    )
    steps.bar, steps.last_step, steps.total_steps = tqdm(disable=True), 20, 20
    for batch, loss in enumerate((1.0, math.nan)):
        steps.on_train_batch_end(batch, {"loss": loss, "data_loss": loss, "top_1": 0.5})
    with pytest.raises(UserError, match="the loss is nan at step 7; nothing was saved yet"):
        steps.on_train_batch_end(2, {"loss": math.nan, "data_loss": math.nan, "top_1": 0.5})


def test_weights_that_are_no_numbers_are_not_saved(config):
    with pytest.raises(UserError, match=r"the weight fc1/kernel is .* at step 1; nothing was saved yet; .*--lr"):
        train(replace(config, checkpoint_interval=1, **OVERFLOW))
    assert states(config.run_dir) == []


def test_a_validation_loss_that_is_no_number_ends_the_run_and_makes_no_best_model(config):
    with pytest.raises(UserError, match=r"the validation loss is .* at step 1; nothing was saved yet; .*--lr"):
        train(replace(config, eval_interval=1, **OVERFLOW))
    assert states(config.run_dir) == []
    assert not (config.run_dir / "best.keras").exists()


def test_histograms_of_what_is_no_number_do_not_hide_the_reason(config):
    with pytest.raises(UserError, match=r"--lr \(now 100000\)"):
        train(replace(config, histogram_interval=1, **OVERFLOW))


def test_the_largest_values_that_are_accepted_end_in_one_line(config):
    with pytest.raises(UserError, match=r"(the loss|the weight \S+) is .*--lr \(now 1e\+06\) or --reg \(now 1e\+38\)"):
        train(replace(config, lr=1e6, reg=1e38, summary_interval=1))


def test_with_float16_the_other_format_is_advised_too(config):
    with pytest.raises(UserError, match=r"the loss is .*--lr .* or --precision mixed_bfloat16"):
        train(replace(config, precision="mixed_float16", **OVERFLOW))


# Labels that do not belong to the pictures


@pytest.fixture(scope="module")
def learnable(tmp_path_factory):
    """400 training pictures, enough to learn from, and 200 for validation, enough to tell chance by."""
    from sample_data import draw_sample_set

    return draw_sample_set(tmp_path_factory.mktemp("learnable") / "data", train_per_class=40, val_per_class=20)


def with_wrong_labels(data_dir, copy):
    """A copy of a dataset in which the validation pictures have each other's classes."""
    shutil.copytree(data_dir, copy, ignore=shutil.ignore_patterns("packed"))
    path = copy / "val" / "val_annotations.txt"
    names, classes = zip(*(line.split("\t", 1) for line in path.read_text().splitlines()), strict=True)
    classes = np.random.default_rng(0).permutation(classes)
    path.write_text("".join(f"{name}\t{rest}\n" for name, rest in zip(names, classes, strict=True)))
    return copy


@pytest.mark.parametrize("wrong", [True, False], ids=["wrong", "right"])
def test_validation_at_chance_while_training_learns_is_said(learnable, tmp_path, capsys, wrong):
    data_dir = with_wrong_labels(learnable, tmp_path / "data") if wrong else learnable
    plain = {"random_crop": False, "random_flip": False, "saturation": (1.0, 1.0)}
    config = TrainConfig("logistic_regression", data_dir=str(data_dir), runs_dir=str(tmp_path / "runs"), **plain)
    train(replace(config, lr=0.003, batch_size=20, num_epochs=10, eval_interval=200))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(lines) == wrong
    for words in ("is chance", "labels do not match the pictures", str(data_dir / "val"), "val_annotations.txt"):
        assert not wrong or words in lines[0]


# The disk and the run's folder


def test_a_full_disk_is_one_line_and_the_state_before_it_can_be_resumed(config):
    """The limit is above what the logs need and below a state of 3.8 MB."""
    config = replace(config, model_name="single_layer_nn", width=0.05, num_epochs=1, keep_checkpoints=5)
    train(config)
    state = config.run_dir / "checkpoints" / "step_00000010"
    size = (state / "arrays.npz").stat().st_size
    assert max(path.stat().st_size for path in checkpoints.log_files(config.run_dir)) < size // 3
    before, limit = file_times(state), size * 3 // 4
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))

    longer = replace(config, num_epochs=2)
    result = run_script("train.py", *flags(longer), "--resume", cwd=config.data_dir, preexec_fn=full)
    assert_one_line_error(result, "cannot write", "step_00000020", "File too large", "saved before is kept")
    assert "resumed at step 10" in result.stdout
    assert states(config.run_dir) == ["step_00000010"]
    assert file_times(state) == before
    assert not list((config.run_dir / "checkpoints").glob(".*"))

    whole = train(replace(longer, config_name="whole"))
    train(longer, resume=True)
    assert final_state(config.run_dir) == final_state(whole)
    assert best_weights(config.run_dir) == best_weights(whole)


def test_a_run_folder_that_is_removed_while_it_trains_is_one_line(config):
    config = replace(config, num_epochs=5000, checkpoint_interval=5, eval_interval=1000)
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *flags(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not states(config.run_dir):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    while config.run_dir.exists():  # a file may come while the others go
        shutil.rmtree(config.run_dir, ignore_errors=True)
    output, errors = process.communicate(timeout=100)
    assert_one_line_error(subprocess.CompletedProcess([], process.returncode, output, errors), str(config.run_dir))
    assert not config.run_dir.exists()


def without_roots_rights():
    """From here on a file's permissions hold for root too: two rights (CAP_DAC_...) are taken from what it starts."""
    prctl, drop_from_bounding_set = ctypes.CDLL(None).prctl, 24
    for right in (1, 2):
        prctl(drop_from_bounding_set, right, 0, 0, 0)


def test_a_folder_that_may_not_be_written_is_one_line(config):
    runs = Path(config.runs_dir)
    runs.mkdir()
    runs.chmod(0o555)
    if not subprocess.run(["test", "-w", runs], preexec_fn=without_roots_rights).returncode:
        pytest.skip("the tests run as root, which may not give up its right to write everywhere")
    result = run_script("train.py", *flags(config), cwd=config.data_dir, preexec_fn=without_roots_rights)
    assert_one_line_error(result, str(runs), "Permission denied")
    assert not list(runs.iterdir())


def test_a_run_that_may_not_be_written_any_more_is_one_line_and_kept(finished, config):
    folder = Path(shutil.copytree(finished, config.run_dir))
    before = file_times(folder)
    for path in (folder, folder / "checkpoints"):
        path.chmod(0o555)
    if not subprocess.run(["test", "-w", folder], preexec_fn=without_roots_rights).returncode:
        pytest.skip("the tests run as root, which may not give up its right to write everywhere")
    words = ("--resume-from", "step_00000010")
    result = run_script("train.py", *flags(config), *words, cwd=config.data_dir, preexec_fn=without_roots_rights)
    assert_one_line_error(result, str(folder), "Permission denied")
    assert file_times(folder) == before


# A run's folder under another name


@pytest.fixture(scope="module")
def finished(sample_dir, tmp_path_factory):
    """The folder of a run at its end, which still has its state of step 10."""
    config = TrainConfig("logistic_regression", "old", str(sample_dir), str(tmp_path_factory.mktemp("finished")))
    return train(replace(config, batch_size=20, num_epochs=2, eval_interval=10))


def resume_by_command(config, *words):
    """As train.py does with --resume or --resume-from."""
    arguments = parse(["--runs-dir", config.runs_dir, "--model-name", config.model_name, *words])
    return train(arguments.config, arguments.resume, arguments.resume_from)


def test_a_run_whose_folder_was_moved_and_renamed_goes_on(finished, config):
    new = Path(shutil.copytree(finished, replace(config, config_name="new").run_dir))
    moved = finished.rename(finished.with_name("moved away"))  # nothing is left where it was trained
    try:
        assert resume_by_command(config, "--config-name", "new", "--resume-from", "step_00000010") == new
        assert not finished.exists()
    finally:
        moved.rename(finished)
    assert (final_state(new), control(new)) == (final_state(finished), control(finished))
    assert checkpoints.read_config(new)[0].config_name == "new"


def test_a_copied_run_goes_on_and_the_original_is_left_alone(finished):
    copy = Path(shutil.copytree(finished, finished.with_name("copy")))
    before = file_times(finished)
    runs_dir = TrainConfig(finished.parent.name, runs_dir=str(finished.parent.parent))
    assert resume_by_command(runs_dir, "--config-name", "copy", "--resume", "--num-epochs", "3") == copy
    assert file_times(finished) == before
    assert (states(finished)[-1], states(copy)[-1]) == ("step_00000020", "step_00000030")


def test_going_back_can_be_stopped_at_any_moment(finished, config, monkeypatch):
    """Both the later states and the ends of the logs go; here the process ends between the two."""
    folder = Path(shutil.copytree(finished, config.run_dir))
    calls = []

    def first_only(action, *arguments):
        calls.append(action)
        if len(calls) > 1:
            raise KeyboardInterrupt
        action(*arguments)

    with monkeypatch.context() as patches:
        for name in ("cut_logs", "drop_after"):
            patches.setattr(checkpoints, name, partial(first_only, getattr(checkpoints, name)))
        with pytest.raises(KeyboardInterrupt):
            train(config, resume_from="step_00000010")
    train(config, resume=True)
    assert len(calls) == 2
    assert points(folder) == points(finished)


def test_resuming_a_name_that_is_not_there_is_one_line(config):
    with pytest.raises(UserError, match="nowhere holds no run"):
        resume_by_command(config, "--config-name", "nowhere", "--resume")
    assert not Path(config.runs_dir).exists()


# Half precision


@pytest.mark.parametrize(
    ("precision", "model", "width"),  # processors have no float16 of their own: convolutions would take long
    [("mixed_bfloat16", "vgg_16", 0.05), ("mixed_float16", "single_layer_nn", 0.02)],
)
def test_a_run_in_half_precision_resumes_exactly(config, precision, model, width):
    config = replace(config, model_name=model, width=width, precision=precision)
    folder = train(config)
    whole = (final_state(folder), control(folder), best_weights(folder))
    assert train(config, resume_from="step_00000010") == folder
    assert (final_state(folder), control(folder), best_weights(folder)) == whole
    arrays, _ = checkpoints.read_state(checkpoints.checkpoints(folder)[-1])
    assert {array.dtype.name for name, array in arrays.items() if "kernel" in name} == {"float32"}
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert all(np.isfinite(line["data_loss"]) for line in lines if line["split"] != "end")
    assert checkpoints.load_run(folder).model.output.dtype == "float32"
