"""What a dataset's folder holds: class ids, class names, images and labels. No image is opened.

    DATA_DIR/train/<class>/*               images; the folders' names, sorted, are the classes (ImageFolder's layout)
    DATA_DIR/val/<class>/*                 may be missing if training images are held out

    DATA_DIR/wnids.txt                     Tiny ImageNet's layout has, in addition: one class id per line; a class's
                                           label is its position here, from 0
    DATA_DIR/words.txt                     class id <TAB> names, separated by commas; may be missing
    DATA_DIR/train/<id>/images/*           the <id>_boxes.txt next to it is not read
    DATA_DIR/val/val_annotations.txt       file name <TAB> class id <TAB> box; the box is not read
    DATA_DIR/val/images/*

In both, images may be in `<class>/` or `<class>/images/`, and `val/images` may be sorted into class folders. Blank
lines and Windows line ends in the text files are fine. Hidden files and folders are ignored.
"""

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tiny_imagenet.config import DEFAULT_DATA_DIR
from tiny_imagenet.errors import UserError, first_few, printable, warn
from tiny_imagenet.file_utils import disk_errors, is_empty
from tiny_imagenet.images import is_image
from tiny_imagenet.recipes import RECIPES

TEXT_FILES = ("wnids.txt", "words.txt", "val/val_annotations.txt")


class ImageList(NamedTuple):
    """The images of one split, and notes: what is odd about it without being an error, one line each."""

    filenames: list[str]  # relative to the dataset's folder
    labels: list[int]
    notes: list[str]


def check_root(data_dir: str | Path) -> Path:
    """The dataset's folder, which must exist and hold something."""
    root = Path(data_dir)
    with disk_errors(root):
        if root.is_dir() and not is_empty(root):
            return root
        problem = "is empty" if root.is_dir() else "is not a folder" if root.exists() else "does not exist"
    script = "-m tools.sample_data" if root.name == RECIPES["demo"].data_dir else "input_pipe.py --download --data-dir"
    raise UserError(f"{printable(root)} {problem}; correct the path, or run: python {script} {printable(root)}")


def scan_folder(root: Path) -> tuple[list[str], str]:
    """The image files of train and val; and a stamp: sha256 over names, sizes and times of all files that are read.

    The times of the folders would not show that an image was overwritten in place. 0.3 s for 105,000 images.
    """
    files, stamps = [], [file_stamp(root / name) for name in TEXT_FILES]
    for split in ("train", "val"):
        with suppress(FileNotFoundError, NotADirectoryError):  # reported when the dataset is packed
            for folder, folders, names, descriptor in os.fwalk(root / split, onerror=_fail, follow_symlinks=True):
                path = os.path.relpath(folder, root)
                is_deep = path.count("/") > 4  # links may form a circle
                folders[:] = [] if is_deep else sorted(name for name in folders if not name.startswith("."))
                images = sorted(name for name in names if is_image(name))
                files += [f"{path}/{name}" for name in images]
                stamps += [file_stamp(name, descriptor) for name in images]  # twice as fast as with the path
    return files, hashlib.sha256(repr((files, stamps)).encode()).hexdigest()


