"""The rule of 2017 for the rate, the command line, a model dropped beside the others."""

from startup import UserError

import json
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import fields, replace

import numpy as np
import pytest
from conftest import ROOT, assert_one_line_error, run_script
from test_resume import final_state, points

import checkpoints
import models
import train
from config import RECIPES, TrainConfig
from dataset import open_dataset
from sample_data import draw_sample_set
from train import TrainControl


def rates(val_accs):
    """The rate after each evaluation, as a multiple of the first, and whether the run is then over."""
    control, found = TrainControl(lr=1.0), []
    for val_acc in val_accs:
        control.add_val_acc(val_acc)
        control.update_lr()
        found.append((round(control.lr, 6), control.done()))
    return [rate for rate, _ in found], [done for _, done in found]


@pytest.mark.parametrize(
    ("val_accs", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1]),  # progress
        ([0.3, 0.2], [1, 1]),  # never before the third
        ([0.1, 0.3, 0.29], [1, 1, 0.2]),  # below the best
        ([0.3, 0.1, 0.2, 0.4], [1, 1, 0.2, 0.2]),  # below the best of all, not only of the last two
        ([0.300, 0.302, 0.3029], [1, 1, 0.2]),  # best, but within 0.002 of the mean, 0.301
        ([0.300, 0.302, 0.3031], [1, 1, 1]),  # 0.0021 above the mean
        ([0.1, 0.1, 0.1], [1, 1, 0.2]),  # equal to the best, and no progress
        ([0.5, 0.4, 0.4, 0.6], [1, 1, 0.2, 0.2]),
    ],
)
def test_rate_is_cut_to_a_fifth_when_there_is_no_progress(val_accs, expected):
    assert rates(val_accs)[0] == expected


def test_the_fourth_cut_ends_the_run():
    found, done = rates([0.5, 0.4, 0.4, 0.4, 0.4, 0.4])
    assert found == [1, 1, 0.2, 0.04, 0.008, 0.0016]
    assert done == [False] * 5 + [True]


def test_every_setting_has_a_help_text_and_the_defaults_are_those_of_2017(capsys):
    with pytest.raises(SystemExit) as end:
        train.parse(["--help"])
    assert not end.value.code
    text = capsys.readouterr().out
    for item in fields(TrainConfig):
        assert f"--{item.name.replace('_', '-')}" in text
    for recipe in RECIPES:
        assert f"  {recipe}: " in text
    of_2017 = {"batch_size": 64, "num_epochs": 50, "summary_interval": 250, "eval_interval": 2000, "lr": 0.01}
    of_2017 |= {
        "reg": 5e-4,
        "momentum": 0.9,
        "dropout_keep_prob": 0.5,
        "model_name": "vgg_16",
        "config_name": "default",
    }
    assert {name: getattr(TrainConfig(), name) for name in of_2017} == of_2017


def test_a_recipe_is_a_start_of_which_everything_can_be_changed(monkeypatch):
    monkeypatch.setitem(RECIPES, "default", TrainConfig(lr=0.5, batch_size=7))
    config = train.parse(["--lr", "0.25", "--no-random-flip", "--saturation", "1", "1"]).config
    assert config == TrainConfig(lr=0.25, batch_size=7, random_flip=False, saturation=(1.0, 1.0))


@pytest.mark.parametrize(
    "values",
    [
        {"batch_size": 0},
        {"num_epochs": 0},
        {"lr": -0.1},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"momentum": 1.5},
        {"reg": -1.0},
        {"dropout_keep_prob": 0.0},
        {"smoothing": 1.1},
        {"smoothing": 0.2},  # of a loss that is not smoothed
        {"width": 0.0},
        {"crop_size": 65},
        {"saturation": (2.0, 0.5)},
        {"saturation": (-1.0, 0.5)},
        {"hue": 0.6},
        {"seed": -1},
        {"summary_interval": 0},
        {"eval_interval": 0},
        {"histogram_interval": -1},
        {"checkpoint_interval": 0},
        {"keep_checkpoints": 0},
        {"hidden_units": (0, 2048)},
        {"dropout_layers": 3},
        {"model_name": "../vgg_16"},
        {"config_name": "a/b"},
        {"config_name": ""},
        {"warmup": 1.0},
        {"resized_crop": (64, 44)},
        {"resized_crop": (0, 44)},
        {"resized_crop": (44, 65)},
    ],
)
def test_a_value_out_of_range_is_named(values):
    (name,) = values
    with pytest.raises(UserError, match=name):
        TrainConfig(**values)


