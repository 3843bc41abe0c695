"""The dataset's folder: labels, lists, packing, and one line for each kind of bad input."""

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
from tiny_imagenet import dataset, packing
from tiny_imagenet.config import DEFAULT_DATA_DIR
from tiny_imagenet.dataset import build_label_dicts, describe, load_filenames_labels, open_dataset
from tiny_imagenet.errors import UserError
from tiny_imagenet.file_utils import folder_lock

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


@pytest.mark.parametrize("target", ["val/{}/", "val/{}/images/", "val/images/{}/"])
def test_val_in_class_folders(folder, target):
    filenames, labels = load_filenames_labels("val", folder)
    for filename, label in zip(filenames, labels, strict=True):
        path = write(folder / target.format(("n03", "n01", "n02")[label]) / Path(filename).name, "")
        (folder / filename).replace(path)
    if target == "val/{}/":
        (folder / "val/val_annotations.txt").unlink()
    split = open_dataset(folder).val
    found = {Path(f).name: label for f, label in zip(split.filenames, split.labels, strict=True)}
    assert found == {Path(f).name: label for f, label in zip(filenames, labels, strict=True)}


def test_train_without_images_folders_linked_folders_and_stray_files(folder, tmp_path):
    for path in list((folder / "train").glob("*/images/*")):
        path.rename(path.parent.parent / path.name.replace(".JPEG", ".jpg"))
    for name in ("train/n01/Thumbs.db", "train/n01/._n01_0.JPEG", "val/.ipynb_checkpoints/x.JPEG"):
        write(folder / name, "")
    shutil.move(folder / "train/n01", tmp_path / "elsewhere")
    (folder / "train/n01").symlink_to(tmp_path / "elsewhere")
    assert len(open_dataset(folder).train.labels) == 9


def test_what_is_odd_is_a_warning(folder, capsys):
    write(folder / "words.txt", "n03\tthree, drei\nn01 no tab\n")
    write(folder / "val/images/extra.JPEG", encode_image(7))
    data = open_dataset(folder)
    assert data.class_names == ("three", "n01", "n02") and len(data.val.labels) == 4
    warnings = capsys.readouterr().err
    assert "no name for n01, n02" in warnings and "no line for val/images/extra.JPEG" in warnings
    (folder / "words.txt").unlink()
    assert build_label_dicts(folder)[1] == {0: "n03", 1: "n01", 2: "n02"}


# What is refused


def test_folder_that_is_missing_empty_a_file_or_something_else(tmp_path):
    (tmp_path / "empty").mkdir()
    thesis = write(tmp_path / "other/thesis.tex", "x")
    assert "none does not exist; correct --data-dir, or run: " in message(open_dataset, tmp_path / "none")
    assert "tools.sample_data" in message(open_dataset, tmp_path / "sample-data")
    assert "is empty" in message(open_dataset, tmp_path / "empty")
    assert "is not a folder" in message(open_dataset, thesis)
    assert "wnids.txt is missing" in message(open_dataset, tmp_path / "other")
    assert set(tmp_path.rglob("*")) == {tmp_path / "empty", tmp_path / "other", thesis}


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("wnids.txt", "", "wnids.txt is missing or empty"),
        ("wnids.txt", "n03\nn01\n\nn01\nn02\n", "wnids.txt, line 4: 'n01' is listed twice"),
        ("wnids.txt", "n03\n../x\n", "line 2: '../x' cannot be a class id"),
        ("wnids.txt", "n03\nn\x1b1\n", "line 2: 'n\\x1b1' cannot be a class id"),
        ("wnids.txt", "n03\nn01\nn02\nn04\n", "no usable JPEGs of n04"),
        ("wnids.txt", "n03\nn02\n", "train/n01 has images, but is not in wnids.txt"),
        ("words.txt", b"n03\tthree\nn01\tna\xefve\n", "words.txt, line 2: not UTF-8"),
        ("val/val_annotations.txt", "", "val_annotations.txt is missing or empty"),
        ("val/val_annotations.txt", "val_0.JPEG\tn99\n", "line 1: 'n99' is not in wnids.txt"),
        ("val/val_annotations.txt", "val_0.JPEG n01\n", "line 1: '' is not in wnids.txt; a line is: file name, tab"),
        ("val/val_annotations.txt", "val_0.JPEG\tn01\n../x.JPEG\tn01\n", "line 2: '../x.JPEG' is not in val/images"),
        ("val/val_annotations.txt", "val_0.JPEG\tn01\nval_0.JPEG\tn02\n", "line 2: 'val_0.JPEG' is listed twice"),
        ("val/val_annotations.txt", None, "val_annotations.txt is missing"),
        ("val/images", None, "val/images: No such file"),
        ("val/images/*", None, "val has no usable JPEGs"),
        ("train", None, "train: No such file"),
        ("train/n01/images", None, "train has no usable JPEGs of n01"),
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
        (encode_image(1)[:-100], "damaged or cut off"),
        (encode_image(1)[:40], "not an image"),
        (encode_image(1, form="PNG"), "PNG 64x64 RGB, not JPEG 64x64 RGB"),
        (encode_image(1, mode="CMYK"), "JPEG 64x64 CMYK, not"),
        (encode_image(1, size=(128, 64)), "JPEG 128x64 RGB, not"),
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
    (folder / "train/n01/images/a_link.JPEG").symlink_to(folder / "nowhere")
    Path(os.fsdecode(os.fsencode(folder) + b"/train/n01/images/caf\xe9.JPEG")).write_bytes(encode_image(5))
    for i in range(10):
        write(folder / f"val/images/val_{i}.JPEG", b"")
    write(folder / "val/val_annotations.txt", "".join(f"val_{i}.JPEG\tn01\n" for i in range(10)))
    text = message(open_dataset, folder)
    assert text.startswith("12 bad image") and "val_7.JPEG" in text and "val_8.JPEG" not in text
    assert "and 2 more" in text and f"listed in {folder / 'bad_images.txt'}" in text
    assert (folder / "bad_images.txt").read_text().splitlines() == [
        "train/n01/images/a_link.JPEG (No such file or directory)",
        r"'train/n01/images/caf\udce9.JPEG' (its name is not UTF-8)",
        *(f"val/images/val_{i}.JPEG (empty)" for i in range(10)),
    ]
    assert "val has no usable JPEGs" in message(open_dataset, folder, skip_bad_images=True)


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
    assert "no usable JPEGs of n02" in message(open_dataset, folder, skip_bad_images=True)
    make_dataset(folder)
    open_dataset(folder)
    assert not (folder / "bad_images.txt").exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize("skip_bad_images", [False, True])
