"""Training as a whole: the command line, what is printed, stops, image sizes, EMA, a loss of NaN, wrong labels."""

import math
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from helpers import make_dataset, make_run, quick_config, write
from test_cli import Terminal
from test_resume import assert_same_run, curves

import train
from evaluate import compute_scores
from tiny_imagenet import ROOT
from tiny_imagenet.callbacks import StepCallback, StopSignals
from tiny_imagenet.checkpoint import CheckpointManager, TrainState, read_checkpoint
from tiny_imagenet.config import TrainConfig
from tiny_imagenet.dataset import open_dataset
from tiny_imagenet.devices import describe_hardware
from tiny_imagenet.errors import UserError
from tiny_imagenet.layers import batch_norm
from tiny_imagenet.messages import RunLog
from tiny_imagenet.model_io import load_run, read_initial_weights
from tiny_imagenet.recipes import RECIPES
from tiny_imagenet.run_dir import list_checkpoints, read_config
from tiny_imagenet.schedules import FixedLengthSchedule, TrainControl
from tiny_imagenet.summaries import Summaries


@pytest.fixture(scope="module", autouse=True)
def quick_runs():
    """Runs log no images and no graph (test_summaries.py); however slow the disk is, they save what is due."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(Summaries, "start", lambda *_: None)
        patches.setattr(CheckpointManager, "busy", lambda _: False)
        yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def config(sample_dir, tmp_path) -> TrainConfig:
    return quick_config(sample_dir, tmp_path / "runs")


def points(folder, split: str) -> dict[int, dict]:
    return {point["step"]: point for point in curves(folder) if point["split"] == split}


# The command line


def test_help_names_every_setting_and_every_recipe(capsys):
    with pytest.raises(SystemExit):
        train.parse(["--help"])
    text = capsys.readouterr().out
    assert all(f"--{item.name.replace('_', '-')}" in text for item in fields(TrainConfig))
    assert all(f"  {recipe}: " in text for recipe in RECIPES)


def test_settings_of_a_recipe_can_be_changed_and_a_resumed_run_keeps_its_own(sample_dir, tmp_path):
    changes = ["--lr", "0.25", "--no-random-flip", "--saturation", "1", "1"]
    expected = replace(RECIPES["vgg_16_bn"], lr=0.25, random_flip=False, saturation=(1.0, 1.0))
    assert train.parse(["--recipe", "vgg_16_bn", *changes]).config == expected
    saved, _ = read_config(make_run(tmp_path, sample_dir, model_name="single_layer_nn", width=0.02, lr=0.3))
    words = ["--recipe", "single_layer_nn", "--runs-dir", str(tmp_path), "--resume"]
    assert train.parse(words).config == saved
    assert train.parse([*words, "--num-epochs", "2"]).config == replace(saved, num_epochs=2)


def test_resuming_packs_no_images_in_a_folder_that_only_the_run_names(tmp_path):
    folder = make_dataset(tmp_path / "data")
    run = make_run(tmp_path / "runs", folder, model_name="logistic_regression")
    shutil.rmtree(folder / "packed")
    words = ["--recipe", "logistic_regression", "--runs-dir", str(tmp_path / "runs"), "--resume"]
    arguments = train.parse(words)
    with pytest.raises(UserError, match=f"which only the run names, must be packed first.* add --data-dir {folder}"):
        train.train(arguments.config, resume=True, data_is_named=arguments.data_is_named)
    assert not (folder / "packed").exists() and run.exists()
    assert train.parse([*words, "--data-dir", str(folder)]).data_is_named


REFUSALS = {
    "--batchsize 3": "--batch-size",  # tyro's
    "--lr -1": "error: lr is -1.0; it must be 0 to",
    "--model-name vgg_61": "error: .*vgg_61.* logistic_regression, resnet_18, .*-> keras.Model",
    "--image-sizes 32 48 --schedule linear": "error: image_sizes .*--random-resized-crop",
    "--init-from nowhere": "error: nowhere is not a run",
    "--resume --resume-from step_00000010": "error: .* only one of them",
}


@pytest.mark.parametrize(("words", "answer"), REFUSALS.items())
def test_wrong_settings_are_named_before_the_dataset_is_downloaded(tmp_path, monkeypatch, capsys, words, answer):
    monkeypatch.setattr(train, "open_run_dataset", lambda *_, **__: pytest.fail("the dataset was opened"))
    monkeypatch.setattr(sys, "argv", ["train.py", "--runs-dir", str(tmp_path / "runs"), *words.split()])
    with pytest.raises(SystemExit) as end:
        train.main()
    assert re.search(answer, capsys.readouterr().err + str(end.value))
    assert end.value.code == 2 or "\n" not in end.value.code
    assert not list(tmp_path.iterdir())


# A run, seen by its user


@pytest.mark.slow
def test_a_new_file_is_a_new_model_and_the_run_says_what_it_did(sample_dir, tmp_path):
    for path in (*ROOT.glob("*.py"), *ROOT.glob("tiny_imagenet/*.py")):
        write(tmp_path / path.relative_to(ROOT), path.read_bytes())
    text = (ROOT / "logistic_regression.py").read_text()
    write(tmp_path / "my_model.py", text.replace("logistic_regression", "my_model"))
    words = "train.py --model-name my_model --batch-size 20 --num-epochs 2 --eval-interval 15 --summary-interval 4"
    command = [sys.executable, *shlex.split(words), "--data-dir", sample_dir]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    name, (about, device, settings, *lines, end, following) = "runs/my_model/default", result.stdout.splitlines()
    assert (tmp_path / name / "log.txt").read_text() == result.stdout.removesuffix(following + "\n")
    assert device == f"on the CPU: {describe_hardware()}; float32"
    counts = "94,090 parameters, 10 classes, 200 training and 50 validation images, 20 steps of 20 images"
    assert about == f"{name}: {counts}"
    assert "model_name my_model (default vgg_16)" in settings and "batch_size 20 (default 64)" in settings
    training, validation = (points(tmp_path / name, split) for split in ("train", "validation"))
    evaluations = [lines.pop(place) for place in (3, -1)]
    for line, (step, point) in zip(lines, training.items(), strict=True):
        shown = f"training loss {point['data_loss']:.3f}, top-1 {point['top_1']:.2%}; .* images/s"
        left = rf"epoch {step / 10} of 2, at most \d\d:\d\d left"
        assert re.fullmatch(f"step {step}: {shown}; {left}", line)
    losses = {15: r"\d\.\d{3}", 20: f"{training[20]['data_loss']:.3f}"}  # 15: since the point at step 12
    for line, (step, point) in zip(evaluations, validation.items(), strict=True):
        shown = f"step {step}: training loss {losses[step]}, .*; validation loss {point['data_loss']:.3f}, "
        assert re.fullmatch(f"{shown}top-1 {point['top_1']:.2%}, .*; learning rate 0.01; .* images/s", line)
    best = max(point["top_1"] for point in validation.values())
    reason = r"finished at step 20 \(all epochs done\) after \d+ s: best validation top-1"
    assert re.fullmatch(rf"{reason} {best:.2%}, in {name}/best.keras", end)
    assert following == f"next: python evaluate.py {name}, or: tensorboard --logdir runs"


@pytest.mark.slow
def test_a_run_without_terminal_input_or_output_ignores_a_hangup_and_stops_on_a_clusters_warning(config):
    """As nohup starts it, then with everything closed."""
    words = [sys.executable, str(ROOT / "train.py"), "--data-dir", config.data_dir, "--runs-dir", config.runs_dir]
    words += ["--model-name", config.model_name, "--num-epochs", "9999999", "--eval-interval", "9999999"]
    closed = f"trap '' HUP; exec {shlex.join([*words, '--batch-size', '20', '--summary-interval', '9'])} <&- >&- 2>&-"
    process, log = subprocess.Popen(["sh", "-c", closed]), config.run_dir / "log.txt"
    for number, awaited in ((signal.SIGHUP, "step 9:"), (signal.SIGUSR1, "step 99:")):
        while awaited not in (log.read_text() if log.exists() else ""):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
    assert process.wait(60) == 128 + signal.SIGUSR1
    last = r"\nstopped at step \d+, checkpoint saved; to continue: python train.py .* --resume\n$"
    assert re.search(last, log.read_text())


@pytest.mark.parametrize("number", StopSignals.SIGNALS)
def test_signals_that_come_twice_stop_once_but_ctrl_c_at_once_and_ignored_ones_never(number, capsys):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert not stop.requested(1)
        signal.raise_signal(number)
        assert stop.requested(1)
        with pytest.raises(KeyboardInterrupt) if number == signal.SIGINT else nullcontext():
            signal.raise_signal(number)
    assert (stop.received, capsys.readouterr().err.count("stopping")) == (number, 1)
    assert signal.signal(number, signal.SIG_IGN) == before
    with StopSignals() as stop:
        signal.raise_signal(number)
        assert not stop.requested(1)
    signal.signal(number, before)


def test_without_progress_the_learning_rate_is_cut_four_times_and_the_run_ends(config, monkeypatch, capsys):
    monkeypatch.setattr(train, "evaluate", lambda *_: {"data_loss": 1.0, "top_1": 0.5, "top_5": 0.5})
    compared = []
    monkeypatch.setattr(RunLog, "warn_of_wrong_labels", lambda _, ours, theirs, __: compared.append((ours, theirs)))
    folder = train.train(replace(config, eval_interval=2, lr=0.001, summary_interval=1))
    rates = [0.001 / 5 ** max(0, step // 2 - 2) for step in range(12)]  # first cut at the third evaluation, step 6
    assert [point["learning_rate"] for point in points(folder, "train").values()] == pytest.approx(rates)
    assert "finished at step 12 (no progress after the fourth cut" in capsys.readouterr().out
    assert curves(folder)[-1] == {"split": "end", "step": 12}
    assert compared == [(points(folder, "train")[step]["top_1"], 0.5) for step in range(2, 13, 2)]


def test_metrics_of_a_step_are_read_while_the_next_one_runs_unless_they_are_needed(config, monkeypatch):
    """So that a GPU need not wait: 10 steps, evaluated at 5 and 10, with points of the curves at 4 and 8."""
    found = []

    def note_read(self, logs, step, read=StepCallback._read):
        found.extend([(self._state.step, step)] if logs else [])
        assert not any(isinstance(value, float) for value in (logs or {}).values())  # Keras has not read them
        return read(self, logs, step)

    monkeypatch.setattr(StepCallback, "_read", note_read)
    train.train(replace(config, num_epochs=1, eval_interval=5, summary_interval=4))
    assert found == [(2, 1), (3, 2), (4, 3), (4, 4), (5, 5), (7, 6), (8, 7), (8, 8), (10, 9), (10, 10)]


# Everything at once: larger and larger images, a schedule of fixed length, Muon, EMA, bfloat16


def small_net(_: TrainConfig, num_classes: int) -> keras.Model:
    """A convolution with batch normalization in place of ResNet-18."""
    images = keras.Input((None, None, 3), dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 128, offset=-1, name="rescale")(images)
    x = keras.layers.Conv2D(8, 3, 2, use_bias=False, name="conv1")(x)
    x = keras.layers.ReLU(name="relu1")(batch_norm(name="norm1")(x))
    x = keras.layers.Dense(num_classes, name="fc")(keras.layers.GlobalAveragePooling2D(name="pool")(x))
    return keras.Model(images, keras.layers.Activation("linear", dtype="float32", name="logits")(x))


@pytest.fixture(scope="module")
def fixed(sample_dir):
    """20 steps, the first 14 on smaller images; evaluated at 8, 16 and 20."""
    settings = {"model_name": "resnet_18", "lr": 0.05, "optimizer": "muon", "ema_momentum": 0.8}
    settings |= {"schedule": "linear", "warmup": 0.25, "image_sizes": (32, 32, 48), "random_resized_crop": (44, 64)}
    settings |= {"eval_interval": 8, "summary_interval": 5, "checkpoint_interval": 1, "keep_checkpoints": 20}
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr("resnet_18.resnet_18", small_net)
        yield quick_config(sample_dir, "", precision="mixed_bfloat16", **settings)


@pytest.fixture(scope="module")
def whole(fixed, tmp_path_factory):
    """The folder of such a run that was never stopped; it has all its checkpoints."""
    sizes, rescale = set(), keras.layers.Rescaling.call

    def note_size(self, images):
        if not isinstance(images, keras.KerasTensor):
            sizes.add(images.shape[1])
        return rescale(self, images)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(keras.layers.Rescaling, "call", note_size)
        folder = train.train(replace(fixed, runs_dir=str(tmp_path_factory.mktemp("whole"))))
    assert sizes == {32, 37, 48, 56}  # in training and in evaluation; None would be a slower graph for any size
    return folder


def test_stops_at_any_step_change_nothing(whole, fixed, tmp_path, monkeypatch, capsys):
    """In an interval as the images get larger, at an interval's last step, and at the last of all."""
    config, stops = replace(fixed, runs_dir=str(tmp_path)), (14, 16, 20)

    def requested(self, step):
        self.received = signal.SIGTERM if step in stops else self.received
        return self.received is not None

    monkeypatch.setattr(StopSignals, "requested", requested)
    for step in stops:
        with pytest.raises(SystemExit) as end:
            train.train(config, resume=step != stops[0])
        assert end.value.code == 128 + signal.SIGTERM
        assert [int(path.name[5:]) for path in list_checkpoints(config.run_dir)] == list(range(1, step + 1))
        assert (f"\nstopped at step {step}, checkpoint saved; " in capsys.readouterr().out) == (step < 20)
    assert_same_run(config.run_dir, whole)


