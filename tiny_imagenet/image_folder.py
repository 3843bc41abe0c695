"""What a folder in Tiny ImageNet's layout holds: class ids, class names, images and labels. No image is opened.

    DATA_DIR/wnids.txt                     one class id per line; a class's label is its position here, from 0
    DATA_DIR/words.txt                     class id <TAB> names, separated by commas; may be missing
    DATA_DIR/train/<id>/images/*.JPEG      the <id>_boxes.txt next to it is not read
    DATA_DIR/val/val_annotations.txt       file name <TAB> class id <TAB> box; the box is not read
    DATA_DIR/val/images/*.JPEG

Class folders may hold their images directly (`train/<id>/*.JPEG`), and `val` or `val/images` may be sorted into class
folders, as many tools leave it. Blank lines and Windows line ends in the text files are fine. Only files that end in
.JPEG or .jpg, in upper or lower case, count as images.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tiny_imagenet.config import DEFAULT_DATA_DIR
from tiny_imagenet.errors import UserError, printable
from tiny_imagenet.file_utils import disk_errors
from tiny_imagenet.recipes import RECIPES

SUFFIXES = (".jpeg", ".jpg")  # of images, in lower case


class ImageList(NamedTuple):
    """The images of one split, and notes: what is odd about it without being an error, one line each."""

    filenames: list[str]  # relative to the dataset's folder, sorted
    labels: list[int]
    notes: list[str]


def warn(notes: Iterable[str]) -> None:
    """Prints each note as a warning."""
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)


def first_few(items: Sequence[str], limit: int = 3) -> str:
    """The first items, and how many more there are."""
    return ", ".join(map(printable, items[:limit])) + f" and {len(items) - limit} more" * (len(items) > limit)


def check_root(data_dir: str | Path) -> Path:
    """The dataset's folder, which must exist and hold something."""
    root = Path(data_dir)
    with disk_errors(root):
        if root.is_dir() and any(root.iterdir()):
            return root
        problem = "is empty" if root.is_dir() else "is not a folder" if root.exists() else "does not exist"
    script = "-m tools.sample_data" if root.name == RECIPES["demo"].data_dir else "input_pipe.py --download --data-dir"
    raise UserError(f"{printable(root)} {problem}; correct --data-dir, or run: python {script} {printable(root)}")


# The text files


