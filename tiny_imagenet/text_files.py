"""The text files of a dataset: wnids.txt, words.txt and val_annotations.txt."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tiny_imagenet.errors import UserError, printable
from tiny_imagenet.file_utils import disk_errors


def first_few(items: Sequence[str], limit: int = 3) -> str:
    """The first items, and how many more there are."""
    return ", ".join(map(printable, items[:limit])) + f" and {len(items) - limit} more" * (len(items) > limit)


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


def read_class_ids(root: Path, folders: Iterable[str]) -> dict[str, int]:
    """Class id -> label: in the order of wnids.txt or, without it, the names of the class folders, sorted."""
    if not (root / "wnids.txt").exists():
        return {class_id: label for label, class_id in enumerate(sorted(folders))}
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
    """The class names, unique, up to their first comma, and notes. A class without a name in words.txt has its id."""
    path, words = root / "words.txt", {}
    for _, line in _read_lines(path):
        class_id, _, names = line.partition("\t")
        words[class_id.strip()] = names.split(",")[0].strip()
    names = {class_id: printable(words.get(class_id) or class_id) for class_id in class_ids}
    notes, counts = [], Counter(names.values())
    missing = [class_id for class_id in names if not words.get(class_id)]
    if missing and (words or (root / "wnids.txt").exists()):
        notes.append(f"{printable(path)} has no name for {first_few(missing)}; the id is used instead")
    if doubled := sorted(name for name, count in counts.items() if count > 1):
        notes.append(f"{printable(path)} calls several classes {first_few(doubled)}; their ids are added to the names")
    return [f"{name} ({printable(i)})" if counts[name] > 1 else name for i, name in names.items()], notes


def read_annotations(root: Path, found: list[str], label_of_id: dict[str, int]) -> tuple[dict[str, int], list[str]]:
    """The labels that val_annotations.txt gives the images found in val/images, and notes."""
    path = root / "val" / "val_annotations.txt"
    label_of: dict[str, int] = {}
    unlabeled = {f"val/images/{name}" for name in found}
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
