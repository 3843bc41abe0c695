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

import hashlib
import os
import stat
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tiny_imagenet.config import DEFAULT_DATA_DIR
from tiny_imagenet.errors import UserError, printable
from tiny_imagenet.file_utils import disk_errors, is_empty
from tiny_imagenet.images import image_suffixes
from tiny_imagenet.recipes import RECIPES
from tiny_imagenet.text_files import first_few, read_annotations, read_class_ids, read_class_names

Files = dict[str, list[str]]  # folder, relative to the dataset's -> names of the images in it, sorted


class ImageList(NamedTuple):
    """The images of one split, and notes: what is odd about it without being an error, one line each."""

    filenames: list[str]  # relative to the dataset's folder
    labels: list[int]
    notes: list[str]


def warn(notes: Iterable[str]) -> None:
    """Prints each note as a warning."""
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)


def check_root(data_dir: str | Path) -> Path:
    """The dataset's folder, which must exist and hold something."""
    root = Path(data_dir)
    with disk_errors(root):
        if root.is_dir() and not is_empty(root):
            return root
        problem = "is empty" if root.is_dir() else "is not a folder" if root.exists() else "does not exist"
    script = "-m tools.sample_data" if root.name == RECIPES["demo"].data_dir else "input_pipe.py --download --data-dir"
    raise UserError(f"{printable(root)} {problem}; correct the path, or run: python {script} {printable(root)}")


def scan_folder(root: Path) -> tuple[Files, str]:
    """The image files of train and val; and a stamp: sha256 over names, sizes and times of all files that are read.

    The times of the folders would not show that an image was overwritten in place. 0.3 s for 105,000 images.
    """
    files, digest = {}, hashlib.sha256()
    for name in ("wnids.txt", "words.txt", "val/val_annotations.txt"):
        with suppress(FileNotFoundError, NotADirectoryError):  # reported when the dataset is packed
            status = (root / name).stat()
            digest.update(f"{name} {[status.st_size, status.st_mtime_ns]}\n".encode())
    for split in ("train", "val"):
        with suppress(FileNotFoundError, NotADirectoryError):
            for folder, folders, names, descriptor in os.fwalk(root / split, onerror=_fail, follow_symlinks=True):
                path, numbers, files_here = Path(folder).relative_to(root), array("q"), []
                is_deep = len(path.parts) > 5  # links may form a circle
                folders[:] = [] if is_deep else sorted(name for name in folders if not name.startswith("."))
                for name in sorted(filter(is_image, names)):
                    try:
                        status = os.stat(name, dir_fd=descriptor)  # twice as fast as with its path
                        stamp, is_file = (status.st_size, status.st_mtime_ns), stat.S_ISREG(status.st_mode)
                    except OSError:  # a broken link, which must be reported; its target may appear
                        stamp, is_file = (-1, -1), True
                    if is_file:
                        files_here.append(name)
                        numbers.extend(stamp)
                files[path.as_posix()] = files_here
                digest.update(os.fsencode(f"{path}/{'/'.join(files_here)}\n") + numbers.tobytes())
    return files, digest.hexdigest()


def is_image(name: str) -> bool:
    """Whether a file, by its name, is an image."""
    return name.lower().endswith(image_suffixes()) and not name.startswith(".")  # macOS leaves "._x.JPEG" files


def _fail(error: OSError) -> None:
    raise error


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
        label_of_id = _list_classes(root, scan_folder(root)[0])
        names, notes = read_class_names(root, label_of_id)
    warn(notes)
    return label_of_id, dict(enumerate(names))


def _list_classes(root: Path, files: Files) -> dict[str, int]:
    if folders := _class_folders(files, "train"):
        return read_class_ids(root, folders)
    name = printable(root)
    if inner := [path.parent for pattern in ("*/train", "*/*/train") for path in sorted(root.glob(pattern))]:
        advice = f"but a folder in it does; set --data-dir to {printable(inner[0])}"
        raise UserError(f"{name} has no images in train/<class>/, {advice}")
    if any(root.glob("*.parquet")) or any(root.glob("*/*.parquet")):
        save = "save each row's image, as train/<class>/<number>.png, with Hugging Face's load_dataset and image.save"
        raise UserError(f"{name} holds Parquet files, which are tables, and not folders of images; {save}")
    raise UserError(f"{name} has no images in train/<class>/; put them there, or add --download with a new --data-dir")


# The images


def read_folder(root: Path, files: Files, needs_val: bool) -> tuple[dict, list[str], ImageList, ImageList, list[str]]:
    """Class id -> label, class names, the images of "train" and of "val", and notes on the classes.

    Raises:
        UserError: something is wrong; with "val" only if it is needed.
    """
    label_of_id = _list_classes(root, files)
    train = list_images(root, files, "train", label_of_id)
    try:
        val = list_images(root, files, "val", label_of_id)
    except UserError:
        if needs_val:
            raise
        val = ImageList([], [], [])
    check_labels(root, list(label_of_id), train.labels, val.labels, needs_val)
    names, notes = read_class_names(root, label_of_id)
    return label_of_id, names, train, val, notes


def list_images(root: Path, files: Files, mode: str, label_of_id: dict[str, int]) -> ImageList:
    """The images of "train", sorted by class; or those of "val", in class folders or annotated, sorted by name.

    So the order does not depend on the layout.
    """
    annotated = files.get("val/images", []) if mode == "val" and "images" not in label_of_id else []
    if annotated:
        label_of, notes = read_annotations(root, annotated, label_of_id)
    else:
        found = _class_folders(files, mode) or (_class_folders(files, "val/images") if mode == "val" else {})
        if unknown := sorted(set(found) - set(label_of_id)):
            where = "in wnids.txt" if (root / "wnids.txt").exists() else "a class folder of train"
            folder = printable(root / found[unknown[0]][0].rpartition("/")[0])
            raise UserError(f"{folder} has images, but is not {where}; add it there, or move it away")
        label_of, notes = {name: label_of_id[i] for i in sorted(found) for name in sorted(found[i], key=_base_name)}, []
    if mode == "val":
        label_of = {name: label_of[name] for name in sorted(label_of, key=_base_name)}
    all_names = [f"{folder}/{name}" for folder in files if folder.split("/")[0] == mode for name in files[folder]]
    if unused := sorted(set(all_names) - set(label_of) - {f"val/images/{name}" for name in annotated}):
        used = "those in val/images" if annotated else "those in class folders"
        notes.append(f"{len(unused)} image(s) left out, for only {used} are used: {first_few(unused)}")
    if twice := [name for name in label_of if name.replace("/images/", "/") in label_of and "/images/" in name]:
        notes.append(f"{len(twice)} image(s) are in the folder above too, and so used twice: {first_few(twice)}")
    return ImageList(list(label_of), list(label_of.values()), notes)


def _class_folders(files: Files, top: str) -> dict[str, list[str]]:
    """Class id -> the images in TOP/<class id>/ and TOP/<class id>/images/."""
    found: dict[str, list[str]] = {}
    for folder, names in files.items():
        class_id, _, rest = folder.removeprefix(f"{top}/").partition("/")
        if folder.startswith(f"{top}/") and rest in ("", "images") and names:
            found.setdefault(class_id, []).extend(f"{folder}/{name}" for name in names)
    return found


def _base_name(filename: str) -> tuple[str, str]:
    return filename.rpartition("/")[2], filename


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
        images = list_images(root, files, mode, _list_classes(root, files))
    if not images.filenames:
        raise UserError(f"{printable(root / mode)} has no images; add some")
    warn(images.notes)
    return images.filenames, images.labels
