"""The dataset's folder: labels, lists, packing, and one line for every bad input."""

from startup import UserError, tf

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from folders import make_folder, picture, write
from PIL import Image

import packing
from dataset import build_label_dicts, describe, load_filenames_labels, open_dataset
from files import locked

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_folder(tmp_path / "data")


def message(function, *arguments, **settings) -> str:
    """The one line of the UserError that a call must raise."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **settings)
    text = str(caught.value)
    assert text.isprintable(), "an error is one line"
    return text


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def run_python(code: str, *arguments) -> subprocess.CompletedProcess:
    """Runs code in a new process at the project's root; a UserError ends it with one line and exit code 1."""
    code = f"from startup import UserError, command\n@command\ndef main():\n    import sys\n    {code}\nmain()\n"
    arguments = [sys.executable, "-B", "-c", code, *map(str, arguments)]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120)


OPEN = "from dataset import open_dataset; print(len(open_dataset(sys.argv[1]).train.labels))"


# What is read


def test_labels_follow_wnids_and_names_end_at_the_comma(folder):
    label_of_id, name_of_label = build_label_dicts(folder)
    assert label_of_id == {"n03": 0, "n01": 1, "n02": 2}
    assert name_of_label == {0: "name of n03", 1: "name of n01", 2: "name of n02"}


def test_lists_are_sorted_and_labelled(folder):
    filenames, labels = load_filenames_labels(folder, "train")
    assert filenames == [f"train/{c}/images/{c}_{i}.JPEG" for c in ("n01", "n02", "n03") for i in range(3)]
    assert labels == [1, 1, 1, 2, 2, 2, 0, 0, 0]
    filenames, labels = load_filenames_labels(folder, "val")
    assert filenames == [f"val/images/val_{i}.JPEG" for i in range(4)]
    assert labels == [0, 1, 2, 0]
    with pytest.raises(ValueError, match="mode"):
        load_filenames_labels(folder, "test")


def test_packed_pictures_equal_pillow(folder):
    data = open_dataset(folder)
    for split in (data.train, data.val):
        assert split.images.shape == (len(split.filenames), 64, 64, 3)
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        for image, filename in zip(split.images, split.filenames, strict=True):
            np.testing.assert_array_equal(image, np.asarray(Image.open(folder / filename).convert("RGB")))
    assert (data.train.num_grey, data.val.num_grey) == (3, 0)
    assert data.train.labels.tolist() == load_filenames_labels(folder, "train")[1]
    assert data.class_ids == ("n03", "n01", "n02") and data.class_names[0] == "name of n03"


def test_dlpack_aliases_the_packed_pictures(folder):
    images = open_dataset(folder).train.images
    assert images.ctypes.data % 64 == 0 and images.flags.writeable and images.flags.c_contiguous
    tensor = tf.experimental.dlpack.from_dlpack(images.__dlpack__())
    images[1, 2, 3, 0] ^= 255
    assert tensor[1, 2, 3, 0] == images[1, 2, 3, 0], "the tensor is a copy"
    assert open_dataset(folder).train.images[1, 2, 3, 0] != images[1, 2, 3, 0], "the file was written to"


def test_describe(folder):
    write(folder / "words.txt", "n03\tthree\nn01\tone\n")
    text = describe(open_dataset(folder))
    assert "3 classes" in text and "train: 9 pictures, 3 of them grey" in text and "val: 4 pictures, 0" in text
    assert "no name for n02" in text


def test_fingerprint_is_of_contents_not_of_place_or_time(folder, tmp_path):
    first = open_dataset(folder).fingerprint
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("packed"))  # other times
    write(tmp_path / "copy/words.txt", "")
    assert open_dataset(tmp_path / "copy").fingerprint == first
    write(folder / "val/images/val_0.JPEG", picture(999))
    assert open_dataset(folder).fingerprint != first


# Variations that are accepted


def test_windows_line_ends_byte_order_mark_and_blank_lines(folder):
    expected = (open_dataset(folder).fingerprint, open_dataset(folder).class_names)
    for name in ("wnids.txt", "words.txt", "val/val_annotations.txt"):
        text = (folder / name).read_text()
        write(folder / name, ("\ufeff" + text.replace("\n", "\r\n\r\n") + "  \r\n").encode())
    data = open_dataset(folder)
    assert (data.fingerprint, data.class_names) == expected


