"""The pictures of a dataset, decoded once into `packed/` beside them: two .npy files and an index.

A packing that was killed, or that found the disk full, leaves nothing that is taken for whole: the files get their
names when all are on disk, and the index, without which the others count for nothing, is the last.
"""

from startup import quiet_stderr

import hashlib
import json
import os
import warnings
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from config import PICTURE_SIZE
from files import force_to_disk, is_utf8, progress, shown, write_atomically
from layout import is_picture

INDEX_VERSION = 2  # of what `packed/` holds; another number is packed anew
LISTED = 10  # bad pictures that one line names; of more, all are in the file BAD_LIST beside the dataset
BAD_LIST = "bad_pictures.txt"
PARTIAL = ".partial"  # ends the names of files that are being written
CORES = len(os.sched_getaffinity(0))
PACK_BATCH = 512  # pictures that are decoded between two writes: 6 MB


def folder_stamp(root: Path) -> str:
    """sha256 over names, sizes and modification times of all that is read: it changes when the folder does.

    Directory times alone would miss a picture that is overwritten in place. 0.3 s for 105,000 pictures.
    """
    digest = hashlib.sha256()
    for name in ("wnids.txt", "words.txt", "val/val_annotations.txt"):
        with suppress(FileNotFoundError, NotADirectoryError):
            status = (root / name).stat()
            digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    for split in ("train", "val"):
        with suppress(FileNotFoundError, NotADirectoryError):  # the check before packing says so
            _stamp_pictures(digest, root / split, depth=3)  # val/images/<class>/images at the deepest
    return digest.hexdigest()


def file_stamp(path: Path) -> list[int]:
    """Size and modification time of a packed file, by which another one in its place is told."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _stamp_pictures(digest, folder: Path, depth: int) -> None:
    """Feeds the digest the pictures in `folder` and, `depth` levels down, in the folders in it."""
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    names = [name for name, is_dir in found if not is_dir and is_picture(name)]
    numbers = array("q")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        for name in names:  # relative to the open folder: twice as fast as by path or by DirEntry
            try:
                status = os.stat(name, dir_fd=descriptor)
                numbers.extend((status.st_size, status.st_mtime_ns))
            except OSError:  # a dangling link: it is among the bad pictures, its target may come
                numbers.extend((-1, -1))
    finally:
        os.close(descriptor)
    digest.update(os.fsencode("/".join([folder.name, *names])) + b"\n" + numbers.tobytes())
    for name, is_dir in found:
        if is_dir and depth:
            _stamp_pictures(digest, folder / name, depth - 1)


def as_written(batches):
    """A tf.data.Dataset without TensorFlow's rewriting and tuning of it, which gain nothing here.

    The one reads every picture first (0.7 s). The other has the end of an iterator wait for its next round, which comes
    after 10 ms, 20 ms, 40 ms ...: a call of `fit` then takes up to twice as long.
    """
    from startup import tf  # here: to open a packed dataset needs no TensorFlow, which takes seconds to load

    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    return batches.with_options(options)


def decoded_batches(root: Path, filenames: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields (indices (B,), pictures (B, 64, 64, 3) uint8, channels (B,)), in order; bad pictures are left out."""
    from startup import tf

    def decode(index, path):
        data = tf.io.read_file(path)
        shape = tf.image.extract_jpeg_shape(data)  # fails on PNG, GIF, ..., which decode_jpeg would accept
        channels = shape[2]  # 4 is CMYK, whose colours decode_jpeg gets wrong
        is_right = tf.reduce_all(shape[:2] == PICTURE_SIZE) & ((channels == 1) | (channels == 3))
        data = tf.where(is_right, data, "")  # which fails, before memory is taken for the pixels
        # The accurate DCT gives exactly Pillow's pixels, at no cost in time.
        picture = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
        return index, tf.ensure_shape(picture, (PICTURE_SIZE, PICTURE_SIZE, 3)), channels

    paths = tf.constant([os.fsencode(f"{root}/{name}") for name in filenames], tf.string)  # Path takes 0.5 s for all
    pictures = tf.data.Dataset.from_tensor_slices((np.arange(len(filenames)), paths))
    pictures = pictures.map(decode, num_parallel_calls=CORES).ignore_errors()
    yield from as_written(pictures.batch(PACK_BATCH).prefetch(4)).as_numpy_iterator()


