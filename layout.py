"""What a folder in Tiny ImageNet's layout holds: class ids, class names, pictures and labels; no picture is opened.

    DATA_DIR/wnids.txt                     one class id a line; a class's label is its place here, from 0
    DATA_DIR/words.txt                     class id <TAB> names, separated by commas; may be missing
    DATA_DIR/train/<id>/images/*.JPEG      the <id>_boxes.txt beside it is not read
    DATA_DIR/val/val_annotations.txt       file <TAB> class id <TAB> box; the box is not read
    DATA_DIR/val/images/*.JPEG

Class folders may hold their pictures directly (`train/<id>/*.JPEG`), and `val` or `val/images` may be sorted into class
folders, as many tools leave it. Blank lines in the text files mean nothing; Windows line ends are accepted. Files in
picture folders that do not end in .JPEG or .jpg, in any case, are left alone.
"""

from startup import UserError

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from config import RECIPES
from files import os_errors_named, shown

SUFFIXES = (".jpeg", ".jpg")  # of pictures, compared in lower case


class Pictures(NamedTuple):
    """The pictures of one split. `notes` are what is odd about it without being an error, a line each."""

    filenames: list[str]  # relative to the root, sorted
    labels: list[int]
    notes: list[str]


def _lines(path: Path, advice: str) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line without its end) of a UTF-8 file; blank lines are left out."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{shown(path)} is missing; {advice}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise UserError(f"{shown(path)}, line {number}: not UTF-8; save the file as UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


def read_class_ids(root: Path) -> tuple[str, ...]:
    """The class ids of wnids.txt, in its order."""
    path = root / "wnids.txt"
    line_of_id: dict[str, int] = {}
    for number, line in _lines(path, "it lists the class ids, one a line; is this the dataset's folder?"):
        class_id = line.strip()
        if not class_id.isprintable() or "/" in class_id or class_id in (".", ".."):
            raise UserError(f"{shown(path)}, line {number}: {line[:60]!r} cannot be a class id, a folder's name")
        if class_id in line_of_id:
            first = line_of_id[class_id]
            raise UserError(
                f"{shown(path)}, line {number}: {class_id[:60]!r} is already on line {first}; remove one of them"
            )
        line_of_id[class_id] = number
    if not line_of_id:
        raise UserError(f"{shown(path)} is empty; it must list the class ids, one a line")
    return tuple(line_of_id)


def read_class_names(root: Path, class_ids: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The class names and notes: a class that words.txt lacks is called by its id."""
    path = root / "words.txt"
    words = {}
    if path.exists():
        for _, line in _lines(path, ""):
            class_id, _, names = line.partition("\t")
            words[class_id.strip()] = names.split(",")[0].strip()
    lacking = [class_id for class_id in class_ids if not words.get(class_id)]
    notes = []
    if lacking:
        why = "has no name for" if path.exists() else "is missing; no names for"
        notes = [f"{shown(path)} {why} {_some(lacking)}; the id is used instead"]
    return tuple(shown(words.get(class_id) or class_id) for class_id in class_ids), notes


def _some(items: Sequence[str], limit: int = 3) -> str:
    """The first few items and a count of the rest."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(shown(item) for item in items[:limit]) + more


def warn(notes: Sequence[str]) -> None:
    """Prints each note as a warning."""
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)


def build_label_dicts(data_dir: str | Path) -> tuple[dict[str, int], dict[int, str]]:
    """Reads wnids.txt and words.txt.

    Args:
        data_dir: The dataset's root.

    Returns:
        `label_of_id`, class id to label (its place in wnids.txt, from 0), and `name_of_label`, label to class name
        (words.txt up to the first comma; the id, with a warning, where words.txt has none).

    Raises:
        UserError: A file is missing or malformed; it names file and line.
    """
    root = checked_root(data_dir)
    with os_errors_named(root):
        class_ids = read_class_ids(root)
        names, notes = read_class_names(root, class_ids)
    warn(notes)
    return {class_id: label for label, class_id in enumerate(class_ids)}, dict(enumerate(names))


# ---------------------------------------------------------------------------------------------------------------------
# Pictures of each split


