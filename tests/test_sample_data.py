from startup import ROOT, UserError

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sample_data
from sample_data import SHAPES, SIZE, draw_picture, draw_sample_set

SMALL = {"num_classes": 3, "train_per_class": 4, "val_per_class": 2}


def contents(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pictures(count: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`count` pictures of every class as (N, 64, 64, 3) float, and their labels."""
    pixels = [
        np.asarray(draw_picture(shape.outline, np.random.default_rng([label, k]))[0], float)
        for label, shape in enumerate(SHAPES)
        for k in range(first, first + count)
    ]
    return np.stack(pixels), np.repeat(np.arange(len(SHAPES)), count)


def linear_accuracy(train: np.ndarray, labels: np.ndarray, val: np.ndarray, val_labels: np.ndarray) -> float:
    """Top-1 of a least-squares classifier on the given features, (N, F)."""

    def with_one(features):
        return np.hstack([features, np.ones((len(features), 1))])

    weights = np.linalg.lstsq(with_one(train), np.eye(len(SHAPES))[labels], rcond=None)[0]
    return float(np.mean((with_one(val) @ weights).argmax(1) == val_labels))


@pytest.fixture(scope="module")
def small_set(tmp_path_factory) -> Path:
    return draw_sample_set(tmp_path_factory.mktemp("drawn") / "set", **SMALL)


def test_layout_is_tiny_imagenets(small_set):
    ids = [shape.class_id for shape in SHAPES[:3]]
    train = {f"train/{i}/images/{i}_{k}.JPEG" for i in ids for k in range(4)} | {
        f"train/{i}/{i}_boxes.txt" for i in ids
    }
    val = {f"val/images/val_{k}.JPEG" for k in range(6)} | {"val/val_annotations.txt"}
    test = {f"test/images/test_{k}.JPEG" for k in range(3)}
    assert set(contents(small_set)) == train | val | test | {"wnids.txt", "words.txt", sample_data.MARKER}
    assert (small_set / "wnids.txt").read_text() == "".join(f"{i}\n" for i in ids)
    words = dict(line.split("\t") for line in (small_set / "words.txt").read_text().splitlines())
    assert [words[i].split(",")[0] for i in ids] == ["circle", "square", "triangle"]


def test_every_picture_has_the_right_size_and_a_box_in_its_list(small_set):
    for shape in SHAPES[:3]:
        folder = small_set / "train" / shape.class_id
        rows = [line.split("\t") for line in (folder / f"{shape.class_id}_boxes.txt").read_text().splitlines()]
        assert [row[0] for row in rows] == [f"{shape.class_id}_{k}.JPEG" for k in range(4)]
        for name, *box in rows:
            with Image.open(folder / "images" / name) as picture:
                assert (picture.format, picture.size, picture.mode) == ("JPEG", (SIZE, SIZE), "RGB")
            x0, y0, x1, y1 = map(int, box)
            assert 0 <= x0 < x1 < SIZE and 0 <= y0 < y1 < SIZE


def test_val_annotations_name_every_picture_and_its_class(small_set):
    rows = [line.split("\t") for line in (small_set / "val" / "val_annotations.txt").read_text().splitlines()]
    assert [(row[0], row[1], len(row)) for row in rows] == [
        (f"val_{k}.JPEG", SHAPES[k % 3].class_id, 6) for k in range(6)
    ]


def test_ids_are_ten_and_not_in_sorted_order():
    ids = [shape.class_id for shape in SHAPES]
    assert len(set(ids)) == 10 and ids != sorted(ids)
    assert all(len(i) == 9 and i.startswith("n9") and i[1:].isdigit() for i in ids)


def test_the_same_seed_draws_the_same_bytes_and_another_seed_others(small_set, tmp_path):
    again = draw_sample_set(tmp_path / "again", **SMALL)
    other = draw_sample_set(tmp_path / "other", **SMALL, seed=1)
    first = contents(small_set)
    assert contents(again) == first
    differ = {name for name, digest in contents(other).items() if digest != first[name]}
    assert {name for name in first if name.endswith(".JPEG")} <= differ


def test_no_picture_is_drawn_twice(small_set):
    digests = [digest for name, digest in contents(small_set).items() if name.endswith(".JPEG")]
    assert len(set(digests)) == len(digests) == 12 + 6 + 3


def test_a_larger_set_contains_the_smaller(small_set, tmp_path):
    larger = contents(draw_sample_set(tmp_path / "larger", num_classes=4, train_per_class=5, val_per_class=2))
    small = contents(small_set)
    assert all(larger[name] == small[name] for name in small if name.startswith("train/") and name.endswith(".JPEG"))


def test_some_pictures_are_grey(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_data, "GREY_EVERY", 3)
    folder = draw_sample_set(tmp_path / "set", **SMALL)
    images = sorted((folder / "train" / SHAPES[0].class_id / "images").iterdir())
    assert [Image.open(path).mode for path in images] == ["RGB", "RGB", "L", "RGB"]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.words.split(",")[0])
def test_box_is_where_the_shape_is(shape, monkeypatch):
    """Without clutter and noise, on an even background, the shape is all that differs from the corner."""
    grey = Image.new("RGB", (SIZE * sample_data.OVERSAMPLE,) * 2, (128, 128, 128))
    monkeypatch.setattr(sample_data, "_background", lambda rng, brightness: grey.copy())
    monkeypatch.setattr(sample_data, "_clutter", lambda rng, draw, brightness: None)
    monkeypatch.setattr(sample_data, "_colour", lambda rng, brightness: np.array([255, 255, 255]))
    monkeypatch.setattr(sample_data, "NOISE", 0.0)
    for k in range(5):
        picture, (x0, y0, x1, y1) = draw_picture(shape.outline, np.random.default_rng(k))
        rows, columns = np.nonzero(np.asarray(picture)[..., 0] > 138)
        assert np.abs(np.array([columns.min(), rows.min(), columns.max(), rows.max()]) - [x0, y0, x1, y1]).max() <= 1
        assert min(x0, y0) > 0 and max(x1, y1) < SIZE - 1  # the whole shape is in the picture


def test_colour_does_not_give_the_class_away():
    """Mean and spread of each colour tell ten classes apart hardly better than chance; a linear model little better."""
    (train, labels), (val, val_labels) = pictures(60), pictures(20, first=60)

    def colours(x):
        return np.hstack([x.mean((1, 2)), x.std((1, 2)), x.min((1, 2)), x.max((1, 2))])

    assert linear_accuracy(colours(train), labels, colours(val), val_labels) < 0.25


def test_a_second_call_touches_nothing(small_set, capsys):
    before = {path: path.stat().st_mtime_ns for path in small_set.rglob("*")}
    assert draw_sample_set(small_set, **SMALL) == small_set
    assert {path: path.stat().st_mtime_ns for path in small_set.rglob("*")} == before
    assert "there already" in capsys.readouterr().out


def test_other_parameters_draw_the_set_anew(tmp_path):
    folder = draw_sample_set(tmp_path / "set", **SMALL)
    draw_sample_set(folder, num_classes=2, train_per_class=1, val_per_class=1)
    assert len(list(folder.rglob("*.JPEG"))) == 2 + 2 + 2
    assert json.loads((folder / sample_data.MARKER).read_text())["num_classes"] == 2


def test_a_folder_with_something_else_is_not_touched(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="no sample set"):
        draw_sample_set(tmp_path, **SMALL)
    assert contents(tmp_path) == {"photo.jpg": hashlib.sha256(b"mine").hexdigest()}


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "set").write_text("mine")
    with pytest.raises(UserError, match="no sample set"):
        draw_sample_set(tmp_path / "set", **SMALL)
    assert (tmp_path / "set").read_text() == "mine"


def test_an_empty_folder_and_missing_parents_are_no_obstacle(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b"):
        assert (draw_sample_set(folder, **SMALL) / sample_data.MARKER).exists()


def test_a_killed_draw_leaves_no_set_and_the_next_one_is_whole(small_set, tmp_path, monkeypatch):
    folder = tmp_path / "set"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sample_data, "_draw_mixed", killed)  # train/ is there by then
        with pytest.raises(KeyboardInterrupt):
            draw_sample_set(folder, **SMALL)
    assert list(tmp_path.iterdir()) == []
    assert contents(draw_sample_set(folder, **SMALL)) == contents(small_set)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_draw_that_was_killed_outright_is_not_taken_for_a_set(small_set, tmp_path):
    code = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); import sample_data\n"
        "sample_data._draw_mixed = lambda *_: os._exit(9)\n"  # no clean-up at all, as after SIGKILL
        f"sample_data.draw_sample_set({str(tmp_path / 'set')!r}, 3, 4, 2)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert not (tmp_path / "set").exists()
    assert contents(draw_sample_set(tmp_path / "set", **SMALL)) == contents(small_set)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_the_current_folder_can_be_the_place(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    draw_sample_set(Path(), **SMALL)
    assert (tmp_path / "here" / "wnids.txt").exists()


def test_a_draw_that_fails_over_an_older_set_keeps_the_older(small_set, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    shutil.copytree(small_set, folder)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample_data, "_draw_mixed", full)
    with pytest.raises(UserError, match="No space left on device"):
        draw_sample_set(folder, **SMALL, seed=1)
    assert contents(folder) == contents(small_set)


@pytest.mark.parametrize("wrong", [{"num_classes": 11}, {"num_classes": 0}, {"train_per_class": 0}, {"seed": -1}])
def test_parameters_out_of_range_are_named(tmp_path, wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}"):
        draw_sample_set(tmp_path / "set", **wrong)
    assert not (tmp_path / "set").exists()


def test_command(tmp_path):
    command = [sys.executable, ROOT / "sample_data.py", tmp_path / "set"]
    options = ["--num-classes", "2", "--train-per-class", "1", "--val-per-class", "1"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "drew 2 classes" in done.stdout and (tmp_path / "set" / "wnids.txt").exists()
    (tmp_path / "set" / sample_data.MARKER).unlink()
    refused = subprocess.run([*command, *options], capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and "no sample set" in refused.stderr
