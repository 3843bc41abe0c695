"""Scores against a loop over single pictures, and the command's table and JSON."""

from startup import UserError, keras

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import run_script

import checkpoints
from config import BASE, TrainConfig
from dataset import open_dataset
from evaluate import BATCH_SIZE, evaluate, listed, scores, table
from metrics import expected_calibration_error
from models import build_model

SIZE = 56


def small_split(num_pictures, num_classes=7):
    """Random pictures and labels, as of a dataset's split."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (num_pictures, 64, 64, 3), dtype=np.uint8)
    labels = random.integers(0, num_classes, num_pictures).astype(np.int32)
    return type("Split", (), {"images": images, "labels": labels})


def small_model(num_classes=7):
    """From (B, 56, 56, 3) uint8 to logits (B, C); it sees where a bright spot lies, so that every crop differs."""
    pictures = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 128, offset=-1)(pictures))
    kernel = np.random.default_rng(1).normal(0, 0.02, (SIZE * SIZE * 3, num_classes))
    dense = keras.layers.Dense(num_classes)
    logits = dense(x)
    dense.set_weights([kernel, np.linspace(-0.2, 0.2, num_classes)])
    return keras.Model(pictures, logits)


def crops_of(picture):
    """Four corners and the centre, each also mirrored: ten of (56, 56, 3)."""
    corners = [picture[top : top + SIZE, left : left + SIZE] for top in (0, 8) for left in (0, 8)]
    five = [*corners, picture[4:60, 4:60]]
    return five + [crop[:, ::-1] for crop in five]


def rank_of_label(log_p, label):
    """How many classes stand before the label."""
    return int((log_p > log_p[label]).sum())


def expected_scores(model, split):
    """One picture and one crop at a time; top-1 and top-5 by the centre, by ten crops, and the calibration error."""
    kernel, bias = model.get_weights()
    hits, confidences = [], []
    for picture, label in zip(split.images, split.labels, strict=True):
        logits = [(crop.reshape(-1) / 128.0 - 1.0) @ kernel + bias for crop in crops_of(picture)]
        log_p = [one - np.log(np.exp(one).sum()) for one in logits]
        center, ten = rank_of_label(log_p[4], label), rank_of_label(np.sum(log_p, axis=0), label)
        hits.append([center < 1, center < 5, ten < 1, ten < 5])
        confidences.append(np.exp(log_p[4].max()))
    return [*np.mean(hits, axis=0), expected_calibration_error(confidences, np.array(hits)[:, 0])]


@pytest.mark.parametrize("num_pictures", [1, BATCH_SIZE, BATCH_SIZE + 3])
def test_scores_equal_a_loop_over_single_pictures_and_crops(num_pictures):
    model, split = small_model(), small_split(num_pictures)
    found = scores(model, split, BASE)
    expected = expected_scores(model, split)
    np.testing.assert_allclose(list(vars(found).values()), expected, atol=1e-6)


def test_the_last_odd_batch_counts_as_much_as_any_other():
    """All in the first, full batch are wrong and all three in the last are right: 3 of 103, not a mean of batches."""
    split = small_split(BATCH_SIZE + 3)
    split.labels = np.array([1] * BATCH_SIZE + [0] * 3, np.int32)
    model = small_model()
    model.layers[-1].set_weights([np.zeros((SIZE * SIZE * 3, 7)), -np.arange(7.0)])  # always 0, then 1, 2 ...
    found = scores(model, split, BASE)
    assert found.center_top_1 == found.ten_crops_top_1 == pytest.approx(3 / 103)
    assert found.center_top_5 == 1


@pytest.fixture(scope="module")
def run(sample_dir, tmp_path_factory):
    """The folder of a run with an untrained best model."""
    runs_dir = tmp_path_factory.mktemp("runs")
    config = TrainConfig(model_name="logistic_regression", data_dir=str(sample_dir), runs_dir=str(runs_dir))
    folder = checkpoints.create_run(config, open_dataset(sample_dir))
    checkpoints.save_model(build_model(config, 10), config)
    return folder


def test_a_run_of_other_classes_is_refused(run, monkeypatch):
    real = open_dataset(checkpoints.load_run(run).config.data_dir)
    monkeypatch.setattr("evaluate.open_dataset", lambda *_, **__: replace(real, class_ids=real.class_ids[:-1]))
    with pytest.raises(UserError, match=r"other classes \(10\) than .* \(9\); .*--data-dir"):
        evaluate(run, None)


def test_a_row_says_what_was_evaluated(run):
    row = evaluate(run, None)
    assert row["model"] == "logistic_regression"
    assert row["weights"] == 56 * 56 * 3 * 10 + 10
    assert row["pictures"] == 50
    assert row["seconds"] == 0  # never trained
    model = checkpoints.load_run(run).model
    split = open_dataset(checkpoints.load_run(run).config.data_dir).val
    np.testing.assert_allclose([row["center_top_1"], row["center_top_5"]], expected_scores(model, split)[:2], atol=1e-7)


def test_a_list_says_on_which_pictures(run, tmp_path):
    data = open_dataset(checkpoints.load_run(run).config.data_dir)
    names = tmp_path / "names.txt"
    names.write_text("val_30.JPEG\n\n val_7.JPEG\r\nval_7.JPEG\n")
    chosen = listed(data.val, names)
    assert [name.rpartition("/")[2] for name in chosen.filenames] == ["val_30.JPEG", "val_7.JPEG"]
    for i, filename in enumerate(chosen.filenames):
        place = data.val.filenames.index(filename)
        np.testing.assert_array_equal(chosen.images[i], data.val.images[place])
        assert chosen.labels[i] == data.val.labels[place]
    row = evaluate(run, None, names)
    assert row["pictures"] == 2
    model = checkpoints.load_run(run).model
    assert row["center_top_5"] == expected_scores(model, chosen)[1]
    for text, answer in (("\n", "is empty"), ("val_7.JPEG\nval_999.JPEG", "no validation picture val_999.JPEG")):
        names.write_text(text)
        with pytest.raises(UserError, match=answer):
            listed(data.val, names)
    with pytest.raises(UserError, match="cannot tell validation pictures of one name in several folders apart"):
        listed(replace(data.val, filenames=["a/val_7.JPEG", "b/val_7.JPEG"]), names)


def test_the_table_is_in_per_cent():
    shares = {"center_top_1": 0.5286, "center_top_5": 0.771, "ten_crops_top_1": 0.5644, "ten_crops_top_5": 1.0}
    shares["center_ece"] = 0.0312
    row = {"run": "runs/vgg_16/default", "model": "vgg_16", "weights": 119200264, "pictures": 9, "seconds": 7200.4}
    last = table([row | shares]).splitlines()[-1]
    assert last.split() == ["vgg_16/default", "119,200,264", "52.86", "77.10", "3.12", "56.44", "100.00", "7,200"]


def test_the_command_prints_a_line_of_json_for_each_run(run, tmp_path):
    result = run_script("evaluate.py", run, run, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    first, second = map(json.loads, result.stdout.splitlines())
    assert first == second == evaluate(run, None)