def _read_lines(path: Path, purpose: str = "") -> list[tuple[str, str]]:
    """The lines of a UTF-8 file that are not blank, each as (file and line number, line).

    Raises:
        UserError: the file is not UTF-8; or it has a purpose, but is missing or empty.
    """
    name = printable(path)
    with disk_errors(path):
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except FileNotFoundError:
            text = ""
        except UnicodeDecodeError as error:
            number = error.object[: error.start].count(b"\n") + 1
            raise UserError(f"{name}, line {number}: not UTF-8; save the file as UTF-8") from None
    lines = [(f"{name}, line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if purpose and not lines:
        raise UserError(f"{name} is missing or empty; {purpose}")
    return lines


def read_class_ids(root: Path) -> dict[str, int]:
    """Class id -> label, in the order of wnids.txt."""
    label_of_id: dict[str, int] = {}
    for where, line in _read_lines(root / "wnids.txt", "it must list the class ids, one per line"):
        class_id = line.strip()
        if not class_id.isprintable() or "/" in class_id or class_id in (".", ".."):
            raise UserError(f"{where}: {class_id[:60]!r} cannot be a class id, because it cannot be a folder's name")
        if class_id in label_of_id:
            raise UserError(f"{where}: {class_id[:60]!r} is listed twice; remove one of the lines")
        label_of_id[class_id] = len(label_of_id)
    return label_of_id


def read_class_names(root: Path, class_ids: Iterable[str]) -> tuple[list[str], list[str]]:
    """The class names, up to their first comma, and notes. A class without a name in words.txt is called by its id."""
    words = {}
    for _, line in _read_lines(root / "words.txt"):
        class_id, _, names = line.partition("\t")
        words[class_id.strip()] = names.split(",")[0].strip()
    missing = [class_id for class_id in class_ids if not words.get(class_id)]
    note = f"{printable(root / 'words.txt')} has no name for {first_few(missing)}; the id is used instead"
    return [printable(words.get(class_id) or class_id) for class_id in class_ids], [note] * bool(missing)


def build_label_dicts(data_dir: str | Path = DEFAULT_DATA_DIR) -> tuple[dict[str, int], dict[int, str]]:
    """Reads the classes from wnids.txt and words.txt.

    Returns:
        Class id -> label (its position in wnids.txt, from 0), and label -> class name (words.txt up to the first comma;
        the id, with a warning, if words.txt has no name).

    Raises:
        UserError: a file is missing or malformed; the message names the file and the line.
    """
    root = check_root(data_dir)
    label_of_id = read_class_ids(root)
    names, notes = read_class_names(root, label_of_id)
    warn(notes)
    return label_of_id, dict(enumerate(names))


# The images


def is_image(name: str) -> bool:
    """Whether a file, by its name, is one of the dataset's images."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")  # macOS leaves "._x.JPEG" files


def _list_folder(root: Path, folder: str) -> list[str]:
    """The images directly in `root/folder`, relative to root, sorted; none if there is no such folder."""
    try:
        with os.scandir(root / folder) as entries:  # is_symlink: a broken link must be reported, not overlooked
            images = [entry for entry in entries if is_image(entry.name) and (entry.is_symlink() or entry.is_file())]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(f"{folder}/{entry.name}" for entry in images)


def _list_class_folders(root: Path, split: str, label_of_id: dict[str, int]) -> ImageList:
    """The images of a split that is sorted into class folders."""
    images = ImageList([], [], [])
    for class_id in sorted(path.name for path in (root / split).iterdir() if not path.name.startswith(".")):
        folder = f"{split}/{class_id}"
        found = sorted(_list_folder(root, f"{folder}/images") + _list_folder(root, folder))
        if found and class_id not in label_of_id:
            raise UserError(f"{printable(root / folder)} has images, but is not in wnids.txt; add or move it")
        images.filenames.extend(found)
        images.labels.extend(label_of_id[class_id] for _ in found)
    return images


def list_images(root: Path, mode: str, label_of_id: dict[str, int]) -> ImageList:
    """The images of "train"; or those of "val", which may be in `val/images`, with annotations, or in class folders."""
    if mode == "val" and (found := _list_folder(root, "val/images")):
        return _list_annotated(root, found, label_of_id)
    images = _list_class_folders(root, mode, label_of_id)
    if mode == "val" and not images.filenames:
        images = _list_class_folders(root, "val/images", label_of_id)
    check_labels(root, mode, label_of_id, images.labels)
    return images


def check_labels(root: Path, mode: str, class_ids: Iterable[str], labels: Iterable[int]) -> None:
    """Raises UserError if a split has no images or, for "train", a class has none."""
    present = set(labels)
    empty = [class_id for label, class_id in enumerate(class_ids) if label not in present]
    if not present or (empty and mode == "train"):
        problem = f"{printable(root / mode)} has no usable JPEGs of {first_few(empty)}"
        raise UserError(f"{problem}; add some, or remove the class from wnids.txt")


def read_folder(root: Path) -> tuple[dict[str, int], list[str], dict[str, ImageList], list[str]]:
    """Class id -> label, class names, the images of "train" and "val", and all notes."""
    label_of_id = read_class_ids(root)
    class_names, notes = read_class_names(root, label_of_id)
    splits = {mode: list_images(root, mode, label_of_id) for mode in ("train", "val")}
    return label_of_id, class_names, splits, notes + splits["train"].notes + splits["val"].notes


def _list_annotated(root: Path, found: list[str], label_of_id: dict[str, int]) -> ImageList:
    """The images found in val/images, with the labels that val_annotations.txt gives them."""
    path = root / "val" / "val_annotations.txt"
    labels: dict[str, int] = {}
    unlabeled = set(found)
    for where, line in _read_lines(path, "it must give each image of val/images its class"):
        name, class_id = (field.strip() for field in f"{line}\t".split("\t")[:2])
        filename = f"val/images/{name}"
        if class_id not in label_of_id:
            raise UserError(f"{where}: {class_id[:60]!r} is not in wnids.txt; a line is: file name, tab, class id")
        if filename not in unlabeled:
            problem = "is listed twice" if filename in labels else "is not in val/images"
            raise UserError(f"{where}: {name[:60]!r} {problem}; remove the line, or unpack the dataset again")
        unlabeled.remove(filename)
        labels[filename] = label_of_id[class_id]
    note = f"{printable(path)} has no line for {first_few(sorted(unlabeled))}; left out"
    return ImageList(sorted(labels), [labels[filename] for filename in sorted(labels)], [note] * bool(unlabeled))


def load_filenames_labels(mode: str, data_dir: str | Path = DEFAULT_DATA_DIR) -> tuple[list[str], list[int]]:
    """Lists the images of one split, sorted by name, without opening them.

    Args:
        mode: "train" or "val".
        data_dir: the dataset's folder.

    Returns:
        File names relative to `data_dir`, and their labels.

    Raises:
        UserError: a file or folder is missing, empty or malformed; the message names the file and the line.
        ValueError: `mode` is something else.
    """
    if mode not in ("train", "val"):
        raise ValueError(f"mode must be 'train' or 'val', got {mode!r}")
    root = check_root(data_dir)
    with disk_errors(root):
        images = list_images(root, mode, read_class_ids(root))
    warn(images.notes)
    return images.filenames, images.labels