# A fixed schedule

FIXED = TrainConfig(
    "resnet_18", schedule="one_cycle", lr=0.8, warmup=0.25, picture_sizes=(32, 32, 48), resized_crop=(44, 64)
)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("one_cycle", 0.25, [0.25, 0.75, 11 / 12, 9 / 12, 7 / 12, 5 / 12, 3 / 12, 1 / 12]),  # 2 of 8 steps up to 1
        ("one_cycle", 0.0, [0.95, 0.85, 0.75, 0.65]),
        ("cosine", 0.0, [0.99384417, 0.94550326, 0.85355339]),  # (1 + cos(pi (n + 1/2) / 10)) / 2
    ],
)
def test_the_rate_rises_and_falls_to_zero(schedule, warmup, expected):
    total = 10 if warmup == 0 else 8
    config = replace(FIXED, lr=1.0, schedule=schedule, warmup=warmup)
    rates = [float(train.FixedSchedule(config, total)(step)) for step in range(total)]
    assert rates[: len(expected)] == pytest.approx(expected, rel=1e-5)
    assert 0 < rates[-1] < 0.1


@pytest.mark.parametrize("total", [3, 7, 10, 100])
def test_each_size_of_pictures_has_an_equal_part_of_the_run(total):
    sizes = [train.picture_size(FIXED, step, total) for step in range(total)]
    assert sizes == sorted(sizes)
    assert abs(sizes.count(48) - total / 3) < 1
    step = 0
    while step < total:
        until = train.same_size_until(FIXED, step, total)
        assert step < until and len(set(sizes[step:until])) == 1
        step = until
    assert step == total
    assert train.same_size_until(replace(FIXED, picture_sizes=(32, 32, 48)), 0, 30) == 20  # over two parts
    assert train.eval_size(FIXED, total, total) == 56
    assert train.eval_size(FIXED, 1, total) == round(56 * 32 / 48)
    assert train.picture_size(TrainConfig(), 5, 10) == train.eval_size(TrainConfig(), 5, 10) == 56


@contextmanager
def shallow():
    """ResNet with four of its eight blocks, which is built and compiled the sooner; one of them has a short cut."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr("resnet_18.STAGES", (64, 128))
        yield


@pytest.fixture(scope="module", autouse=True)
def a_shallow_net():
    with shallow():
        yield


@pytest.fixture(scope="module")
def whole(sample_dir, tmp_path_factory):
    """The folder of a run that nothing happened to, whose every state is kept."""
    config = tiny_fixed(sample_dir, tmp_path_factory.mktemp("whole"), summary_interval=5, keep_checkpoints=20)
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(checkpoints.StateSaver, "busy", lambda _: False)  # however slow the disk is
        return train.train(config)


@pytest.mark.parametrize("steps", [(7, 13), (8, 20)], ids=str)
def test_stops_at_any_steps_lose_nothing(whole, sample_dir, tmp_path, monkeypatch, steps):
    """Within an interval and at a change of size; at an interval's last step and at the last of all."""
    stopped = tiny_fixed(sample_dir, tmp_path, summary_interval=5, keep_checkpoints=20)

    def stop(self, batch, logs, on_step=train.Steps.on_train_batch_end):
        if self.progress.step + 1 in steps:
            self.stop_request.signal = signal.SIGTERM
        on_step(self, batch, logs)

    with monkeypatch.context() as patches:
        patches.setattr(train.Steps, "on_train_batch_end", stop)
        for step in steps:
            with pytest.raises(SystemExit):
                train.train(stopped, resume=step != steps[0])
            assert checkpoints.checkpoints(stopped.run_dir)[-1].name == f"step_{step:08d}"
    train.train(stopped, resume=True)
    assert final_state(stopped.run_dir) == final_state(whole)
    assert points(stopped.run_dir) == points(whole)


def tiny_fixed(sample_dir, tmp_path, **settings):
    """20 steps, of which the first 14 are on smaller pictures; evaluations at 8, 16 and 20."""
    config = replace(FIXED, data_dir=str(sample_dir), runs_dir=str(tmp_path), width=0.1, lr=0.05)
    return replace(config, batch_size=20, num_epochs=2, eval_interval=8, checkpoint_interval=1, **settings)