@pytest.mark.parametrize("target", ["val/{}/", "val/{}/images/", "val/images/{}/"])
@pytest.mark.parametrize("keep_annotations", [True, False])
def test_val_sorted_into_class_folders(folder, target, keep_annotations):
    filenames, labels = load_filenames_labels(folder, "val")
    expected = {Path(f).name: label for f, label in zip(filenames, labels, strict=True)}
    for filename, label in zip(filenames, labels, strict=True):
        data = (folder / filename).read_bytes()
        (folder / filename).unlink()
        write(folder / target.format(("n03", "n01", "n02")[label]) / Path(filename).name, data)
    if not keep_annotations:
        (folder / "val/val_annotations.txt").unlink()
    split = open_dataset(folder).val
    assert {Path(f).name: label for f, label in zip(split.filenames, split.labels, strict=True)} == expected


def test_train_without_images_folders_and_litter(folder):
    for class_id in ("n01", "n02", "n03"):
        for path in (folder / f"train/{class_id}/images").iterdir():
            path.rename(path.parent.parent / path.name.replace(".JPEG", ".jpg"))
        write(folder / f"train/{class_id}/Thumbs.db", b"litter")
        write(folder / f"train/{class_id}/._n01_0.JPEG", b"litter")
    write(folder / "train/.DS_Store", b"litter")
    write(folder / "val/.ipynb_checkpoints/x.JPEG", b"litter")
    assert len(open_dataset(folder).train.labels) == 9


def test_missing_names_fall_back_to_the_id(folder, capsys):
    write(folder / "words.txt", "n03\tthree, drei\nn01 no tab\n")
    assert build_label_dicts(folder)[1] == {0: "three", 1: "n01", 2: "n02"}
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "n01, n02" in warning
    (folder / "words.txt").unlink()
    assert open_dataset(folder).class_names == ("n03", "n01", "n02")
    assert "words.txt is missing" in capsys.readouterr().err


def test_val_picture_without_annotation_is_left_out_and_said(folder, capsys):
    write(folder / "val/images/extra.JPEG", picture(7))
    assert len(open_dataset(folder).val.labels) == 4
    assert "no line for extra.JPEG" in capsys.readouterr().err


# Text files and folders that are refused


def test_folder_missing_empty_or_a_file(tmp_path):
    assert "does not exist" in message(open_dataset, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "is empty" in message(open_dataset, tmp_path / "empty")
    assert "is a file" in message(open_dataset, write(tmp_path / "file", "x"))
    assert contents(tmp_path) == {"empty", "file"}


def test_another_folder_is_left_as_it_was(tmp_path):
    write(tmp_path / "thesis.tex", "x")
    assert "wnids.txt is missing" in message(open_dataset, tmp_path)
    assert contents(tmp_path) == {"thesis.tex"}


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("wnids.txt", "", "wnids.txt is empty"),
        ("wnids.txt", "n03\nn01\n\nn01\nn02\n", "line 4: 'n01' is already on line 2"),
        ("wnids.txt", "n03\n../x\n", "line 2: '../x' cannot be a class id"),
        ("wnids.txt", "n03\nn\x1b1\n", "line 2: 'n\\x1b1' cannot be a class id"),
        ("wnids.txt", "n03\nn01\nn02\nn04\n", "no folder for n04"),
        ("wnids.txt", "n03\nn02\n", "n01 is not in wnids.txt"),
        ("wnids.txt", b"n03\nn\xff1\n", "line 2: not UTF-8"),
        ("words.txt", b"n03\tthree\nn01\tna\xefve\n", "line 2: not UTF-8"),
        ("val/val_annotations.txt", "", "val_annotations.txt is empty"),
        ("val/val_annotations.txt", "val_0.JPEG\tn99\n", "line 1: class 'n99' is not in wnids.txt"),
        ("val/val_annotations.txt", "val_0.JPEG\tn01\nval_9.JPEG\tn01\n", "line 2: val/images has no val_9.JPEG"),
        ("val/val_annotations.txt", "../../x.JPEG\tn01\n", "val/images has no ../../x.JPEG"),
        ("val/val_annotations.txt", "val_0.JPEG n01\n", "line 1: 'val_0.JPEG n01' is not 'file name <TAB> class id"),
        ("val/val_annotations.txt", "val_0.JPEG\tn01\nval_0.JPEG\tn02\n", "line 2: 'val_0.JPEG' is already on line 1"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn01\n\xff\tn01\n", "line 2: not UTF-8"),
    ],
)
def test_text_files_that_are_refused(folder, name, data, expected):
    write(folder / name, data)
    text = message(open_dataset, folder)
    assert expected in text
    assert not (folder / "packed").exists()