def _why_bad(path: Path) -> str:
    """Says what is wrong with a picture that TensorFlow could not decode as 64x64."""
    if not is_utf8(path.name):
        return "its name is not UTF-8"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is said here
            return "empty" if path.stat().st_size == 0 else _why_bad_inside(path)
    except Image.UnidentifiedImageError:
        return "not a picture"
    except OSError as error:
        return error.strerror or ("truncated" if "truncated" in str(error) else "damaged")
    except Exception:  # Pillow raises many kinds on damaged data
        return "damaged"


def _why_bad_inside(path: Path) -> str:
    with Image.open(path) as picture:
        if picture.format not in ("JPEG", "MPO"):  # MPO: a JPEG with a second picture behind it
            return f"{picture.format}, not JPEG"
        if picture.size != (PICTURE_SIZE, PICTURE_SIZE):
            return f"{picture.width}x{picture.height}, not {PICTURE_SIZE}x{PICTURE_SIZE}"
        if picture.mode not in ("RGB", "L"):
            return f"{picture.mode}, neither colour (RGB) nor grey"
        picture.load()
    return "damaged"


def _write_header(file, num_pictures: int) -> None:
    """Starts a .npy file: 128 bytes whatever the number, so that it can be written over, and the data is aligned."""
    shape = (num_pictures, PICTURE_SIZE, PICTURE_SIZE, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _pack_pictures(root: Path, filenames: Sequence[str], target: Path, digest, bar: tqdm) -> tuple[list[int], int]:
    """Writes the decodable pictures to `target`; returns their indices and how many are grey.

    Written as a file, not through a memory map: with the disk full, a map's pages end the process by a signal.
    """
    kept, num_grey = [], 0
    with target.open("wb") as file:
        _write_header(file, len(filenames))
        for indices, pictures, channels in decoded_batches(root, filenames):
            file.write(pictures.data)
            digest.update(pictures.data)
            kept += indices.tolist()
            num_grey += int((channels == 1).sum())
            bar.update(len(indices))
        if len(kept) < len(filenames):
            file.seek(0)
            _write_header(file, len(kept))
        file.flush()
        os.fsync(file.fileno())
    return kept, num_grey


def pack_split(root: Path, name: str, filenames: list[str], labels: list[int], digest) -> tuple[dict, list[str]]:
    """Packs one split under a temporary name; returns its part of the index and the bad pictures' names."""
    readable = [i for i, filename in enumerate(filenames) if is_utf8(filename)]
    with progress(len(filenames), f"packing {name}") as bar, quiet_stderr():  # libjpeg writes a line a bad picture
        target = root / "packed" / f"{name}.npy{PARTIAL}"
        kept, num_grey = _pack_pictures(root, [filenames[i] for i in readable], target, digest, bar)
    kept = [readable[i] for i in kept]
    kept_labels = [labels[i] for i in kept]
    digest.update(np.array(kept_labels, "<i4").tobytes())
    bad = sorted(set(range(len(filenames))) - set(kept))
    part = {"filenames": [filenames[i] for i in kept], "labels": kept_labels, "num_grey": num_grey}
    part["stamp"] = file_stamp(target)
    return part, [filenames[i] for i in bad]


def bad_pictures(root: Path, bad: Sequence[str]) -> str:
    """One line on the bad pictures and what is wrong with each; of many, on ten, with the file that lists all."""
    reasons = [f"{shown(name)} ({_why_bad(root / name)})" for name in bad]
    more = ""
    if len(bad) > LISTED:
        listing = "".join(f"{reason}\n" for reason in reasons)
        write_atomically(root / BAD_LIST, lambda path: path.write_text(listing, encoding="utf-8"))
        more = f" and {len(bad) - LISTED} more, all listed in {shown(root / BAD_LIST)}"
    plural = "pictures" if len(bad) > 1 else "picture"
    return f"{len(bad)} bad {plural} in {shown(root)}: {', '.join(reasons[:LISTED])}{more}"


def commit(packed: Path, index: dict) -> None:
    """Moves the packed arrays into place, then the index. Without an index the arrays count for nothing."""
    with (packed / f"index.json{PARTIAL}").open("w", encoding="ascii") as file:
        json.dump(index, file)
        file.flush()
        os.fsync(file.fileno())
    (packed / "index.json").unlink(missing_ok=True)  # so that an old index never stands beside new arrays
    for name in ("train.npy", "val.npy", "index.json"):
        (packed / f"{name}{PARTIAL}").replace(packed / name)
    force_to_disk(packed)


def remove_partial(packed: Path) -> None:
    """Removes what an unfinished packing left."""
    for path in packed.glob(f"*{PARTIAL}"):
        path.unlink(missing_ok=True)