def test_a_step_s_figures_are_read_while_the_next_one_runs_but_where_they_are_needed(sample_dir, tmp_path, monkeypatch):
    """So that a GPU need not wait: 10 steps of 5, evaluated at 5 and 10, with points of the curves at 4 and 8."""
    config = TrainConfig("logistic_regression", data_dir=str(sample_dir), runs_dir=str(tmp_path), batch_size=20)
    config = replace(config, num_epochs=1, eval_interval=5, summary_interval=4)
    read, after, done, found = train.Steps.read, train.Steps.on_train_batch_end, [], []

    def on_train_batch_end(self, batch, logs):
        assert not any(isinstance(value, float) for value in logs.values())  # not yet read by Keras
        done.append(batch)
        after(self, batch, logs)

    def noted(self, logs, step):
        found.extend([(len(done), step)] if logs else [])
        return read(self, logs, step)

    monkeypatch.setattr(train.Steps, "on_train_batch_end", on_train_batch_end)
    monkeypatch.setattr(train.Steps, "read", noted)
    train.train(config)
    assert len(done) == 10
    assert found == [(2, 1), (3, 2), (4, 3), (4, 4), (5, 5), (7, 6), (8, 7), (8, 8), (10, 9), (10, 10)]


def test_a_run_with_a_fixed_schedule_keeps_the_last_weights_and_resumes_exactly(whole, tmp_path, capsys):
    folder = tmp_path / "resnet_18" / "default"
    shutil.copytree(whole, folder)
    config = replace(checkpoints.read_config(folder)[0], runs_dir=str(tmp_path))
    assert not (folder / "best.keras").exists()
    model = checkpoints.load_run(folder).model
    assert model.input_shape == (None, 56, 56, 3)
    state_before, points_before = final_state(folder), points(folder)
    assert [point["step"] for point in points_before if point["split"] == "validation"] == [8, 16, 20]
    train_points = [point for point in points_before if point["split"] == "train"]
    rates = {step: float(train.FixedSchedule(config, 20)(step)) for step in (5, 10, 15, 20)}
    assert {point["step"]: point["learning_rate"] for point in train_points} == pytest.approx(rates)
    with np.load(folder / "checkpoints" / "step_00000020" / "arrays.npz") as arrays:
        kernel = next(arrays[name] for name in arrays if name.endswith(" fc/kernel"))
    np.testing.assert_array_equal(model.get_layer("fc").kernel, kernel)
    for step in (18, 14):  # within the last size, and as it begins
        train.train(config, resume_from=f"step_{step:08d}")
        assert "last validation top-1" in capsys.readouterr().out
        assert final_state(folder) == state_before
        assert points(folder) == points_before
    with pytest.raises(UserError, match="num_epochs was 2, now 3"):
        train.train(replace(config, num_epochs=3), resume=True)


def test_a_net_of_one_size_is_not_given_others(sample_dir, tmp_path):
    with pytest.raises(UserError, match="vgg_16 takes pictures of one size alone; leave picture_sizes out"):
        train.train(tiny_fixed(sample_dir, tmp_path, model_name="vgg_16"))
    with pytest.raises(UserError, match="picture_sizes needs pictures that are scaled; set --resized-crop"):
        train.train(tiny_fixed(sample_dir, tmp_path, resized_crop=(0, 0)))
    assert not list(tmp_path.iterdir())


def weights_of(folder):
    return {weight.path: np.asarray(weight) for weight in checkpoints.load_run(folder).model.weights}


def test_the_last_layer_alone_is_trained_on_the_frozen_features_of_another_run(
    whole, sample_dir, tmp_path, capsys, monkeypatch
):
    config = replace(checkpoints.read_config(whole)[0], runs_dir=str(tmp_path), init_from=str(whole))
    config = replace(config, freeze_features=True, loss="svm", reg=1.0, reg_last_only=True)
    folder = train.train(config)
    assert f"first weights from {whole}" in capsys.readouterr().out
    before, after = weights_of(whole), weights_of(folder)
    assert {path for path in after if not np.array_equal(after[path], before[path])} == {"fc/kernel", "fc/bias"}
    state = final_state(folder)
    monkeypatch.setattr(checkpoints, "load_run", None)  # the other run is not needed any more
    train.train(config, resume_from="step_00000016")
    assert final_state(folder) == state


