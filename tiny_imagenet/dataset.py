"""Opens a dataset: checks its folder, packs its images once as uint8, and maps them into memory.

`image_folder.py` says what the folder must hold, `packing.py` how the images are kept in `DATA_DIR/packed/`. When an
image or a text file is added, removed or changed, they are packed again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tiny_imagenet.config import DEFAULT_DATA_DIR, IMAGE_SIZE
from tiny_imagenet.download import MD5, URL, download_dataset
from tiny_imagenet.errors import printable
from tiny_imagenet.file_utils import disk_errors, folder_lock
from tiny_imagenet.image_folder import build_label_dicts, check_root, load_filenames_labels, warn
from tiny_imagenet.packing import INDEX_VERSION, file_stamp, folder_stamp, pack_dataset

__all__ = ["Dataset", "Split", "build_label_dicts", "describe", "load_filenames_labels", "open_dataset"]


@dataclass(frozen=True)
class Split:
    """The training or the validation images.

    `images` is a private ("c") memory map: writable, as DLPack requires, but nothing is written to the file.
    """

    images: np.ndarray  # (N, 64, 64, 3) uint8
    labels: np.ndarray  # (N,) int32, indices into Dataset.class_ids
    filenames: Sequence[str]  # N, relative to Dataset.root
    num_grayscale: int  # images stored with one channel, which are packed as three equal ones


@dataclass(frozen=True)
class Dataset:
    """A checked, packed dataset. `notes`: what is wrong with the folder without being an error, one line each."""

    root: Path
    class_ids: tuple[str, ...]  # in the order of wnids.txt: the position is the label
    class_names: tuple[str, ...]  # from words.txt, up to the first comma
    fingerprint: str  # sha256, hexadecimal, of class ids, images and labels
    train: Split
    val: Split
    notes: tuple[str, ...] = ()


def open_dataset(
    data_dir: str | Path = DEFAULT_DATA_DIR,
    download: bool = False,
    url: str = URL,
    md5: str = MD5,
    skip_bad_images: bool = False,
) -> Dataset:
    """Checks a dataset, packs it for training if necessary, and maps it into memory.

    Args:
        data_dir: the dataset's folder, in Tiny ImageNet's layout. The default one is downloaded if it does not exist.
        download: download Tiny ImageNet (237 MB) to any other `data_dir` too, if that does not exist or is empty.
        url: address of the zip file.
        md5: its MD5 checksum, hexadecimal.
        skip_bad_images: leave out images that cannot be used, with a warning, instead of stopping.

    Returns:
        The dataset. Images are uint8 (N, 64, 64, 3), labels int32 (N,), both in the order of `load_filenames_labels`.

    Raises:
        UserError: something is wrong with the folder, a file in it, the disk or the download.
    """
    root = Path(data_dir)
    if download or (root == Path(DEFAULT_DATA_DIR) and not root.exists()):
        download_dataset(root, url, md5)
    check_root(root)
    with disk_errors(root), folder_lock(root):
        stamp = folder_stamp(root)  # taken before the images are read, so that a change meanwhile shows next time
        try:
            dataset = _open_packed(root, stamp, skip_bad_images)
        except Exception as error:  # missing, outdated, or damaged in one of many ways
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise  # no permission, a bad disk: packing again would not help
            pack_dataset(root, stamp, skip_bad_images)
            dataset = _open_packed(root, stamp, skip_bad_images)
    warn(dataset.notes)
    return dataset


def _open_packed(root: Path, stamp: str, skip_bad_images: bool) -> Dataset:
    """The dataset in `packed/`; an exception if there is none, or not one of the folder as it is now."""
    index = json.loads((root / "packed" / "index.json").read_bytes())
    if (index["version"], index["stamp"]) != (INDEX_VERSION, stamp) or (index["has_skipped"] and not skip_bad_images):
        raise ValueError("outdated")
    splits = []
    for name in ("train", "val"):
        part, path = index[name], root / "packed" / f"{name}.npy"
        images, labels = np.lib.format.open_memmap(path, mode="c"), np.array(part["labels"], np.int32)
        is_whole = part["stamp"] == file_stamp(path) and images.shape == (len(labels), IMAGE_SIZE, IMAGE_SIZE, 3)
        if not is_whole or labels.min() < 0 or labels.max() >= len(index["class_ids"]):
            raise ValueError("damaged")
        splits.append(Split(images, labels, tuple(part["filenames"]), part["num_grayscale"]))
    class_ids, class_names, notes = (tuple(index[key]) for key in ("class_ids", "class_names", "notes"))
    return Dataset(root, class_ids, class_names, index["fingerprint"], *splits, notes)


def describe(dataset: Dataset) -> str:
    """What a dataset holds: classes, images and grayscale images of each split, and anything wrong."""
    lines = [f"{printable(dataset.root)}: {len(dataset.class_ids):,} classes"]
    for name, split in (("train", dataset.train), ("val", dataset.val)):
        lines.append(f"  {name}: {len(split.labels):,} images, {split.num_grayscale:,} of them grayscale")
    lines += [f"  warning: {note}" for note in dataset.notes] or ["  nothing wrong"]
    return "\n".join([*lines, f"  fingerprint: {dataset.fingerprint}"])
