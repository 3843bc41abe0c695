"""Opens a dataset: checks its folder, packs its images once as uint8, and maps them into memory.

`image_folder.py` says what the folder must hold, `packing.py` how the images are kept. When an image or a text file is
added, removed or changed, they are packed again.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from tiny_imagenet import ROOT
from tiny_imagenet.config import DEFAULT_DATA_DIR, TrainConfig
from tiny_imagenet.download import MD5, URLS, download_dataset
from tiny_imagenet.errors import UserError, printable, warn
from tiny_imagenet.file_utils import disk_errors, folder_lock
from tiny_imagenet.image_folder import check_root, file_stamp, scan_folder
from tiny_imagenet.packing import INDEX_VERSION, pack_dataset


@dataclass(frozen=True)
class Split:
    """The training or the validation images.

    `packed` is a private ("c") memory map: writable, as DLPack requires, but nothing is written to the file.
    """

    packed: np.ndarray  # (M, 64, 64, 3) uint8
    labels: np.ndarray  # (N,) int32, indices into Dataset.class_ids
    filenames: Sequence[str]  # N, relative to Dataset.root
    is_grayscale: np.ndarray  # (N,) bool: stored with one channel, and packed as three equal ones
    is_scaled: np.ndarray  # (N,) bool: of another size
    rows: np.ndarray | None = None  # (N,) where in `packed` the images are; None: M = N, in the same order

    @property
    def num_grayscale(self) -> int:
        """How many images are stored with one channel."""
        return int(np.sum(self.is_grayscale))

    @property
    def images(self) -> np.ndarray:
        """(N, 64, 64, 3) uint8; a copy if they are only some of the packed images."""
        return self.packed if self.rows is None else self.packed[self.rows]

    def select(self, positions: Sequence[int]) -> "Split":
        """The images at these positions, without copying them."""
        rows = np.arange(len(self.labels)) if self.rows is None else self.rows
        filenames = [self.filenames[i] for i in positions]
        arrays = (values[positions] for values in (self.is_grayscale, self.is_scaled, rows))
        return Split(self.packed, self.labels[positions], filenames, *arrays)


@dataclass(frozen=True)
class Dataset:
    """A checked, packed dataset. `notes`: what is wrong with the folder without being an error, one line each."""

    root: Path
    class_ids: tuple[str, ...]  # in the order of wnids.txt: the position is the label
    class_names: tuple[str, ...]  # from words.txt, up to the first comma
    fingerprint: str  # sha256, hexadecimal, of class ids, images and labels, and of what is held out
    train: Split
    val: Split
    notes: tuple[str, ...] = ()


def open_dataset(
    data_dir: str | Path = DEFAULT_DATA_DIR,
    download: bool = False,
    url: str | None = None,
    md5: str = MD5,
    skip_bad_images: bool = False,
    packed_dir: str | Path = "",
    holdout: int = 0,
    seed: int = 0,
    may_write: tyro.conf.Suppress[bool] = True,
) -> Dataset:
    """Checks a dataset, packs it for training if necessary, and maps it into memory.

    Args:
        data_dir: the dataset's folder, in Tiny ImageNet's or ImageFolder's layout. The default one is downloaded if it
            does not exist.
        download: download Tiny ImageNet (237 MB) to any other `data_dir` too, if that does not exist or is empty.
        url: address of the zip file; None: the known ones, one after the other.
        md5: its MD5 checksum, hexadecimal.
        skip_bad_images: leave out images that cannot be used, with a warning, instead of stopping.
        packed_dir: the folder for the packed images; empty: packed/ in the dataset's folder.
        holdout: validate on this many training images of each class, not on the dataset's validation images; 0: off.
        seed: which images are held out.
        may_write: pack the images if they are not packed; otherwise, stop.

    Returns:
        The dataset. Images are uint8 (N, 64, 64, 3), labels int32 (N,), both in the order of `load_filenames_labels`.

    Raises:
        UserError: something is wrong with the folder, a file in it, the disk or the download.
    """
    root = Path(data_dir)
    if download or (root == Path(DEFAULT_DATA_DIR) and not root.exists()):
        download_dataset(root, URLS if url is None else (url,), md5)
    check_root(root)
    packed = Path(packed_dir) if packed_dir else root / "packed"
    with disk_errors(root), folder_lock(root):
        files, stamp = scan_folder(root)  # before the images are read, so that a change meanwhile shows next time
        dataset = _open_packed(root, packed, stamp, skip_bad_images, holdout)
        if not dataset:
            if not may_write:
                problem = f"the images of {printable(root)}, which only the run names, must be packed first"
                raise UserError(f"{problem}; if it is the right dataset, add --data-dir {printable(root)}")
            pack_dataset(root, packed, files, stamp, skip_bad_images, not holdout)
            dataset = _open_packed(root, packed, stamp, skip_bad_images, holdout)
    warn(dataset.notes)
    return hold_out(dataset, holdout, seed) if holdout else dataset


def open_run_dataset(
    config: TrainConfig, data_dir: str | Path = "", packed_dir: str | Path = "", download: bool = False
) -> Dataset:
    """Opens the dataset of a run, with the same images held out.

    Args:
        config: the run's. Images are not packed in folders that only it names, except for the default dataset.
        data_dir: the dataset's folder; empty: the one that the run was trained on.
        packed_dir: the folder for the packed images; empty: packed/ in `data_dir` or, without that, the run's.
        download: as for `open_dataset`.
    """
    named = bool(data_dir or packed_dir)
    root, packed = (data_dir or config.data_dir), (packed_dir if named else config.packed_dir)
    is_default = Path(root).resolve() in (Path(DEFAULT_DATA_DIR).resolve(), ROOT / DEFAULT_DATA_DIR)
    options = {"skip_bad_images": config.skip_bad_images, "holdout": config.holdout, "seed": config.seed}
    options |= {"packed_dir": packed, "may_write": named or (is_default and not packed)}
    return open_dataset(root, download, **options)


def _open_packed(root: Path, packed: Path, stamp: str, skip_bad_images: bool, holdout: int) -> Dataset | None:
    """The dataset in `packed`; None if there is none, or not one of the folder as it is now."""
    try:
        index = json.loads((packed / "index.json").read_bytes())
        is_current = (index["version"], index["stamp"]) == (INDEX_VERSION, stamp)
        if not is_current or (index["has_skipped"] and not skip_bad_images):
            return None
        splits = []
        for name in ("train", "val"):
            part, path = index[name], packed / f"{name}.npy"
            if part["stamp"] != file_stamp(path):
                return None
            flags = [np.isin(np.arange(len(part["labels"])), part[key]) for key in ("grayscale", "scaled")]
            images, labels = np.lib.format.open_memmap(path, mode="c"), np.array(part["labels"], np.int32)
            splits.append(Split(images, labels, tuple(part["filenames"]), *flags))
    except (FileNotFoundError, NotADirectoryError, LookupError, TypeError, ValueError):  # missing, old or damaged
        return None
    if not (holdout or len(splits[1].labels)):
        return None  # packed without validation images
    class_ids, class_names = tuple(index["class_ids"]), tuple(index["class_names"])
    notes = (*index["notes"], *(() if holdout else index["val"]["notes"]))
    return Dataset(root, class_ids, class_names, index["fingerprint"], *splits, notes)


def hold_out(dataset: Dataset, per_class: int, seed: int) -> Dataset:
    """The dataset with some of its training images, drawn at random, as its validation images.

    Args:
        dataset: its own validation images are not used.
        per_class: how many of each class.
        seed: which ones.

    Raises:
        UserError: a class would have none left for training.
    """
    labels = dataset.train.labels
    counts = np.bincount(labels, minlength=len(dataset.class_ids))
    if not 0 < per_class < counts.min():
        fewest = f"{printable(dataset.class_ids[counts.argmin()])} has {counts.min()} training images"
        raise UserError(f"holdout is {per_class}; it must be 1 to {counts.min() - 1}, because {fewest}")
    order = np.random.RandomState(seed).permutation(len(labels))  # unlike default_rng's, it never changes
    held = np.sort(np.concatenate([order[labels[order] == label][:per_class] for label in range(len(counts))]))
    train, val = dataset.train.select(np.setdiff1d(order, held)), dataset.train.select(held)
    fingerprint = hashlib.sha256(f"{dataset.fingerprint} {per_class} {seed}".encode()).hexdigest()
    return replace(dataset, fingerprint=fingerprint, train=train, val=val)


def describe(dataset: Dataset) -> str:
    """What a dataset holds: classes, images of each split, how many are grayscale or scaled, and anything wrong."""
    lines = [f"{printable(dataset.root)}: {len(dataset.class_ids):,} classes"]
    for name, split in (("train", dataset.train), ("val", dataset.val)):
        counts = f"{split.num_grayscale:,} of them grayscale, {split.is_scaled.sum():,} scaled to 64x64"
        lines.append(f"  {name}: {len(split.labels):,} images, {counts}")
    lines += [f"  warning: {note}" for note in dataset.notes] or ["  nothing wrong"]
    return "\n".join([*lines, f"  fingerprint: {dataset.fingerprint}"])
