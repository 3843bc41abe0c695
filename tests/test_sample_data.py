"""The sample set: Tiny ImageNet's layout, the same bytes every time, classes told apart by shape only, safe writing."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_one_line_error, write
from PIL import Image

from tiny_imagenet import ROOT
from tiny_imagenet.errors import UserError
from tools import sample_data
from tools.sample_data import SHAPES, draw_image, draw_sample_set

SMALL = {"num_classes": 3, "train_per_class": 4, "val_per_class": 2}


def contents(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def small_set(tmp_path_factory) -> Path:
    return draw_sample_set(tmp_path_factory.mktemp("drawn") / "set", **SMALL)


def test_the_layout_is_tiny_imagenets(small_set):
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
    rows = [line.split("\t") for line in (small_set / "val/val_annotations.txt").read_text().splitlines()]
    assert [(row[0], row[1], len(row)) for row in rows] == [(f"val_{k}.JPEG", ids[k % 3], 6) for k in range(6)]
    for class_id in ids:
        rows = (small_set / f"train/{class_id}/{class_id}_boxes.txt").read_text().splitlines()
        for k, (name, *box) in enumerate(row.split("\t") for row in rows):
            assert name == f"{class_id}_{k}.JPEG"
            with Image.open(small_set / "train" / class_id / "images" / name) as image:
                assert (image.format, image.size, image.mode) == ("JPEG", (64, 64), "RGB")
            x0, y0, x1, y1 = map(int, box)
            assert 0 <= x0 < x1 < 64 and 0 <= y0 < y1 < 64
    all_ids = [shape.class_id for shape in SHAPES]
    assert len(set(all_ids)) == 10 and all_ids != sorted(all_ids)  # sorting the ids would give other labels


def test_the_same_seed_gives_the_same_images_and_a_larger_set_contains_the_smaller(small_set, tmp_path, monkeypatch):
    first = contents(small_set)
    assert contents(draw_sample_set(tmp_path / "new" / "folder", **SMALL)) == first
    images = {name: digest for name, digest in first.items() if name.endswith(".JPEG")}
    assert len(set(images.values())) == len(images) == 12 + 6 + 3
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    draw_sample_set(Path(), **SMALL, seed=1)
    other = contents(tmp_path / "empty")
    assert all(other[name] != digest for name, digest in images.items())
    larger = contents(draw_sample_set(tmp_path / "larger", num_classes=4, train_per_class=5, val_per_class=2))
    assert all(larger[name] == digest for name, digest in images.items() if name.startswith("train/"))


def test_some_images_are_grayscale(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_data, "GRAYSCALE_EVERY", 3)
    images = sorted((draw_sample_set(tmp_path / "set", **SMALL) / "train/n90000004/images").iterdir())
    assert [Image.open(path).mode for path in images] == ["RGB", "RGB", "L", "RGB"]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.names.split(",")[0])
def test_the_box_is_where_the_shape_is(shape, monkeypatch):
    """Without clutter and noise, on an even background, only the shape is bright."""
    gray = Image.new("RGB", (64 * sample_data.OVERSAMPLE,) * 2, (128, 128, 128))
    monkeypatch.setattr(sample_data, "_background", lambda rng, brightness: gray.copy())
    monkeypatch.setattr(sample_data, "_clutter", lambda rng, draw, brightness: None)
    monkeypatch.setattr(sample_data, "_color", lambda rng, brightness: np.array([255, 255, 255]))
    monkeypatch.setattr(sample_data, "NOISE", 0.0)
    for k in range(5):
        image, box = draw_image(shape.outline, np.random.default_rng(k))
        rows, columns = np.nonzero(np.asarray(image)[..., 0] > 138)
        assert np.abs(np.array([columns.min(), rows.min(), columns.max(), rows.max()]) - box).max() <= 1
        assert min(box) > 0 and max(box) < 63  # the shape is not cut off


def test_color_does_not_give_the_class_away():
    """A linear classifier on the mean, spread and range of each color is little better than chance, 10 %."""

    def color_features(numbers: range) -> np.ndarray:
        draws = [draw_image(s.outline, np.random.default_rng([k, n])) for k, s in enumerate(SHAPES) for n in numbers]
        x = np.stack([np.asarray(image, float) for image, _ in draws])
        return np.hstack([x.mean((1, 2)), x.std((1, 2)), x.min((1, 2)), x.max((1, 2)), np.ones((len(x), 1))])

    train, val = color_features(range(60)), color_features(range(60, 80))
    weights = np.linalg.lstsq(train, np.eye(10)[np.repeat(np.arange(10), 60)], rcond=None)[0]
    assert np.mean((val @ weights).argmax(1) == np.repeat(np.arange(10), 20)) < 0.25


def test_a_set_that_is_there_is_kept_and_one_of_other_parameters_replaced(small_set, tmp_path, capsys):
    folder = Path(shutil.copytree(small_set, tmp_path / "set"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert draw_sample_set(folder, **SMALL) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert "already there" in capsys.readouterr().out
    draw_sample_set(folder, num_classes=2, train_per_class=1, val_per_class=1)
    assert len(list(folder.rglob("*.JPEG"))) == 2 + 2 + 2
    assert json.loads((folder / sample_data.MARKER).read_text())["num_classes"] == 2


def test_anything_else_is_not_touched(tmp_path):
    for folder, file in ((tmp_path / "folder", tmp_path / "folder/photo.jpg"), (tmp_path / "file", tmp_path / "file")):
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
        with pytest.raises(UserError, match="not a sample set"):
            draw_sample_set(folder, **SMALL)
        assert file.read_text() == "mine"
    for parameter, value in (("num_classes", 11), ("train_per_class", 0), ("seed", -1)):
        with pytest.raises(UserError, match=f"{parameter} is {value}"):
            draw_sample_set(tmp_path / "set", **{parameter: value})
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_draw_that_fails_keeps_the_earlier_set(small_set, tmp_path, monkeypatch, error):
    folder = Path(shutil.copytree(small_set, tmp_path / "set"))

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(sample_data, "_draw_mixed", fail)  # train/ is drawn by then
        with pytest.raises((KeyboardInterrupt, UserError), match="No space left" if error.args else None):
            draw_sample_set(folder, **SMALL, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert contents(folder) == contents(small_set)


def test_what_a_killed_draw_leaves_is_not_taken_for_a_set(small_set, tmp_path):
    write(tmp_path / ".writing-set/wnids.txt", "half a")
    assert contents(draw_sample_set(tmp_path / "set", **SMALL)) == contents(small_set)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.slow
def test_the_command(tmp_path):
    options = ["--num-classes", "2", "--train-per-class", "1", "--val-per-class", "1"]
    command = [sys.executable, "-m", "tools.sample_data", str(tmp_path / "set"), *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "2 classes" in result.stdout and (tmp_path / "set" / "wnids.txt").exists()
    (tmp_path / "set" / sample_data.MARKER).unlink()
    assert_one_line_error(subprocess.run(command, cwd=ROOT, capture_output=True, text=True), "not a sample set")