def test_first_weights_that_do_not_fit_are_refused(whole, sample_dir, tmp_path):
    config = TrainConfig("resnet_18", data_dir=str(sample_dir), runs_dir=str(tmp_path), num_epochs=1, eval_interval=3)
    config = replace(config, init_from=str(whole))
    for frozen in (False, True):
        with pytest.raises(UserError, match="init_from: .* has no conv1/kernel of the shape .*, such as --width"):
            train.train(replace(config, width=0.2, freeze_features=frozen))
    with pytest.raises(UserError, match="init_from: .* has no conv1_1/kernel of .* name a run of vgg_16"):
        train.train(replace(config, model_name="vgg_16", width=0.05))
    with pytest.raises(UserError, match="nowhere holds no run"):
        train.train(replace(config, init_from=str(tmp_path / "nowhere"), data_dir="missing"))  # before any download
    with pytest.raises(UserError, match="freeze_features .* --init-from RUN"):
        replace(config, init_from="", freeze_features=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_fixed_schedule_runs_under_jax(sample_dir, tmp_path):
    words = ["--recipe", "resnet_18_one_hour", "--data-dir", sample_dir, "--width", "0.1", "--batch-size", "20"]
    words += ["--num-epochs", "2", "--eval-interval", "8", "--picture-sizes", "32", "48", "--summary-interval", "5"]
    words += ["--ema-momentum", "0.5"]
    result = run_script("train.py", *words, cwd=tmp_path, backend="jax")
    assert result.returncode == 0, result.stderr
    assert "end at step 20 (all epochs done)" in result.stdout
    run = tmp_path / "runs" / "resnet_18" / "default"
    result = run_script("evaluate.py", run, "--json", cwd=tmp_path, backend="jax")
    assert result.returncode == 0, result.stderr
    last = [point for point in points(run) if point["split"] == "validation"][-1]
    assert json.loads(result.stdout)["center_top_1"] == pytest.approx(last["top_1"])


def test_wrong_settings_are_answered_in_one_line(sample_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = ("--data-dir", str(sample_dir), "--model-name", "logistic_regression")
    answers = {
        ("--lr", "-1"): ("lr", "0 to 1000000.0"),
        ("--model-name", "vgg_61"): ("vgg_61", "logistic_regression", "single_layer_nn", "vgg_16", "-> keras.Model"),
        ("--batch-size", "201"): ("batch_size", "200 training pictures"),
        ("--num-epochs", "1"): ("eval_interval", "only 3 steps"),
        ("--warmup", "0.1"): ("warmup", "--schedule"),
        ("--picture-sizes", "32", "48"): ("picture_sizes", "--schedule"),
        ("--ema-momentum", "0.999"): ("ema_momentum", "steps of the run"),
    }
    for arguments, words in answers.items():
        with pytest.raises(UserError) as error:
            train.train(train.parse([*base, *arguments]).config)
        assert "\n" not in str(error.value)
        for word in words:
            assert word in str(error.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("--batchsize", "3"), "--batchsize.* Perhaps you meant: --batch-size INT"),
        (("--recipe", "none"), "invalid choice 'none' for argument '--recipe'"),
        (("--saturation", "1"), "'--saturation'. Expected 2 values"),
        (("--resume", "--resume-from", "step_00000001"), "--resume-from.* give one of them"),
    ],
)
def test_a_wrong_word_of_the_command_line_is_named(words, answer):
    with pytest.raises(UserError, match=answer) as error:
        train.parse(words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": "10"}, "step"),
        ({"step": 11}, "step 11 in step_00000010"),
        ({"step": -10}, "step"),
        ({"seconds": None}, "TypeError"),
        ({"best_val_acc": "x"}, "ValueError"),
        ({"control": {"lr": 0.1, "val_accs": "123", "num_cuts": 0}}, "ValueError"),
        ({"control": []}, "TypeError"),
        ({"log_sizes": "none"}, "AttributeError"),
        ({"log_sizes": {"metrics.jsonl": -1}}, "ValueError"),
    ],
    ids=str,
)
def test_progress_of_a_wrong_kind_is_named(sample_dir, tmp_path, change, words):
    config = TrainConfig("logistic_regression", data_dir=str(sample_dir), runs_dir=str(tmp_path))
    config = replace(config, batch_size=20, num_epochs=1, eval_interval=10)
    path = train.train(config) / "checkpoints" / "step_00000010" / "progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=f"progress.json was not written by this version .*{words}"):
        train.train(config, resume=True)


