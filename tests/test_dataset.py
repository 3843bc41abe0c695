"""The dataset's folder: labels, lists, packing, and one line for each kind of bad input."""

import codecs
import errno
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers import encode_image, make_dataset, write
from PIL import Image

import input_pipe
from tiny_imagenet import dataset, file_utils, images
from tiny_imagenet.config import DEFAULT_DATA_DIR, TrainConfig
from tiny_imagenet.dataset import describe, open_dataset, open_run_dataset
from tiny_imagenet.errors import UserError
from tiny_imagenet.file_utils import folder_lock
from tiny_imagenet.image_folder import build_label_dicts, load_filenames_labels

FIRST = "train/n01/images/n01_0.JPEG"


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_dataset(tmp_path / "data")


@pytest.fixture
def packings(monkeypatch) -> list[Path]:
    """Grows whenever a dataset is packed."""
    done, pack = [], dataset.pack_dataset
    monkeypatch.setattr(dataset, "pack_dataset", lambda root, *rest: done.append(root) or pack(root, *rest))
    return done


def message(function, *arguments, **settings) -> str:
    """The one line of the UserError that a call must raise."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **settings)
    assert str(caught.value).isprintable(), "an error is one line"
    return str(caught.value)


def is_packed(folder: Path) -> bool:
    """Whether `packed/` holds what it should and nothing else."""
    return {path.name for path in (folder / "packed").iterdir()} == {"train.npy", "val.npy", "index.json"}


# What is read


def test_labels_and_lists_are_of_the_default_folder_if_none_is_given(tmp_path, monkeypatch):
    make_dataset(tmp_path / DEFAULT_DATA_DIR)
    monkeypatch.chdir(tmp_path)
    label_of_id, name_of_label = build_label_dicts()
    assert label_of_id == {"n03": 0, "n01": 1, "n02": 2}
    assert name_of_label == {0: "name of n03", 1: "name of n01", 2: "name of n02"}
    filenames, labels = load_filenames_labels("train")
    assert filenames == [f"train/{c}/images/{c}_{i}.JPEG" for c in ("n01", "n02", "n03") for i in range(3)]
    assert labels == [1, 1, 1, 2, 2, 2, 0, 0, 0]
    assert load_filenames_labels("val") == ([f"val/images/val_{i}.JPEG" for i in range(4)], [0, 1, 2, 0])
    with pytest.raises(ValueError, match="mode"):
        load_filenames_labels("test")


def test_packed_images_equal_pillow(folder):
    write(folder / "train/n02/images/n02_1.JPEG", encode_image(1, progressive=True) + b"trailing")
    data = open_dataset(folder)
    for split in (data.train, data.val):
        assert split.images.shape == (len(split.filenames), 64, 64, 3)
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        for image, filename in zip(split.images, split.filenames, strict=True):
            np.testing.assert_array_equal(image, np.asarray(Image.open(folder / filename).convert("RGB")))
    assert (data.train.num_grayscale, data.val.num_grayscale) == (3, 0)
    assert data.train.labels.tolist() == load_filenames_labels("train", folder)[1]
    assert data.class_ids == ("n03", "n01", "n02") and data.class_names[0] == "name of n03"


def test_a_tensor_aliases_the_packed_images(folder):
    images = open_dataset(folder).train.images
    tensor = input_pipe.as_tensor(images)
    images[1, 2, 3, 0] ^= 255
    assert tensor[1, 2, 3, 0] == images[1, 2, 3, 0], "the tensor is a copy"
    assert open_dataset(folder).train.images[1, 2, 3, 0] != images[1, 2, 3, 0], "the file was written to"


def test_fingerprint_depends_on_contents_only(folder, tmp_path):
    first = open_dataset(folder).fingerprint
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("packed"))  # at another time
    write(tmp_path / "copy/words.txt", "")
    assert open_dataset(tmp_path / "copy").fingerprint == first
    write(folder / "val/images/val_0.JPEG", encode_image(999))
    assert open_dataset(folder).fingerprint != first


# Variations that are accepted


def test_windows_line_ends_byte_order_mark_and_blank_lines(folder):
    expected = open_dataset(folder)
    for name in ("wnids.txt", "words.txt", "val/val_annotations.txt"):
        text = (folder / name).read_text()
        write(folder / name, "\ufeff" + text.replace("\n", "\r\n\r\n") + "  \r\n")
    data = open_dataset(folder)
    assert (data.fingerprint, data.class_names) == (expected.fingerprint, expected.class_names)


@pytest.mark.parametrize(
    ("target", "annotated"), [("val/{}/", False), ("val/{}/images/", True), ("val/images/{}/", True)]
)
def test_the_fingerprint_does_not_depend_on_the_layout(folder, target, annotated):
    before = open_dataset(folder)
    for filename, label in zip(before.val.filenames, before.val.labels, strict=True):
        path = write(folder / target.format(before.class_ids[label]) / Path(filename).name, "")
        (folder / filename).replace(path)
    if not annotated:
        (folder / "val/val_annotations.txt").unlink()
    for path in list((folder / "train").glob("*/images/*")):
        path.rename(path.parent.parent / path.name)
    data = open_dataset(folder)
    assert data.fingerprint == before.fingerprint and data.notes == ()
    assert [Path(name).name for name in data.val.filenames] == [f"val_{i}.JPEG" for i in range(4)]
    assert data.val.labels.tolist() == [0, 1, 2, 0]


def test_image_folder_layout_other_formats_and_sizes(tmp_path):
    for seed, name in enumerate(("zebra", "a cat", "Käse")):
        for i in range(5):
            path = tmp_path / ("train" if i < 4 else "val") / name / f"{i}.png"
            write(path, encode_image(10 * seed + i, size=(80, 64), form="PNG"))
    data = open_dataset(tmp_path)
    assert data.class_ids == data.class_names == ("Käse", "a cat", "zebra") and data.notes == ()
    assert data.train.filenames[:5] == (*(f"train/Käse/{i}.png" for i in range(4)), "train/a cat/0.png")
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    np.testing.assert_array_equal(data.val.images[1], images.read_image(tmp_path / data.val.filenames[1]))


def test_formats_are_mixed_in_the_order_of_names(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in (
        ("n01_0.png", {"form": "PNG", "mode": "L"}),
        ("n01_1a.jpg", {"exif": exif}),
        ("n01_1b.AVIF", {"form": "AVIF", "size": (90, 70)}),
        ("n01_3.jpg", {"mode": "CMYK"}),
    ):
        write(folder / "train/n01/images" / name, encode_image(5, **options))
    train = open_dataset(folder).train
    names = ["n01_0.JPEG", "n01_0.png", "n01_1.JPEG", "n01_1a.jpg", "n01_1b.AVIF", "n01_2.JPEG", "n01_3.jpg"]
    assert [Path(name).name for name in train.filenames[:7]] == names
    for filename, image in zip(train.filenames, train.images, strict=True):
        np.testing.assert_array_equal(image, images.read_image(folder / filename))
    assert np.flatnonzero(train.is_grayscale)[:2].tolist() == [0, 1]
    assert np.flatnonzero(train.is_scaled).tolist() == [4]


def test_train_without_images_folders_linked_folders_and_stray_files(folder, tmp_path):
    for path in list((folder / "train").glob("*/images/*")):
        path.rename(path.parent.parent / path.name.replace(".JPEG", ".jpg"))
    for name in ("train/n01/Thumbs.db", "train/n01/._n01_0.JPEG", "val/.ipynb_checkpoints/x.JPEG"):
        write(folder / name, "")
    shutil.move(folder / "train/n01", tmp_path / "elsewhere")
    (folder / "train/n01").symlink_to(tmp_path / "elsewhere")
    assert len(open_dataset(folder).train.labels) == 9


def test_what_is_odd_is_a_warning(folder, capsys):
    write(folder / "words.txt", "n03\tcrane\x1b[31m, drei\nn01\tcrane\x1b[31m\nn02 no tab\n")
    write(folder / "val/val_annotations.txt", "val_0.JPEG\tn01\nval_1.JPEG\tn03\n")
    for name in ("val/n01/x.JPEG", "train/stray.png", "train/n01/more/y.gif", "train/n02/n02_1.JPEG"):
        write(folder / name, encode_image(7))
    data = open_dataset(folder)
    assert data.class_names == (r"'crane\x1b[31m' (n03)", r"'crane\x1b[31m' (n01)", "n02")
    warnings = capsys.readouterr().err.splitlines()
    for words in (
        "words.txt has no name for n02",
        "no line for val/images/val_2.JPEG, val/images/val_3.JPEG",
        "val has no images of n02",
        "1 image(s) left out, because only those in val/images are used: val/n01/x.JPEG",
        "2 image(s) left out, because only those in class folders are used: train/n01/more/y.gif, train/stray.png",
        r"several classes are called 'crane\x1b[31m'; their ids are added",
        "1 image(s) used twice, because the folder above has them too: train/n02/images/n02_1.JPEG",
    ):
        assert len([line for line in warnings if words in line]) == 1, words
    assert all(line.isprintable() for line in warnings) and len(data.train.labels) == 10


# Holding out training images


def test_held_out_images_are_a_view_of_the_training_images(folder, packings):
    whole = open_dataset(folder)
    shutil.rmtree(folder / "val")
    assert "add --holdout 1 to validate" in message(open_dataset, folder)
    data, other = (open_dataset(folder, holdout=2, seed=seed) for seed in (1, 2))
    assert len(packings) == 3 and data.train.packed.base is not None and len(data.train.packed) == 9
    assert data.train.labels.tolist() == [1, 2, 0] and data.val.labels.tolist() == [1, 1, 2, 2, 0, 0]
    assert sorted([*data.train.filenames, *data.val.filenames]) == sorted(whole.train.filenames)
    for split in (data.train, data.val):
        for image, filename in zip(split.images, split.filenames, strict=True):
            np.testing.assert_array_equal(image, whole.train.images[whole.train.filenames.index(filename)])
    assert data.val.filenames == open_dataset(folder, holdout=2, seed=1).val.filenames != other.val.filenames
    assert len({whole.fingerprint, data.fingerprint, other.fingerprint}) == 3
    config = TrainConfig(batch_size=3, crop_size=64, random_crop=False, random_flip=False, saturation=(1.0, 1.0))
    batch, labels = next(iter(input_pipe.train_batches(data.train, config)))
    expected = dict(zip(data.train.labels, data.train.images, strict=True))
    assert all((image == expected[label]).all() for image, label in zip(batch.numpy(), labels.numpy(), strict=True))
    batch, _ = next(iter(input_pipe.eval_batches(data.val, config)))
    np.testing.assert_array_equal(batch, data.val.images)
    for count in (3, -1):
        assert "must be 1 to 2, because n03 has 3" in message(open_dataset, folder, holdout=count)


def test_validation_images_are_ignored_if_others_are_held_out(folder):
    write(folder / "val/val_annotations.txt", "nonsense")
    assert len(open_dataset(folder, holdout=1).val.labels) == 3
    assert "val_annotations.txt, line 1" in message(open_dataset, folder)


# What is refused


def test_folders_that_are_no_dataset(tmp_path):
    (tmp_path / "empty").mkdir()
    thesis = write(tmp_path / "other/thesis.tex", "x")
    make_dataset(tmp_path / "high/tiny-imagenet-200")
    write(tmp_path / "table/data/train-00000.parquet", "PAR1")
    before = set(tmp_path.rglob("*"))
    for path, expected in (
        (tmp_path / "none", "none does not exist; correct the path, or run: "),
        (tmp_path / "sample-data", "tools.sample_data"),
        (tmp_path / "empty", "is empty"),
        (thesis, "is not a folder"),
        (tmp_path / "other", "other has no images in train/<class>/; put them there"),
        (tmp_path / "high", f"set --data-dir to {tmp_path}/high/tiny-imagenet-200"),
        (tmp_path / "table", "table holds Parquet files"),
    ):
        assert expected in message(open_dataset, path)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("wnids.txt", "", "wnids.txt is missing or empty"),
        ("wnids.txt", "n03\nn01\n\nn01\nn02\n", "wnids.txt, line 4: 'n01' is listed twice"),
        ("wnids.txt", "n03\nn01\nn02\nn04\n", "no usable images of n04"),
        ("wnids.txt", "n03\nn02\n", "train/n01/images has images, but is not in wnids.txt"),
        ("words.txt", b"n03\tthree\nn01\tna\xefve\n", "words.txt, line 2: not UTF-8"),
        ("val/val_annotations.txt", "", "val_annotations.txt is missing or empty"),
        ("val/val_annotations.txt", "val_0.JPEG\tn99\n", "line 1: 'n99' is not a class"),
        ("val/val_annotations.txt", "val_0.JPEG n01\n", "line 1: '' is not a class; a line is: file name, tab"),
        ("val/val_annotations.txt", "val_0.JPEG\tn01\n../x.JPEG\tn01\n", "line 2: '../x.JPEG' is not in val/images"),
        ("val/val_annotations.txt", "val_0.JPEG\tn01\nval_0.JPEG\tn02\n", "line 2: 'val_0.JPEG' is listed twice"),
        ("val/val_annotations.txt", None, "val_annotations.txt is missing"),
        ("val", None, "val has no usable images; add some, or add --holdout 1 to validate on training"),
        ("train", None, "has no images in train/<class>/"),
        ("train/n01/images", None, "train has no usable images of n01"),
    ],
)
def test_files_that_are_refused_or_missing(folder, name, data, expected):
    for path in folder.glob(name):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if data is not None:
        write(folder / name, data)
    assert expected in message(open_dataset, folder)
    assert not (folder / "packed").exists()


# Bad images


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"garbage" * 100, "not an image"),
        (encode_image(1)[:-100], "image file is truncated"),
        (b"\0\0\0\x18ftypheic", "HEIC or a video; convert it"),
    ],
)
def test_bad_image(folder, data, reason, capfd):
    write(folder / FIRST, data)
    tf.io.decode_image(encode_image(1))  # whatever TensorFlow says at its first image
    capfd.readouterr()
    text = message(open_dataset, folder)
    assert text.startswith("1 bad image") and f"{FIRST} ({reason}" in text and "--skip-bad-images" in text
    lines = capfd.readouterr().err.replace("\r", "\n").split("\n")
    assert [line for line in lines if line.strip() and "packing" not in line] == [], "libjpeg prints to stderr"


def test_all_bad_images_are_listed_together(folder):
    (folder / "train/n01/images/a_loop.JPEG").symlink_to("a_loop.JPEG")
    Path(os.fsdecode(os.fsencode(folder) + b"/train/n01/images/caf\xe9.JPEG")).write_bytes(b"")
    for i in range(10):
        write(folder / f"val/images/val_{i}.JPEG", b"")
    write(folder / "val/val_annotations.txt", "".join(f"val_{i}.JPEG\tn01\n" for i in range(10)))
    text = message(open_dataset, folder)
    assert text.startswith("12 bad image") and "val_7.JPEG" in text and "val_8.JPEG" not in text
    assert "and 2 more" in text and f"listed in {folder / 'packed/bad_images.txt'}" in text
    assert (folder / "packed/bad_images.txt").read_text().splitlines()[1:] == [
        "train/n01/images/a_loop.JPEG (Too many levels of symbolic links)",
        r"'train/n01/images/caf\udce9.JPEG' (empty)",
        *(f"val/images/val_{i}.JPEG (empty)" for i in range(10)),
    ]
    assert "val has no usable images" in message(open_dataset, folder, skip_bad_images=True)


def test_skipping_bad_images(folder, capsys):
    write(folder / "train/n02/images/n02_0.JPEG", b"")
    write(folder / "val/images/val_1.JPEG", b"")
    for _ in range(2):  # the second time it is packed already
        data = open_dataset(folder, skip_bad_images=True)
        warning = capsys.readouterr().err
        assert "2 bad image" in warning and "left out" in warning
    assert data.train.labels.tolist() == [1, 1, 1, 2, 2, 0, 0, 0] and data.train.num_grayscale == 2
    assert "train/n02/images/n02_0.JPEG" not in data.train.filenames and len(data.val.labels) == 3
    np.testing.assert_array_equal(data.train.images[-1], np.asarray(Image.open(folder / data.train.filenames[-1])))
    assert np.load(folder / "packed/train.npy").shape == (8, 64, 64, 3)
    assert "2 bad image" in message(open_dataset, folder), "without the flag it is refused again"
    for i in range(3):
        write(folder / f"train/n02/images/n02_{i}.JPEG", b"")
    assert "no usable images of n02" in message(open_dataset, folder, skip_bad_images=True)
    make_dataset(folder)
    open_dataset(folder)
    assert not (folder / "packed/bad_images.txt").exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENOMEM])
@pytest.mark.parametrize("skip_bad_images", [False, True])
def test_an_image_that_cannot_be_read_is_not_a_bad_one(folder, monkeypatch, number, skip_bad_images):
    bad, read = write(folder / FIRST, encode_image(1, form="PNG")), Image.open

    def fail(file, **options):
        if file.name == str(bad):
            raise OSError(number, os.strerror(number))
        return read(file, **options)

    monkeypatch.setattr(Image, "open", fail)
    text = message(open_dataset, folder, skip_bad_images=skip_bad_images)
    assert text.startswith(f"{bad}: {os.strerror(number)}; ")


# When it is packed again


def change_in_place(folder):
    path = folder / "val/images/val_2.JPEG"
    path.write_bytes(encode_image(52).ljust(path.stat().st_size, b"\0")[: path.stat().st_size])


def relabel(folder):
    path = folder / "val/val_annotations.txt"
    path.write_text(path.read_text().replace("val_0.JPEG\tn03", "val_0.JPEG\tn02"))


CHANGES = {
    "add": lambda folder: write(folder / "train/n01/images/new.JPEG", encode_image(50)),
    "replace": lambda folder: write(folder / "new", encode_image(51)).replace(folder / FIRST),
    "rename": lambda folder: (folder / FIRST).rename(folder / FIRST.replace("_0", "_9")),
    "damage array": lambda folder: os.truncate(folder / "packed/train.npy", 1000),
    "damage index": lambda folder: os.truncate(folder / "packed/index.json", 100),
    "change in place": change_in_place,
    "relabel": relabel,
}


@pytest.mark.parametrize("change", CHANGES)
def test_packs_once_and_again_after_a_change(folder, packings, change):
    first, second = open_dataset(folder), open_dataset(folder)
    assert packings == [folder] and is_packed(folder)
    assert first.fingerprint == second.fingerprint
    np.testing.assert_array_equal(first.train.images, second.train.images)
    time.sleep(0.01)  # the resolution of file times is a few milliseconds
    CHANGES[change](folder)
    data = open_dataset(folder)
    assert packings == [folder, folder]
    assert list(data.train.filenames) == load_filenames_labels("train", folder)[0]
    assert data.val.labels.tolist() == load_filenames_labels("val", folder)[1]


def test_a_failing_disk_is_not_a_reason_to_pack_again(folder, packings, monkeypatch):
    open_dataset(folder)

    def fail(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(dataset, "file_stamp", fail)
    assert "packed/train.npy: Input/output error; " in message(open_dataset, folder)
    assert packings == [folder]


# Faults while packing


def test_what_ended_processes_left_is_packed_again_or_removed(folder, monkeypatch):
    fingerprint, rename = open_dataset(folder).fingerprint, Path.replace
    CHANGES["add"](folder)
    write(folder / f"packed/.writing-{'0f' * 8}/train.npy", b"half")

    def end(old, new):
        if new == folder / "packed/index.json":
            raise KeyboardInterrupt
        return rename(old, new)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", end)  # ended after it moved the arrays
        open_dataset(folder)
    data = open_dataset(folder)
    assert data.fingerprint != fingerprint and len(data.train.labels) == 10 and is_packed(folder)


@pytest.mark.parametrize("name", ["packed/train.npy", "packed/index.json", "packed/bad_images.txt"])
@pytest.mark.parametrize("is_link", [False, True])
def test_files_of_others_are_neither_replaced_nor_removed(folder, name, is_link):
    write(folder / "packed/.writing-mine/train.npy", "kept")
    if name == "packed/bad_images.txt":  # the folder is ours, but this file is not
        open_dataset(folder)
        CHANGES["add"](folder)
    other = write(folder.parent / "other" if is_link else folder / name, "important")
    if is_link:
        (folder / name).symlink_to(other)
    assert f"{folder / name}" in message(open_dataset, folder)
    assert other.read_text() == "important" and (folder / name).is_symlink() == is_link
    assert (folder / "packed/.writing-mine/train.npy").read_text() == "kept"


def test_packed_images_may_be_elsewhere(folder, tmp_path):
    elsewhere = tmp_path / "scratch/packed"
    write(folder / FIRST, b"")
    text = message(open_dataset, folder, packed_dir=elsewhere)
    assert f"listed in {elsewhere}/bad_images.txt" in text
    write(folder / FIRST, encode_image(1))
    first = open_dataset(folder, packed_dir=elsewhere)
    assert sorted(path.name for path in elsewhere.iterdir()) == ["index.json", "train.npy", "val.npy"]
    assert not (folder / "packed").exists() and open_dataset(folder).fingerprint == first.fingerprint


def test_a_folder_that_only_a_run_names_is_not_written_to(folder, tmp_path, monkeypatch):
    config = TrainConfig(data_dir=str(folder), packed_dir=str(tmp_path / "packed"), holdout=1, seed=4)
    text = message(open_run_dataset, config)
    assert text.endswith(f"if it is the right dataset, add --data-dir {folder}") and not (tmp_path / "packed").exists()
    named = open_run_dataset(config, folder)
    assert is_packed(folder) and named.val.filenames == open_dataset(folder, holdout=1, seed=4).val.filenames
    open_run_dataset(config, folder, tmp_path / "packed")
    assert open_run_dataset(config).fingerprint == named.fingerprint, "what is packed may be read"
    monkeypatch.chdir(make_dataset(tmp_path / DEFAULT_DATA_DIR).parent)
    assert len(open_run_dataset(TrainConfig()).train.labels) == 9


def test_full_disk(folder):
    """A limit on file sizes has the same effect: an OSError in write. What was packed before is kept."""
    open_dataset(folder)
    packed = (folder / "packed/train.npy").read_bytes()
    CHANGES["add"](folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # train.npy takes 10 * 12,288 + 128 bytes
    try:
        text = message(open_dataset, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large; allow larger files" in text
    assert is_packed(folder) and (folder / "packed/train.npy").read_bytes() == packed
    assert len(open_dataset(folder).train.labels) == 10


def test_folder_and_image_without_permission():
    with tempfile.TemporaryDirectory() as top:  # pytest's folders are closed to other users
        folder = make_dataset(Path(top) / "data")
        for path in (Path(top), *Path(top).rglob("*")):
            os.chown(path, 65534, 65534) if os.getuid() == 0 else None
        user = os.geteuid()
        codecs.lookup("utf-8-sig")  # Python's own files may be closed to the other user
        os.seteuid(65534 if user == 0 else user)  # root may do everything
        try:
            folder.chmod(0o555)
            assert "cannot be written to; choose another folder with --packed-dir" in message(open_dataset, folder)
            folder.chmod(0o755)
            (folder / FIRST).chmod(0)
            assert "n01_0.JPEG (Permission denied)" in message(open_dataset, folder)
            (folder / FIRST).chmod(0o644)
            open_dataset(folder)
            folder.chmod(0o555)
            assert len(open_dataset(folder).train.labels) == 9, "once packed, the folder may be read-only"
            folder.chmod(0o755)
        finally:
            os.seteuid(user)


def test_a_second_process_waits_for_the_first(folder, monkeypatch):
    """A lock keeps out threads of the same process too."""
    waits, second = threading.Event(), threading.Thread(target=open_dataset, args=(folder,), daemon=True)
    monkeypatch.setattr(file_utils, "print", lambda text, file: waits.set(), raising=False)
    with folder_lock(folder):
        second.start()
        assert waits.wait(60) and not (folder / "packed").exists()
    second.join(60)
    assert is_packed(folder)


def test_the_command(folder, monkeypatch, capsys):
    write(folder / "words.txt", "n03\tthree\nn01\tone\n")
    monkeypatch.setattr(sys, "argv", ["input_pipe.py", "--data-dir", str(folder)])
    with pytest.raises(SystemExit) as ended:
        input_pipe.main()
    out = capsys.readouterr().out
    assert ended.value.code == 0 and out.strip() == describe(open_dataset(folder))
    assert "3 classes" in out and "train: 9 images, 3 of them grayscale, 0 scaled" in out and "no name for n02" in out
    write(folder / FIRST, b"")
    with pytest.raises(SystemExit, match=rf"error: 1 bad image.*{FIRST} \(empty\)"):
        input_pipe.main()
