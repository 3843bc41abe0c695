"""Opens a dataset: downloaded if asked for, checked, packed as uint8 once, and mapped into memory.

`layout.py` says what the folder must hold, `packing.py` how the pictures are kept in `DATA_DIR/packed/`. When a picture
or a text file is added, removed or changed, they are packed anew.
"""

from startup import UserError, command, command_line

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import DEFAULT_DATA_DIR, PICTURE_SIZE
from download import download_dataset
from files import locked, os_errors_named, shown
from layout import (
    build_label_dicts,
    check_no_class_is_empty,
    checked_root,
    load_filenames_labels,
    read_class_ids,
    read_class_names,
    train_pictures,
    val_pictures,
    warn,
)
from packing import BAD_LIST, INDEX_VERSION, bad_pictures, commit, file_stamp, folder_stamp, pack_split, remove_partial

__all__ = ["Dataset", "Split", "build_label_dicts", "describe", "load_filenames_labels", "open_dataset"]

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


@dataclass(frozen=True)
class Split:
    """The training or the validation pictures.

    `images` (N, 64, 64, 3) uint8 is a private ("c") memory map: writable, as DLPack asks, but nothing reaches the file.
    """

    images: np.ndarray
    labels: np.ndarray  # (N,) int32, indices into Dataset.class_ids
    filenames: Sequence[str]  # N, relative to Dataset.root
    num_grey: int  # pictures stored with one channel; packed as three equal ones


@dataclass(frozen=True)
class Dataset:
    """A checked, packed dataset. `notes` are what is wrong with the folder without being an error, a line each."""

    root: Path
    class_ids: tuple[str, ...]  # in the order of wnids.txt, which is the label
    class_names: tuple[str, ...]  # from words.txt, up to the first comma
    fingerprint: str  # sha256, hexadecimal, of class ids, pictures and labels
    train: Split
    val: Split
    notes: tuple[str, ...] = ()


# ---------------------------------------------------------------------------------------------------------------------
# Packing


def _pack(root: Path, stamp: str, skip_bad_images: bool) -> None:
    """Checks the folder and writes `packed/`: arrays and index under temporary names, renamed when all is on disk."""
    class_ids = read_class_ids(root)
    class_names, notes = read_class_names(root, class_ids)
    label_of_id = {class_id: label for label, class_id in enumerate(class_ids)}
    train, val = train_pictures(root, label_of_id), val_pictures(root, label_of_id)

    index = {"version": INDEX_VERSION, "stamp": stamp, "class_ids": class_ids, "class_names": class_names}
    digest = hashlib.sha256(json.dumps(class_ids).encode())
    packed = root / "packed"
    packed.mkdir(exist_ok=True)
    remove_partial(packed)  # of a process that was killed
    try:
        index["train"], bad_train = pack_split(root, "train", train.filenames, train.labels, digest)
        index["val"], bad_val = pack_split(root, "val", val.filenames, val.labels, digest)
        skipped = _check_bad_pictures(root, bad_train + bad_val, index, skip_bad_images)
        index |= {"fingerprint": digest.hexdigest(), "notes": [*notes, *train.notes, *val.notes, *skipped]}
        commit(packed, index | {"has_skipped": bool(skipped)})
    finally:
        remove_partial(packed)
        with suppress(OSError):  # it holds something, as it should
            packed.rmdir()


def _check_bad_pictures(root: Path, bad: Sequence[str], index: dict, skip_bad_images: bool) -> list[str]:
    """A note on the bad pictures that are left out, if that is allowed and enough are left; none if all are good."""
    if not bad:
        (root / BAD_LIST).unlink(missing_ok=True)  # of an earlier time
        return []
    if not skip_bad_images:
        raise UserError(f"{bad_pictures(root, bad)}; replace them, or leave them out with --skip-bad-images")
    check_no_class_is_empty(root, index["class_ids"], index["train"]["labels"], "only bad pictures")
    if not index["val"]["labels"]:
        raise UserError(f"{shown(root / 'val')} has only bad pictures; {bad_pictures(root, bad)}")
    return [f"{bad_pictures(root, bad)}; left out"]


# ---------------------------------------------------------------------------------------------------------------------
# Opening