def file_stamp(path: str | Path, dir_fd: int | None = None) -> list[int] | None:
    """Size and modification time of a file, which show that it was changed; None if it is missing or a broken link."""
    try:
        status = os.stat(path, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return None
    return [status.st_size, status.st_mtime_ns]


def _fail(error: OSError) -> None:
    raise error


def _read_lines(path: Path, purpose: str = "") -> list[tuple[str, str]]:
    """The lines of a UTF-8 file that are not blank, each as (file and line number, line).

    Raises:
        UserError: the file is not UTF-8; or it has a purpose, but is missing or empty.
    """
    lines = []
    with disk_errors(path), suppress(FileNotFoundError):
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            where = f"{printable(path)}, line {number}"
            try:
                lines.append((where, line.decode("utf-8-sig")))
            except UnicodeDecodeError:
                raise UserError(f"{where}: not UTF-8; save the file as UTF-8") from None
    lines = [(where, line) for where, line in lines if line.strip()]
    if purpose and not lines:
        raise UserError(f"{printable(path)} is missing or empty; {purpose}")
    return lines


# The classes


def build_label_dicts(data_dir: str | Path = DEFAULT_DATA_DIR) -> tuple[dict[str, int], dict[int, str]]:
    """Reads the classes from wnids.txt and words.txt; without them, they are the class folders of train.

    Returns:
        Class id -> label (its position in wnids.txt, from 0), and label -> class name (words.txt up to the first comma;
        the id, with a warning, if words.txt has no name).

    Raises:
        UserError: a file is missing or malformed; the message names the file and the line.
    """
    root = check_root(data_dir)
    with disk_errors(root):
        label_of_id, names, notes = read_classes(root, scan_folder(root)[0])
    warn(notes)
    return label_of_id, dict(enumerate(names))


def read_classes(root: Path, files: Sequence[str]) -> tuple[dict[str, int], list[str], list[str]]:
    """Class id -> label; the class names, unique, up to their first comma; and notes."""
    folders = {class_id for name in files if name.startswith("train/") and (class_id := _class_id(name))}
    if not folders:
        raise UserError(f"{printable(root)} {_what_it_holds(root)}")
    label_of_id = {class_id: label for label, class_id in enumerate(sorted(folders))}
    has_list, words, notes = (root / "wnids.txt").exists(), {}, []
    if has_list:
        label_of_id = {}
        for where, line in _read_lines(root / "wnids.txt", "it must list the class ids, one per line"):
            if line.strip() in label_of_id:
                raise UserError(f"{where}: {line.strip()[:60]!r} is listed twice; remove one of the lines")
            label_of_id[line.strip()] = len(label_of_id)
    for _, line in _read_lines(root / "words.txt"):
        class_id, _, synonyms = line.partition("\t")
        words[class_id.strip()] = synonyms.split(",")[0].strip()
    if (missing := [i for i in label_of_id if not words.get(i)]) and (words or has_list):
        notes.append(f"{printable(root / 'words.txt')} has no name for {first_few(missing)}; the id is used instead")
    names = [printable(words.get(class_id) or class_id) for class_id in label_of_id]
    counts = Counter(names)
    if shared := [name for name in counts if counts[name] > 1]:
        notes.append(f"several classes are called {first_few(shared)}; their ids are added")
    pairs = zip(names, label_of_id, strict=True)
    return label_of_id, [f"{name} ({printable(i)})" if counts[name] > 1 else name for name, i in pairs], notes


def _class_id(filename: str) -> str:
    """The only folder below train/ or val/ that is not called images/; empty if there are none or several."""
    folders = [name for name in filename.split("/")[1:-1] if name != "images"]
    return folders[0] if len(folders) == 1 else ""


def _what_it_holds(root: Path) -> str:
    """What a folder without training images holds instead, and what to do."""
    if inner := [path.parent for pattern in ("*/train", "*/*/train") for path in sorted(root.glob(pattern))]:
        return f"has no images in train/<class>/, but a folder in it does; set --data-dir to {printable(inner[0])}"
    if any(root.glob("*.parquet")) or any(root.glob("*/*.parquet")):
        save = "save each row's image, as train/<class>/<number>.png, with Hugging Face's load_dataset and image.save"
        return f"holds Parquet files, which are tables, and not folders of images; {save}"
    return "has no images in train/<class>/; put them there, or add --download with a new --data-dir"


# The images


def list_images(root: Path, files: Sequence[str], mode: str, label_of_id: dict[str, int]) -> ImageList:
    """The images of "train", sorted by class; or those of "val", in class folders or annotated, sorted by name.

    So the order does not depend on the layout.
    """
    class_of = {name: _class_id(name) for name in files if name.startswith(f"{mode}/")}
    if annotated := [name for name in class_of if name.rpartition("/")[0] == "val/images"]:
        label_of, notes = _read_annotations(root, annotated, label_of_id)
    else:
        for name, class_id in class_of.items():
            if class_id and class_id not in label_of_id:
                where = "in wnids.txt" if (root / "wnids.txt").exists() else "a class folder of train"
                folder = printable((root / name).parent)
                raise UserError(f"{folder} has images, but is not {where}; add it there, or move it away")
        label_of, notes = {name: label_of_id[class_id] for name, class_id in class_of.items() if class_id}, []
    if unused := sorted(class_of.keys() - label_of - set(annotated)):
        used = "those in val/images" if annotated else "those in class folders"
        notes.append(f"{len(unused)} image(s) left out, because only {used} are used: {first_few(unused)}")
    if twice := [name for name in label_of if "/images/" in name and name.replace("/images/", "/") in label_of]:
        notes.append(f"{len(twice)} image(s) used twice, because the folder above has them too: {first_few(twice)}")
    order = sorted(label_of, key=lambda name: (mode == "train" and class_of[name], name.rpartition("/")[2], name))
    return ImageList(order, [label_of[name] for name in order], notes)


def _read_annotations(root: Path, found: list[str], label_of_id: dict[str, int]) -> tuple[dict[str, int], list[str]]:
    """The labels that val_annotations.txt gives the images found in val/images, and notes."""
    path = root / "val" / "val_annotations.txt"
    label_of: dict[str, int] = {}
    unlabeled = set(found)
    for where, line in _read_lines(path, "it must give each image of val/images its class"):
        name, class_id = (field.strip() for field in f"{line}\t".split("\t")[:2])
        filename = f"val/images/{name}"
        if class_id not in label_of_id:
            raise UserError(f"{where}: {class_id[:60]!r} is not a class; a line is: file name, tab, class id")
        if filename not in unlabeled:
            problem = "is listed twice" if filename in label_of else "is not in val/images"
            raise UserError(f"{where}: {name[:60]!r} {problem}; remove the line, or unpack the dataset again")
        unlabeled.remove(filename)
        label_of[filename] = label_of_id[class_id]
    note = f"{printable(path)} has no line for {first_few(sorted(unlabeled))}; left out"
    return label_of, [note] * bool(unlabeled)


def check_labels(root: Path, class_ids: Sequence[str], train: list[int], val: list[int], needs_val: bool) -> None:
    """Raises UserError if a class has no training images, or if there are no validation images and they are needed."""
    counts = Counter(train)
    if empty := [class_id for label, class_id in enumerate(class_ids) if not counts[label]]:
        problem = f"{printable(root / 'train')} has no usable images of {first_few(empty)}"
        raise UserError(f"{problem}; add some, or remove the class")
    if needs_val and not val:
        setting = f"--holdout {max(1, min(counts.values()) // 10)}"
        advice = f"add some, or add {setting} to validate on training images of each class"
        raise UserError(f"{printable(root / 'val')} has no usable images; {advice}")


def load_filenames_labels(mode: str, data_dir: str | Path = DEFAULT_DATA_DIR) -> tuple[list[str], list[int]]:
    """Lists the images of one split without opening them: those of "train" sorted by class and name, of "val" by name.

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
        files, _ = scan_folder(root)
        images = list_images(root, files, mode, read_classes(root, files)[0])
    if not images.filenames:
        raise UserError(f"{printable(root / mode)} has no images; add some")
    warn(images.notes)
    return images.filenames, images.labels