def is_picture(name: str) -> bool:
    """Tells by its name whether a file is a picture of the dataset."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")  # "._x.JPEG" is macOS's litter


def _pictures(root: Path, folder: str) -> list[str]:
    """The pictures directly in `root/folder`, relative to root, sorted; none if there is no such folder."""
    try:
        with os.scandir(root / folder) as entries:  # is_symlink: a dangling link must be reported, not passed over
            return sorted(
                f"{folder}/{entry.name}"
                for entry in entries
                if is_picture(entry.name) and (entry.is_symlink() or entry.is_file())
            )
    except (FileNotFoundError, NotADirectoryError):
        return []


def _class_pictures(root: Path, folder: str) -> list[str]:
    """The pictures of a class folder: in its `images`, and directly in it."""
    return sorted(_pictures(root, f"{folder}/images") + _pictures(root, folder))


def _class_folders(root: Path, split: str) -> list[str]:
    """Names of the folders in `root/split`, sorted."""
    try:
        with os.scandir(root / split) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{shown(root / split)} is missing; is {shown(root)} the dataset's folder?") from None


def _sorted_pictures(root: Path, split: str, label_of_id: dict[str, int]) -> Pictures:
    """The pictures of a split that is sorted into class folders."""
    filenames, labels = [], []
    for class_id in _class_folders(root, split):
        found = _class_pictures(root, f"{split}/{class_id}")
        if found and class_id not in label_of_id:
            raise UserError(
                f"{shown(root / split / class_id)} holds pictures, but {shown(class_id)} is not in wnids.txt; "
                "add it there or move the folder away"
            )
        filenames += found
        labels += [label_of_id[class_id] for _ in found]
    return Pictures(filenames, labels, [])


def train_pictures(root: Path, label_of_id: dict[str, int]) -> Pictures:
    """The training pictures. Every class must have one."""
    folders = set(_class_folders(root, "train"))
    missing = [class_id for class_id in label_of_id if class_id not in folders]
    if missing:
        raise UserError(
            f"{shown(root / 'train')} has no folder for {_some(missing)}, which wnids.txt lists; "
            "unpack the dataset again, or take the class out of wnids.txt"
        )
    pictures = _sorted_pictures(root, "train", label_of_id)
    check_no_class_is_empty(root, label_of_id, pictures.labels, f"no {'/'.join(SUFFIXES)} pictures")
    return pictures


def check_no_class_is_empty(root: Path, class_ids: Iterable[str], labels: Iterable[int], what: str) -> None:
    """Raises UserError, which says `what`, if a class is not among the training labels."""
    present = set(labels)
    empty = [class_id for label, class_id in enumerate(class_ids) if label not in present]
    if empty:
        raise UserError(
            f"{shown(root / 'train')}: {what} for {_some(empty)}; add pictures, or take the class out of wnids.txt"
        )


def _read_annotations(path: Path, label_of_id: dict[str, int]) -> dict[str, tuple[int, int]]:
    """val_annotations.txt as file name -> (label, line number)."""
    entries: dict[str, tuple[int, int]] = {}
    for number, line in _lines(path, "it gives each validation picture its class"):
        where = f"{shown(path)}, line {number}"
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) < 2 or not fields[0]:
            raise UserError(f"{where}: {line[:60]!r} is not 'file name <TAB> class id ...'")
        name, class_id = fields[:2]
        if class_id not in label_of_id:
            raise UserError(f"{where}: class {class_id[:60]!r} is not in wnids.txt; correct one of the two files")
        if name in entries:
            raise UserError(f"{where}: {name[:60]!r} is already on line {entries[name][1]}; remove one of them")
        entries[name] = (label_of_id[class_id], number)
    return entries


def val_pictures(root: Path, label_of_id: dict[str, int]) -> Pictures:
    """The validation pictures: as distributed, or sorted into class folders in `val` or in `val/images`."""
    flat = _pictures(root, "val/images")
    if flat:
        return _annotated_pictures(root, flat, label_of_id)
    pictures = _sorted_pictures(root, "val", label_of_id)
    if not pictures.filenames and (root / "val" / "images").is_dir():
        pictures = _sorted_pictures(root, "val/images", label_of_id)
    if not pictures.filenames:
        raise UserError(f"{shown(root / 'val')} holds no pictures, neither in 'images' nor in class folders; add some")
    return pictures


def _annotated_pictures(root: Path, flat: Sequence[str], label_of_id: dict[str, int]) -> Pictures:
    """The pictures of val/images, `flat`, with the labels that val_annotations.txt gives them."""
    path = root / "val" / "val_annotations.txt"
    entries = _read_annotations(path, label_of_id)
    present = {filename.rpartition("/")[2] for filename in flat}
    absent = [name for name in entries if name not in present]
    if absent:
        raise UserError(
            f"{shown(path)}, line {entries[absent[0]][1]}: val/images has no {_some(absent)}; "
            "unpack the dataset again, or remove the line"
        )
    if not entries:
        raise UserError(f"{shown(path)} is empty; it must give each picture of val/images its class")
    unnamed = sorted(present - entries.keys())
    notes = [f"{shown(path)} has no line for {_some(unnamed)} in val/images; left out"] if unnamed else []
    names = sorted(entries)
    return Pictures([f"val/images/{name}" for name in names], [entries[name][0] for name in names], notes)


def load_filenames_labels(data_dir: str | Path, mode: str) -> tuple[list[str], list[int]]:
    """Lists the pictures of one split, sorted by name; none is opened.

    Args:
        data_dir: The dataset's root.
        mode: "train" or "val".

    Returns:
        File names relative to `data_dir`, and their labels.

    Raises:
        UserError: A file or folder is missing, empty or malformed; it names file and line.
        ValueError: `mode` is something else.
    """
    if mode not in ("train", "val"):
        raise ValueError(f"mode must be 'train' or 'val', got {mode!r}")
    root = checked_root(data_dir)
    with os_errors_named(root):
        label_of_id = {class_id: label for label, class_id in enumerate(read_class_ids(root))}
        pictures = (train_pictures if mode == "train" else val_pictures)(root, label_of_id)
    warn(pictures.notes)
    return pictures.filenames, pictures.labels


def checked_root(data_dir: str | Path) -> Path:
    """The dataset's root, which exists, is a folder and is not empty."""
    root = Path(data_dir)
    with os_errors_named(root):
        if not root.exists():
            raise UserError(f"{shown(root)} does not exist; correct --data-dir, or run: {_how_to_make(root)}")
        if not root.is_dir():
            raise UserError(f"{shown(root)} is a file; --data-dir must be a folder in Tiny ImageNet's layout")
        if not any(root.iterdir()):
            raise UserError(f"{shown(root)} is empty; put the dataset there, or run: {_how_to_make(root)}")
    return root


def _how_to_make(root: Path) -> str:
    if root.name == RECIPES["demo"].data_dir:
        return f"python sample_data.py {shown(root)}"
    return f"python input_pipe.py --data-dir {shown(root)} --download"