def test_an_image_that_cannot_be_read_is_not_a_bad_one(folder, monkeypatch, number, skip_bad_images):
    bad, read = write(folder / FIRST, b""), Path.read_bytes

    def fail(path):
        if path == bad:
            raise OSError(number, os.strerror(number))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    text = message(open_dataset, folder, skip_bad_images=skip_bad_images)
    assert text.startswith(f"{bad}: {os.strerror(number)}; ")


@pytest.mark.parametrize("skip_bad_images", [False, True])
def test_an_image_that_can_be_read_later_is_not_a_bad_one(folder, monkeypatch, skip_bad_images):
    """As when there were too many open files for a moment."""
    decode = packing.decode_batches
    monkeypatch.setattr(packing, "decode_batches", lambda *a: ([x[1:] for x in batch] for batch in decode(*a)))
    text = message(open_dataset, folder, skip_bad_images=skip_bad_images)
    assert text.startswith(f"{folder / FIRST} could not be read")


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


def test_ended_between_renaming_arrays_and_index(folder, monkeypatch):
    fingerprint, rename = open_dataset(folder).fingerprint, Path.replace
    CHANGES["add"](folder)

    def end(old, new):
        if new == folder / "packed/index.json":
            raise KeyboardInterrupt
        return rename(old, new)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", end)
        open_dataset(folder)
    assert open_dataset(folder).fingerprint != fingerprint
    assert is_packed(folder)


@pytest.mark.parametrize("name", [".writing/train.npy", "train.npy", "val.npy"])
def test_what_a_killed_process_left_is_not_used(folder, name):
    write(folder / "packed" / name, b"half")
    assert len(open_dataset(folder).train.labels) == 9
    assert is_packed(folder)


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
        os.seteuid(65534 if user == 0 else user)  # root may do everything
        try:
            folder.chmod(0o555)
            assert "packed: Permission denied" in message(open_dataset, folder)
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


def test_a_second_process_waits_for_the_first(folder, capsys):
    """A lock keeps out threads of the same process too."""
    second = threading.Thread(target=open_dataset, args=(folder,))
    with folder_lock(folder):
        second.start()
        error = ""
        while "waiting for another process" not in error and second.is_alive():
            error += capsys.readouterr().err
        assert second.is_alive() and not (folder / "packed").exists()
    second.join(60)
    assert is_packed(folder)


def test_the_command(folder, monkeypatch, capsys):
    write(folder / "words.txt", "n03\tthree\nn01\tone\n")
    monkeypatch.setattr(sys, "argv", ["input_pipe.py", "--data-dir", str(folder)])
    with pytest.raises(SystemExit) as ended:
        input_pipe.main()
    out = capsys.readouterr().out
    assert ended.value.code == 0 and out.strip() == describe(open_dataset(folder))
    assert "3 classes" in out and "train: 9 images, 3 of them grayscale" in out and "no name for n02" in out
    write(folder / FIRST, b"")
    with pytest.raises(SystemExit, match=rf"error: 1 bad image.*{FIRST} \(empty\)"):
        input_pipe.main()
