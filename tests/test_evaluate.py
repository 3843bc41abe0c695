"""Scores against a loop over single images and crops, and the command's table and JSON."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from helpers import make_run

import evaluate
from evaluate import BATCH_SIZE, compute_scores, find_runs, format_table, match_classes, select_images
from metrics import expected_calibration_error
from tiny_imagenet.config import TrainConfig
from tiny_imagenet.dataset import Split, open_dataset
from tiny_imagenet.errors import UserError
from tiny_imagenet.model_io import load_run

SIZE = 56


def random_split(num_images: int, num_classes: int = 7) -> Split:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (num_images, 64, 64, 3), dtype=np.uint8)
    return Split(images, random.integers(0, num_classes, num_images).astype(np.int32), (), 0, 0)


def linear_model(num_classes: int = 7) -> keras.Model:
    """From (B, 56, 56, 3) uint8 to logits (B, C); each crop of an image gets other ones."""
    images = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 128, offset=-1)(images))
    model = keras.Model(images, keras.layers.Dense(num_classes)(x))
    kernel = np.random.default_rng(1).normal(0, 0.02, (SIZE * SIZE * 3, num_classes))
    model.set_weights([kernel, np.linspace(-0.2, 0.2, num_classes)])
    return model


def crops_of(image: np.ndarray) -> list[np.ndarray]:
    """Four corners and the center, each also flipped: ten of (56, 56, 3)."""
    corners = [image[top : top + SIZE, left : left + SIZE] for top in (0, 8) for left in (0, 8)]
    five = [*corners, image[4:60, 4:60]]
    return five + [crop[:, ::-1] for crop in five]


def expected_scores(model: keras.Model, split: Split) -> list[float]:
    """One image and one crop at a time, in the order of `Scores`."""
    kernel, bias = model.get_weights()
    hits, confidences = [], []
    for image, label in zip(split.images, split.labels, strict=True):
        logits = [(crop.reshape(-1) / 128.0 - 1.0) @ kernel + bias for crop in crops_of(image)]
        log_p = [one - np.log(np.exp(one).sum()) for one in logits]
        single, ten = (int((p > p[label]).sum()) for p in (log_p[4], np.sum(log_p, axis=0)))  # ranks of the label
        hits.append([single < 1, single < 5, ten < 1, ten < 5])
        confidences.append(np.exp(log_p[4].max()))
    return [*np.mean(hits, axis=0), expected_calibration_error(confidences, np.array(hits)[:, 0])]


@pytest.mark.parametrize("num_images", [1, BATCH_SIZE, BATCH_SIZE + 3])
def test_scores_equal_a_loop_over_single_images_and_crops(num_images):
    model, split = linear_model(), random_split(num_images)
    scores = compute_scores(model, split, TrainConfig())
    np.testing.assert_allclose(list(vars(scores).values()), expected_scores(model, split), atol=1e-6)


def test_the_last_smaller_batch_counts_like_any_other():
    """All images of the first, full batch are wrong and all three of the last are right: 3 of 103."""
    labels = np.array([1] * BATCH_SIZE + [0] * 3, np.int32)
    model = linear_model()
    model.set_weights([np.zeros((SIZE * SIZE * 3, 7)), -np.arange(7.0)])  # always 0, then 1, 2, ...
    scores = compute_scores(model, replace(random_split(BATCH_SIZE + 3), labels=labels), TrainConfig())
    assert scores.single_crop_top_1 == scores.ten_crop_top_1 == pytest.approx(3 / 103)
    assert scores.single_crop_top_5 == 1


@pytest.fixture(scope="module")
def run_folder(sample_dir, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs"), sample_dir, model_name="logistic_regression")


def test_a_run_of_other_classes_is_refused(run_folder, sample_dir, monkeypatch):
    data = open_dataset(sample_dir)
    for class_ids, words in ((data.class_ids[:-1], "has 9"), (("new", *data.class_ids[1:]), "has 10")):
        monkeypatch.setattr("evaluate.open_run_dataset", lambda *_, ids=class_ids, **__: replace(data, class_ids=ids))
        with pytest.raises(
            UserError, match=rf"trained on 10 classes, and .* {words} that are not all the same; .*--data-dir"
        ):
            evaluate.evaluate(run_folder)


def test_classes_in_another_order_are_matched_by_their_ids(run_folder, sample_dir):
    run, data = load_run(run_folder), open_dataset(sample_dir)
    order = [3, 1, 2, 0, *range(4, 10)]  # another wnids.txt: the labels 0 and 3 have changed places
    ids, names = (tuple(values[i] for i in order) for values in (data.class_ids, data.class_names))
    labels = np.array(order, np.int32)[data.val.labels]
    other = replace(data, class_ids=ids, class_names=names, val=replace(data.val, labels=labels))
    matched = match_classes(run, other)
    assert (matched.class_ids, matched.class_names) == (data.class_ids, data.class_names)
    np.testing.assert_array_equal(matched.val.labels, data.val.labels)


@pytest.mark.parametrize("value", [np.nan, 3e38])
def test_a_model_whose_output_is_not_finite_has_no_scores(value):
    model = linear_model()
    model.set_weights([np.full((SIZE * SIZE * 3, 7), value), np.zeros(7)])
    with pytest.raises(UserError, match="the output of .* has NaN or infinite values"):
        compute_scores(model, random_split(1), TrainConfig())


def test_a_file_lists_the_images_to_use(sample_dir, tmp_path):
    split, names = open_dataset(sample_dir).val, tmp_path / "names.txt"
    names.write_text("val_30.JPEG\n\n val_7.JPEG\r\nval/images/val_7.JPEG\n")
    chosen = select_images(split, names)
    assert [name.rpartition("/")[2] for name in chosen.filenames] == ["val_30.JPEG", "val_7.JPEG"]
    places = [split.filenames.index(filename) for filename in chosen.filenames]
    np.testing.assert_array_equal(chosen.images, split.images[places])
    np.testing.assert_array_equal(chosen.labels, split.labels[places])
    with pytest.raises(UserError, match="same name in different folders"):
        select_images(replace(split, filenames=["a/val_7.JPEG", "b/val_7.JPEG"]), names)
    for text, words in (("\n", "is empty"), ("val_7.JPEG\nval_999.JPEG", "no validation image val_999.JPEG")):
        names.write_text(text)
        with pytest.raises(UserError, match=words):
            select_images(split, names)


def test_the_command_prints_json_or_a_table(run_folder, sample_dir, tmp_path, monkeypatch, capsys):
    (tmp_path / "names.txt").write_text("val_3.JPEG\nval_44.JPEG\nval_8.JPEG\n")
    outputs = []
    for options in (["--json"], ["--images", str(tmp_path / "names.txt"), "--json"], []):
        monkeypatch.setattr("sys.argv", ["evaluate.py", str(run_folder), *options])
        with pytest.raises(SystemExit) as end:
            evaluate.main()
        assert not end.value.code
        outputs.append(capsys.readouterr().out)
    row, listed = map(json.loads, outputs[:2])
    model, split = load_run(run_folder).model, open_dataset(sample_dir).val
    assert {key: row[key] for key in ("run", "model", "parameters", "images", "seconds")} == {
        **{"run": str(run_folder), "model": "logistic_regression", "parameters": 56 * 56 * 3 * 10 + 10},
        **{"images": 50, "seconds": 0},
    }
    scores = [row[key] for key in evaluate.Scores.__dataclass_fields__]
    np.testing.assert_allclose(scores, expected_scores(model, split), atol=1e-6)
    chosen = select_images(split, tmp_path / "names.txt")
    assert (listed["images"], listed["ten_crop_top_5"]) == (3, expected_scores(model, chosen)[3])
    assert outputs[2].rstrip("\n") == format_table([row])


def test_the_table_is_in_percent():
    scores = {"single_crop_top_1": 0.5286, "single_crop_top_5": 0.771, "calibration_error": 0.0312}
    row = {"run": "runs/vgg_16/default", "parameters": 119200264, "seconds": 7200.4}
    last = format_table([row | scores | {"ten_crop_top_1": 0.5644, "ten_crop_top_5": 1.0}]).splitlines()[-1]
    assert last.split() == ["vgg_16/default", "119,200,264", "52.86", "77.10", "3.12", "56.44", "100.00", "7,200"]


def test_runs_on_the_same_data_are_found_and_others_skipped(sample_dir, tmp_path, capsys):
    good, other, broken = (make_run(tmp_path, sample_dir, config_name=name) for name in ("good", "other", "broken"))
    data, description = open_dataset(sample_dir), (other / "config.json").read_text()
    (other / "config.json").write_text(description.replace(data.fingerprint, "0" * 64))
    (broken / "best.keras").write_text("not a model")
    (tmp_path / "vgg_16" / "empty").mkdir()
    assert [run.folder for run in find_runs(data, tmp_path)] == [good]
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("skipped: ")
    assert str(broken / "best.keras") in line