@pytest.mark.parametrize(
    ("removed", "expected"),
    [
        ("wnids.txt", "wnids.txt is missing"),
        ("val/val_annotations.txt", "val_annotations.txt is missing"),
        ("val/images", "holds no pictures"),
        ("val", "val is missing"),
        ("train", "train is missing"),
        ("train/n01", "has no folder for n01"),
        ("train/n01/images", "no .jpeg/.jpg pictures for n01"),
    ],
)
def test_parts_that_are_missing(folder, removed, expected):
    path = folder / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert expected in message(open_dataset, folder)
    assert not (folder / "packed").exists()


def test_text_file_that_is_a_folder(folder):
    (folder / "wnids.txt").unlink()
    (folder / "wnids.txt").mkdir()
    assert "wnids.txt: Is a directory" in message(open_dataset, folder)


# Bad pictures


BAD = {
    "empty": (b"", "empty"),
    "garbage": (b"garbage" * 100, "not a picture"),
    "truncated": (picture(1)[:-100], "truncated"),
    "header-only": (picture(1)[:40], "damaged"),
    "png": (picture(1, form="PNG"), "PNG, not JPEG"),
    "gif": (picture(1, form="GIF"), "GIF, not JPEG"),
    "cmyk": (picture(1, mode="CMYK"), "CMYK, neither colour (RGB) nor grey"),
    "large": (picture(1, size=(128, 64)), "128x64, not 64x64"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_picture_is_named_with_the_reason(folder, kind):
    data, reason = BAD[kind]
    write(folder / "train/n02/images/n02_1.JPEG", data)
    text = message(open_dataset, folder)
    assert text.startswith("1 bad picture ") and f"train/n02/images/n02_1.JPEG ({reason})" in text
    assert "--skip-bad-images" in text
    assert not (folder / "packed").exists()


def test_progressive_jpeg_and_trailing_bytes_are_good(folder):
    write(folder / "train/n02/images/n02_1.JPEG", picture(1, progressive=True) + b"trailing")
    assert len(open_dataset(folder).train.labels) == 9


def test_all_bad_pictures_are_listed_together(folder):
    for i in range(12):
        write(folder / f"train/n02/images/bad_{i:02}.JPEG", b"")
    write(folder / "val/images/val_3.JPEG", b"")
    text = message(open_dataset, folder)
    assert text.startswith("13 bad pictures ") and "bad_09.JPEG" in text and "bad_10.JPEG" not in text
    assert f"and 3 more, all listed in {folder / 'bad_pictures.txt'}" in text
    listed = (folder / "bad_pictures.txt").read_text().splitlines()
    assert listed == [
        *(f"train/n02/images/bad_{i:02}.JPEG (empty)" for i in range(12)),
        "val/images/val_3.JPEG (empty)",
    ]
    for line in listed[:-1]:
        (folder / line.removesuffix(" (empty)")).unlink()
    write(folder / "val/images/val_3.JPEG", picture(3))
    open_dataset(folder)
    assert not (folder / "bad_pictures.txt").exists()


def test_skipping_bad_pictures(folder, capsys):
    write(folder / "train/n02/images/n02_0.JPEG", b"")
    write(folder / "val/images/val_1.JPEG", b"")
    data = open_dataset(folder, skip_bad_images=True)
    error = capsys.readouterr().err
    assert "2 bad pictures" in error and "left out" in error
    assert data.train.labels.tolist() == [1, 1, 1, 2, 2, 0, 0, 0] and data.train.num_grey == 2
    assert "train/n02/images/n02_0.JPEG" not in data.train.filenames and len(data.val.labels) == 3
    expected = Image.open(folder / data.train.filenames[-1])
    np.testing.assert_array_equal(data.train.images[-1], np.asarray(expected))
    assert np.load(folder / "packed/train.npy").shape == (8, 64, 64, 3)
    open_dataset(folder, skip_bad_images=True)
    assert "2 bad pictures" in capsys.readouterr().err, "a second call says it too"
    assert "2 bad pictures" in message(open_dataset, folder), "without the flag it complains again"


def test_skipping_must_leave_each_class_a_picture(folder):
    for i in range(3):
        write(folder / f"train/n01/images/n01_{i}.JPEG", b"")
    assert "only bad pictures for n01" in message(open_dataset, folder, skip_bad_images=True)


def test_file_name_that_is_not_utf8(folder):
    path = os.fsencode(folder) + b"/train/n01/images/caf\xe9.JPEG"
    with open(path, "wb") as file:  # noqa: PTH123 - Path takes no bytes
        file.write(picture(5))
    assert r"caf\udce9.JPEG' (its name is not UTF-8)" in message(open_dataset, folder)
    assert len(open_dataset(folder, skip_bad_images=True).train.labels) == 9


def test_dangling_link_is_a_bad_picture(folder):
    (folder / "train/n01/images/link.JPEG").symlink_to(folder / "nowhere")
    assert "link.JPEG (No such file or directory)" in message(open_dataset, folder)


def test_linked_pictures_and_folders_are_followed(folder, tmp_path):
    shutil.move(folder / "train/n01", tmp_path / "elsewhere")
    (folder / "train/n01").symlink_to(tmp_path / "elsewhere")
    assert len(open_dataset(folder).train.labels) == 9


# When it is packed anew


@pytest.fixture
def packings(monkeypatch) -> list[str]:
    """Grows by the split's name whenever one is packed."""
    import dataset

    done, real = [], dataset.pack_split

    def counting(root, name, *rest):
        done.append(name)
        return real(root, name, *rest)

    monkeypatch.setattr(dataset, "pack_split", counting)
    return done


def test_packs_once(folder, packings):
    first, second = open_dataset(folder), open_dataset(folder)
    assert packings == ["train", "val"]
    assert first.fingerprint == second.fingerprint
    np.testing.assert_array_equal(first.train.images, second.train.images)
    assert contents(folder / "packed") == {"train.npy", "val.npy", "index.json"}


def add(folder):
    write(folder / "train/n01/images/new.JPEG", picture(50))


def remove(folder):
    (folder / "train/n01/images/n01_0.JPEG").unlink()


def replace(folder):
    os.replace(write(folder / "new", picture(51)), folder / "train/n01/images/n01_0.JPEG")  # noqa: PTH105


def change_in_place(folder):
    path = folder / "val/images/val_2.JPEG"
    path.write_bytes(picture(52).ljust(path.stat().st_size, b"\0")[: path.stat().st_size])


def rename(folder):
    (folder / "train/n01/images/n01_0.JPEG").rename(folder / "train/n01/images/n01_9.JPEG")


def relabel(folder):
    path = folder / "val/val_annotations.txt"
    path.write_text(path.read_text().replace("val_0.JPEG\tn03", "val_0.JPEG\tn02"))


def damage_array(folder):
    os.truncate(folder / "packed/train.npy", 1000)


def damage_index(folder):
    path = folder / "packed/index.json"
    path.write_bytes(path.read_bytes()[:-5])


CHANGES = [add, remove, replace, change_in_place, rename, relabel, damage_array, damage_index]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_noticed(folder, packings, change):
    open_dataset(folder)
    packings.clear()
    time.sleep(0.01)  # file times come in steps of a few milliseconds
    change(folder)
    data = open_dataset(folder)
    assert packings == ["train", "val"]
    assert list(data.train.filenames) == load_filenames_labels(folder, "train")[0]
    assert data.val.labels.tolist() == load_filenames_labels(folder, "val")[1]


# Faults while packing


def test_killed_packing_is_not_taken_for_whole(folder, packings):
    """The process is killed between the arrays' and the index's renaming: the worst moment."""
    open_dataset(folder)
    add(folder)
    code = """import os, signal, pathlib, dataset
    real = pathlib.Path.replace
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
    pathlib.Path.replace = lambda old, new: kill() if new.name == "index.json" else real(old, new)
    dataset.open_dataset(sys.argv[1])"""
    assert run_python(code, folder).returncode == -signal.SIGKILL
    assert contents(folder / "packed") == {"train.npy", "val.npy", "index.json.partial"}
    packings.clear()
    assert len(open_dataset(folder).train.labels) == 10
    assert packings == ["train", "val"]
    assert contents(folder / "packed") == {"train.npy", "val.npy", "index.json"}, "litter was removed"


@pytest.mark.parametrize("name", ["train.npy.partial", "val.npy.partial", "train.npy", "val.npy"])
def test_what_a_killed_packing_left_is_not_taken_for_whole(folder, name):
    write(folder / "packed" / name, b"half")
    assert len(open_dataset(folder).train.labels) == 9
    assert contents(folder / "packed") == {"train.npy", "val.npy", "index.json"}


def test_disk_full(folder):
    """A limit on file sizes stands for the full disk: both are an OSError in write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # train.npy takes 9 * 12,288 + 128 bytes
    try:
        text = message(open_dataset, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in text and not (folder / "packed").exists()
    assert len(open_dataset(folder).train.labels) == 9


def test_no_space_keeps_nothing_half_written(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing.os, "fsync", full)
    text = message(open_dataset, folder)
    assert "No space left on device" in text and "free some space" in text
    assert not (folder / "packed").exists()


def test_folder_and_picture_without_permission():
    """Root reads and writes everything, so that a root process becomes another user, after its imports."""
    code = """import os, pathlib, dataset
    folder = pathlib.Path(sys.argv[1])
    dataset.open_dataset(sys.argv[2])  # so that all is imported that is imported late
    dataset.bad_pictures(folder, ["wnids.txt"])
    if os.getuid() == 0:
        os.setgroups([]), os.setgid(65534), os.setuid(65534)
    def attempt(folder_mode, picture_mode):
        (folder / "train/n01/images/n01_1.JPEG").chmod(picture_mode)
        folder.chmod(folder_mode)
        try:
            print(len(dataset.open_dataset(folder).train.labels))
        except UserError as error:
            print(error)
    attempt(0o555, 0o644), attempt(0o755, 0)
    attempt(0o755, 0o644), attempt(0o555, 0o644)"""
    with tempfile.TemporaryDirectory() as top:
        folder = make_folder(Path(top) / "data")
        if os.getuid() == 0:
            for path in (Path(top), *Path(top).rglob("*")):
                os.chown(path, 65534, 65534)
        result = run_python(code, folder, make_folder(Path(top) / "first"))
        folder.chmod(0o755)
    lines = result.stdout.splitlines()
    assert len(lines) == 4, result.stderr
    assert "packed: Permission denied" in lines[0]
    assert "n01_1.JPEG (Permission denied)" in lines[1]
    assert lines[2:] == ["9", "9"], "once packed, the folder may be read-only"


def test_a_second_process_waits_for_the_first(folder):
    arguments = [sys.executable, "-B", "-c", f"import sys; {OPEN}", str(folder)]
    with locked(folder):
        second = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert "waiting for another process" in second.stderr.readline()
        assert not (folder / "packed").exists()
    out, error = second.communicate(timeout=120)
    assert (second.returncode, out.strip()) == (0, "9"), error
    assert contents(folder / "packed") == {"train.npy", "val.npy", "index.json"}


def test_libjpeg_is_held_back(folder, capfd):
    """It writes to file descriptor 2 by itself, a line a bad picture."""
    write(folder / "train/n02/images/n02_1.JPEG", picture(1)[:-100])
    write(folder / "train/n02/images/n02_2.JPEG", b"garbage")
    tf.io.decode_image(picture(1))  # whatever TensorFlow says at its first picture
    capfd.readouterr()
    message(open_dataset, folder)
    lines = capfd.readouterr().err.replace("\r", "\n").split("\n")
    assert [line for line in lines if line.strip() and "packing" not in line] == []


def test_index_is_plain_json(folder):
    open_dataset(folder)
    index = json.loads((folder / "packed/index.json").read_text())
    assert index["train"]["labels"] == load_filenames_labels(folder, "train")[1]
    header = (folder / "packed/train.npy").read_bytes()[:128]
    assert np.lib.format.read_magic(io.BytesIO(header)) == (1, 0)