def test_the_averaged_weights_at_the_end_are_kept_and_the_schedule_is_followed(whole, fixed):
    assert not (whole / "best.keras").exists()
    run, validation = load_run(whole), points(whole, "validation")
    assert run.model.input_shape == (None, 56, 56, 3)
    arrays, _, _ = read_checkpoint(list_checkpoints(whole)[-1])
    by_path = {name.partition(" ")[2]: array for name, array in arrays.items()}
    (average,) = (array for path, array in by_path.items() if "average" in path and "fc_kernel" in path)
    np.testing.assert_array_equal(run.model.get_layer("fc").kernel, average)
    assert not np.array_equal(average, by_path["fc/kernel"])
    assert list(validation) == [8, 16, 20]
    scores = compute_scores(run.model, open_dataset(fixed.data_dir).val, fixed)
    assert scores.single_crop_top_1 == pytest.approx(validation[20]["top_1"])
    rates = {step: point["learning_rate"] for step, point in points(whole, "train").items()}
    schedule = FixedLengthSchedule(fixed, 20)
    assert rates == pytest.approx({step: float(schedule(step)) for step in (5, 10, 15, 20)})


def test_a_new_last_layer_is_trained_on_frozen_features(whole, fixed, tmp_path, capsys):
    config = quick_config(fixed.data_dir, tmp_path, model_name="resnet_18", init_from=str(whole), num_epochs=1)
    config = replace(config, freeze_features=True, loss="svm", reg=1.0, reg_last_only=True, precision=fixed.precision)
    folder = train.train(config)
    assert f"from {whole}; new: fc/kernel, fc/bias" in capsys.readouterr().out
    before, after = ({w.path: np.asarray(w) for w in load_run(path).model.weights} for path in (whole, folder))
    assert {path for path in after if not np.array_equal(after[path], before[path])} == {"fc/kernel", "fc/bias"}
    assert not read_initial_weights(replace(config, init_from="gone"), resuming=True)  # the checkpoint has them


