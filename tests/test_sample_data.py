"""The sample set: Tiny ImageNet's layout, the same bytes every time, classes told apart by shape only, safe writing."""

import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import write
from PIL import Image

from tiny_imagenet.errors import UserError
from tools import sample_data
from tools.sample_data import SHAPES, draw_image, draw_sample_set

SMALL = {"num_classes": 3, "train_per_class": 4, "val_per_class": 2}
IDS = [shape.class_id for shape in SHAPES]


def contents(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def small_set(tmp_path_factory) -> Path:
    return draw_sample_set(tmp_path_factory.mktemp("drawn") / "set", **SMALL)


def test_the_layout_is_tiny_imagenets(small_set):
    train = {f"train/{i}/images/{i}_{k}.JPEG" for i in IDS[:3] for k in range(4)}
    others = {f"{split}/images/{split}_{k}.JPEG" for split, count in (("val", 6), ("test", 3)) for k in range(count)}
    lists = {f"train/{i}/{i}_boxes.txt" for i in IDS[:3]} | {"val/val_annotations.txt", "wnids.txt", "words.txt"}
    assert set(contents(small_set)) == train | others | lists | {sample_data.MARKER}
    rows = {name: [line.split("\t") for line in (small_set / name).read_text().splitlines()] for name in lists}
    assert rows["wnids.txt"] == [[i] for i in IDS[:3]]
    words = dict(rows["words.txt"])
    assert [words[i].split(",")[0] for i in IDS[:3]] == ["circle", "square", "triangle"]
    found = [(name, label, len(box)) for name, label, *box in rows["val/val_annotations.txt"]]
    assert found == [(f"val_{k}.JPEG", IDS[k % 3], 4) for k in range(6)]
    for class_id in IDS[:3]:
        for k, (name, *box) in enumerate(rows[f"train/{class_id}/{class_id}_boxes.txt"]):
            assert name == f"{class_id}_{k}.JPEG"
            with Image.open(small_set / "train" / class_id / "images" / name) as image:
                assert (image.format, image.size, image.mode) == ("JPEG", (64, 64), "RGB")
            x0, y0, x1, y1 = map(int, box)
            assert 0 <= x0 < x1 < 64 and 0 <= y0 < y1 < 64
    assert len(set(IDS)) == 10 and sorted(IDS) != IDS  # sorting the ids would give other labels


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


def test_the_command_keeps_an_equal_set_and_replaces_another(small_set, tmp_path, monkeypatch, capsys):
    folder = Path(shutil.copytree(small_set, tmp_path / "set"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert draw_sample_set(folder, **SMALL) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert "already there" in capsys.readouterr().out
    monkeypatch.setattr(sample_data, "GRAYSCALE_EVERY", 3)
    options = "--num-classes 2 --train-per-class 4 --val-per-class 1"
    monkeypatch.setattr(sys, "argv", ["sample_data.py", str(folder), *options.split()])
    with pytest.raises(SystemExit, match="0"):
        sample_data.main()
    assert "2 classes" in capsys.readouterr().out
    images = sorted(folder.rglob("*.JPEG"))
    assert [Image.open(path).mode for path in images] == ["RGB"] * 2 + 2 * ["RGB", "RGB", "L", "RGB"] + ["RGB"] * 2


def test_anything_else_is_not_touched(tmp_path):
    for folder, file in ((tmp_path / "folder", tmp_path / "folder/photo.jpg"), (tmp_path / "file", tmp_path / "file")):
        write(file, "mine")
        with pytest.raises(UserError, match="not a sample set"):
            draw_sample_set(folder, **SMALL)
        assert file.read_text() == "mine"
    for parameter, value in (("num_classes", 11), ("train_per_class", 0), ("seed", -1)):
        with pytest.raises(UserError, match=f"{parameter} is {value}"):
            draw_sample_set(tmp_path / "set", **{parameter: value})
    assert not (tmp_path / "set").exists()


def test_a_draw_that_fails_keeps_the_earlier_set(small_set, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(small_set, tmp_path / "set"))

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample_data, "_draw_mixed", fail)  # train/ is drawn by then
    with pytest.raises(UserError, match="No space left"):
        draw_sample_set(folder, **SMALL, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert contents(folder) == contents(small_set)