def test_a_resumed_run_keeps_its_own_settings_whatever_its_recipe_says(sample_dir, tmp_path):
    words = ["--recipe", "single_layer_nn", "--data-dir", str(sample_dir), "--runs-dir", str(tmp_path)]
    settings = ["--batch-size", "20", "--num-epochs", "1", "--eval-interval", "10", "--width", "0.02"]
    asked = train.parse([*words, *settings]).config
    train.train(asked)
    assert train.parse([*words, "--resume"]).config == asked
    assert train.parse([*words, "--resume", "--num-epochs", "2"]).config == replace(asked, num_epochs=2)


def test_the_longest_average_that_the_error_names_is_taken(sample_dir):
    config = TrainConfig("logistic_regression", batch_size=20, num_epochs=150, eval_interval=10, ema_momentum=0.99999)
    data = open_dataset(sample_dir)
    with pytest.raises(UserError, match="ema_momentum") as error:
        train.count_steps(config, data)
    longest = float(re.search("set --ema-momentum to (.*) or less", str(error.value)).group(1))
    assert train.count_steps(replace(config, ema_momentum=longest), data) == 1500


def test_one_class_alone_is_refused(tmp_path):
    draw_sample_set(tmp_path / "one", num_classes=1, train_per_class=70, val_per_class=2)
    with pytest.raises(UserError, match="has one class alone"):
        train.train(TrainConfig("logistic_regression", data_dir=str(tmp_path / "one"), runs_dir=str(tmp_path / "runs")))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("unit", "model", "picked"),
    [
        ("avx512_bf16", "vgg_16", "mixed_bfloat16"),
        ("avx512_bf16", "single_layer_nn", "float32"),
        ("", "vgg_16", "float32"),
    ],
)
def test_precision_auto_picks_by_device_and_model_and_keeps_it(
    sample_dir, tmp_path, monkeypatch, capsys, unit, model, picked
):
    monkeypatch.setattr(models, "bfloat16_unit", lambda: unit)
    config = TrainConfig(model, data_dir=str(sample_dir), runs_dir=str(tmp_path), precision="auto", width=0.02)
    folder = train.train(replace(config, num_epochs=1, batch_size=100, eval_interval=2))
    assert f"precision auto: {picked} (" in capsys.readouterr().out
    assert checkpoints.read_config(folder)[0].precision == picked
    assert checkpoints.load_run(folder).model.layers[1].compute_dtype == picked.removeprefix("mixed_")


@pytest.mark.parametrize(
    ("script", "words", "answer"),
    [
        ("train.py", ("--batch-size", "many"), "--batch-size: invalid literal for int() with base 10: 'many'"),
        ("evaluate.py", ("--jason",), "Unrecognized options: --jason"),
        ("sample_data.py", ("--seed", "one"), "--seed: invalid literal"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_answered_in_one_line(script, words, answer, tmp_path):
    assert_one_line_error(run_script(script, *words, cwd=tmp_path), answer, f"{script} --help")


def test_a_run_ends_with_a_model_that_evaluates(sample_dir, tmp_path):
    settings = ("--num-epochs", 2, "--eval-interval", 5, "--summary-interval", 2, "--width", 0.05)
    result = run_script("train.py", "--data-dir", sample_dir, *settings, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "width 0.05 (default 1.0)" in result.stdout
    assert "end at step 6" in result.stdout  # 6 = 2 * 200 // 64: evaluated at step 5 and at the end
    run = tmp_path / "runs" / "vgg_16" / "default"
    result = run_script("evaluate.py", run, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "vgg_16/default" in result.stdout
    again = run_script("train.py", "--data-dir", sample_dir, *settings, cwd=tmp_path)
    assert_one_line_error(again, "--resume", "--config-name")


def test_a_new_file_is_a_new_model(sample_dir, tmp_path):
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    text = (ROOT / "logistic_regression.py").read_text()
    (tmp_path / "my_model.py").write_text(text.replace("logistic_regression", "my_model"))
    settings = ["--data-dir", sample_dir, "--num-epochs", "1", "--eval-interval", "3", "--model-name", "my_model"]
    result = subprocess.run([sys.executable, "train.py", *settings], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs" / "my_model" / "default" / "best.keras").exists()