def test_a_model_of_one_image_size_is_not_given_others(fixed, tmp_path):
    with pytest.raises(UserError, match="vgg_16 needs images of one size; remove image_sizes"):
        train.train(replace(fixed, model_name="vgg_16", width=0.02, runs_dir=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_a_run_in_float16_resumes_exactly(config, tmp_path, monkeypatch):
    """Its optimizer scales the loss; "auto" is recorded as what it was."""
    monkeypatch.setattr(train, "resolve_precision", lambda config, _: replace(config, precision="mixed_float16"))
    folder = train.train(replace(config, precision="auto"))
    saved, _ = read_config(folder)
    assert saved.precision == "mixed_float16"
    copy = replace(saved, runs_dir=str(tmp_path / "copy"))
    shutil.copytree(folder, copy.run_dir)
    train.train(copy, resume_from="step_00000010")
    assert_same_run(copy.run_dir, folder)
    model = load_run(folder).model
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert (model.get_layer("fc1").compute_dtype, model.output.dtype) == ("float16", "float32")


# A loss that is NaN or infinite


def test_a_growing_loss_ends_the_run_as_log_txt_says_and_the_last_finite_checkpoint_is_kept(config, monkeypatch):
    """L2 multiplies the weights by 1 - lr * reg = -99 in each step, until the sum of their squares overflows."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Terminal())
    config = replace(config, lr=1.0, reg=100.0, checkpoint_interval=1, summary_interval=1)
    with pytest.raises(UserError) as error:
        train.train(config)
    arrays, state, _ = read_checkpoint(list_checkpoints(config.run_dir)[-1])
    ended = f"the loss is inf at step {state.step + 1}; checkpoint step_{state.step:08d} is kept; try another --conf"
    assert str(error.value).startswith(ended)
    assert state.step > 2
    assert all(np.isfinite(array).all() for array in arrays.values())
    _, _, _, *points_of_curves, last = (config.run_dir / "log.txt").read_text().splitlines()
    assert last == f"error: {error.value}"
    assert len(points_of_curves) == state.step
    assert not any(line in sys.stdout.getvalue() for line in points_of_curves)  # the bar shows them
    assert re.search(r"epoch 0.\d of 2, loss \d+.\d{3}, top-1", sys.stderr.getvalue())


FINDERS = {"checkpoint": "the weight fc1/kernel", "eval": "the validation loss", "histogram": "the loss"}


@pytest.mark.parametrize("interval", FINDERS)
def test_what_is_not_finite_is_named_and_not_saved(config, interval):
    """With the largest values: the first loss is finite, the weights after the first step are not."""
    advice = r"there is no checkpoint yet; try another --config-name and a lower --lr \(.*\) or --reg \(now 1e\+38\)"
    with pytest.raises(UserError, match=rf"{FINDERS[interval]} is (nan|inf|-inf) at step \d; {advice}"):
        train.train(replace(config, lr=1e6, reg=1e38, **{f"{interval}_interval": 1}))
    assert not list_checkpoints(config.run_dir)
    assert not (config.run_dir / "best.keras").exists()


@pytest.mark.parametrize("interval", [500, 8])
def test_the_step_with_the_nan_is_named_though_it_is_read_a_step_later(config, interval):
    config = replace(config, checkpoint_interval=interval, weight_decay=0.5, precision="mixed_float16")
    checkpoints = SimpleNamespace(busy=lambda: False, wait=lambda: None)
    state, stop = TrainState(TrainControl(config.lr), step=5), SimpleNamespace(requested=lambda _: False)
    log = SimpleNamespace(update_bar=lambda *_: None)
    callback = StepCallback(config, 20, state, None, checkpoints, log, None, stop, start_time=0.0)
    callback._end = 20
    answer = r"the loss is nan at step 7; there is no .*--lr \(now 0.01\) or --weight-decay .* or --precision mixed_bf"
    with pytest.raises(UserError, match=answer):
        for loss in (1.0, math.nan, math.nan):
            callback.on_train_batch_end(0, {"loss": loss, "data_loss": loss, "top_1": 0.5})
    assert state.step == 8


# Labels that do not belong to the images


def test_when_labels_look_wrong(config, capsys):
    """Of ten classes; 50 images are too few to tell 0.1 from 0.2."""
    log = RunLog(config, 20, TrainState(TrainControl(config.lr)))
    warning = "warning: top-1 is 50.0% in training but 10.0% in validation, no better than chance: "
    cases = ((0.5, 0.1, 200, 1), (0.5, 0.2, 200, 0), (0.15, 0.1, 200, 0), (0.5, 0.1, 50, 0))
    for train_acc, val_acc, num_val, warns in cases:
        val = SimpleNamespace(labels=np.zeros(num_val))
        log.warn_of_wrong_labels(train_acc, val_acc, SimpleNamespace(class_ids=range(10), val=val, root=Path("data")))
        assert capsys.readouterr().err == f"{warning}check that the labels in data/val are right\n" * warns