def _open_split(root: Path, name: str, part: dict, num_classes: int) -> Split:
    if part["stamp"] != file_stamp(root / "packed" / f"{name}.npy"):
        raise ValueError(f"{name}.npy was changed after it was packed")
    images = np.lib.format.open_memmap(root / "packed" / f"{name}.npy", mode="c")
    labels = np.array(part["labels"], np.int32)
    if (
        images.shape != (len(labels), PICTURE_SIZE, PICTURE_SIZE, 3)
        or images.dtype != np.uint8
        or not images.flags.c_contiguous
    ):
        raise ValueError(f"{name}.npy does not belong to its index")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels of {name} are out of range")
    return Split(images, labels, tuple(part["filenames"]), part["num_grey"])


def _open_packed(root: Path, stamp: str, skip_bad_images: bool) -> Dataset | None:
    """The dataset from `packed/`; None if there is none, or it is not of this folder as it is now."""
    try:
        index = json.loads((root / "packed" / "index.json").read_bytes())
        if (index["version"], index["stamp"]) != (INDEX_VERSION, stamp):
            return None
        if index["has_skipped"] and not skip_bad_images:
            return None  # packing anew says which are bad
        splits = [_open_split(root, name, index[name], len(index["class_ids"])) for name in ("train", "val")]
        ids, names, notes = (tuple(index[key]) for key in ("class_ids", "class_names", "notes"))
        return Dataset(root, ids, names, index["fingerprint"], *splits, notes)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:  # no permission: packing anew would not mend it
        raise
    except Exception:  # damaged, in one of many ways: it is packed anew
        return None


def open_dataset(
    data_dir: str | Path = DEFAULT_DATA_DIR,
    download: bool = False,
    url: str = URL,
    md5: str = MD5,
    skip_bad_images: bool = False,
) -> Dataset:
    """Checks a dataset, packs it unless that has been done, and maps it into memory.

    Args:
        data_dir: The dataset's root. If it is `DEFAULT_DATA_DIR` and does not exist, it is downloaded.
        download: Download to any other `data_dir` too, if it does not exist or is empty.
        url: Address of the zip file.
        md5: Its hash, hexadecimal.
        skip_bad_images: Leave bad pictures out, with a warning, instead of stopping.

    Returns:
        The dataset. Pictures are uint8 (N, 64, 64, 3), labels int32 (N,); train and val are in the order of
        `load_filenames_labels`.

    Raises:
        UserError: The folder, a file in it, the disk or the download is not as it must be.
    """
    root = Path(data_dir)
    if download or (root == Path(DEFAULT_DATA_DIR) and not root.exists()):
        download_dataset(root, url, md5)
    root = checked_root(root)
    with os_errors_named(root):
        dataset = _open_or_pack(root, skip_bad_images)
    warn(dataset.notes)
    return dataset


def _open_or_pack(root: Path, skip_bad_images: bool) -> Dataset:
    with locked(root):
        stamp = folder_stamp(root)  # taken before the pictures are read, so that a change meanwhile shows next time
        dataset = _open_packed(root, stamp, skip_bad_images)
        if dataset is None:
            _pack(root, stamp, skip_bad_images)
            dataset = _open_packed(root, stamp, skip_bad_images)
    if dataset is None:
        raise UserError(f"{shown(root / 'packed')} cannot be read back after it was written; remove it and try again")
    return dataset


def describe(dataset: Dataset) -> str:
    """Says what was found: classes, pictures and grey ones of each split, anything wrong."""
    lines = [f"{shown(dataset.root)}: {len(dataset.class_ids):,} classes"]
    for name, split in (("train", dataset.train), ("val", dataset.val)):
        lines.append(f"  {name}: {len(split.labels):,} pictures, {split.num_grey:,} of them grey")
    lines += [f"  warning: {note}" for note in dataset.notes] or ["  nothing wrong"]
    lines.append(f"  fingerprint: {dataset.fingerprint}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# The command: `python input_pipe.py`


@dataclass(frozen=True)
class Arguments:
    """Checks a dataset, packs it for training, and prints what it found."""

    data_dir: str = DEFAULT_DATA_DIR
    """The dataset's folder, in Tiny ImageNet's layout."""
    download: bool = False
    """Download Tiny ImageNet into DATA_DIR if that folder is not there (237 MB)."""
    url: str = URL
    """Where the zip file is, for mirrors."""
    md5: str = MD5
    """The zip file's MD5 checksum."""
    skip_bad_images: bool = False
    """Leave out pictures that cannot be used, instead of stopping."""


@command
def main() -> None:
    """Runs the command."""
    arguments = command_line(Arguments)
    print(describe(open_dataset(**vars(arguments))))
