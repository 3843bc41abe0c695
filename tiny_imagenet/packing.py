"""The images of a dataset, decoded once into train.npy, val.npy and index.json, in its `packed/` or another folder.

They are written into a temporary folder and moved when all of them are on the disk, the index last. It holds the stamps
of the arrays, so nothing that a killed process or a full disk leaves behind is taken for a packed dataset. Files that
this program did not write are neither replaced nor removed.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tiny_imagenet.config import IMAGE_SIZE
from tiny_imagenet.errors import UserError, printable
from tiny_imagenet.file_utils import fsync, temporary_folder, write_text
from tiny_imagenet.image_folder import Files, ImageList, check_labels, read_folder
from tiny_imagenet.images import BadImageError, ImageFile, read_image_file
from tiny_imagenet.terminal import progress_bar, quiet_stderr
from tiny_imagenet.text_files import first_few

INDEX_VERSION = 4  # of what is packed; other versions are packed again
INDEX_START = re.compile(
    rb'\{"version": \d+, "stamp": "'
)  # of every index.json that this program wrote, in any version
PACKED_FILES = ("train.npy", "val.npy", "index.json")
BAD_LIST = "bad_images.txt"  # in the dataset's folder or, if they are elsewhere, with the packed images
BAD_START = "# Images that cannot be used, and why. This list is written whenever the images are packed.\n"
CORES = len(os.sched_getaffinity(0))
PACK_BATCH = 512  # images that are decoded between two writes: 6 MB
HEADER_BYTES = 128  # of a .npy file of images, whatever their number


# Decoding


def without_tuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Turns off TensorFlow's rewriting and autotuning of a dataset, which gain nothing here.

    Rewriting reads every image first (0.7 s). Autotuning makes the end of an iterator wait for its next round, after
    10 ms, 20 ms, 40 ms ..., so that a call of `fit` takes up to twice as long.
    """
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    return dataset.with_options(options)


def decode_plain_jpeg(data: tf.Tensor, black: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes a 64x64 JPEG, in RGB or grayscale and without an orientation; a damaged one is an InvalidArgumentError.

    Args:
        data: the image file's bytes.
        black: a 64x64 JPEG, which is decoded instead of any other file.

    Returns:
        (64, 64, 3) uint8, exactly Pillow's pixels; and the number of channels in the file, 3 or 1, or 0 of other files.
    """
    is_jpeg = tf.strings.substr(data, 0, 3) == b"\xff\xd8\xff"
    has_orientation = tf.strings.regex_full_match(data, r"\C*(Exif|tiff:Orientation)\C*")  # \C is any byte
    shape = tf.image.extract_jpeg_shape(tf.where(is_jpeg, data, black))
    is_right = tf.reduce_all(shape[:2] == IMAGE_SIZE) & (shape[2] < 4)  # 4 is CMYK, whose colors decode_jpeg gets wrong
    is_plain = is_jpeg & is_right & ~has_orientation
    data = tf.where(is_plain, data, black)
    image = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")  # as Pillow does, and as fast
    return tf.ensure_shape(image, (IMAGE_SIZE, IMAGE_SIZE, 3)), tf.where(is_plain, shape[2], 0)


class Decoded(NamedTuple):
    """Consecutive images of a split, without those that cannot be used."""

    indices: np.ndarray  # (B,) positions in the split
    pixels: np.ndarray  # (B, 64, 64, 3) uint8
    is_grayscale: np.ndarray  # (B,) bool
    is_scaled: np.ndarray  # (B,) bool
    reasons: dict[int, str]  # position -> why an image cannot be used


def decode_batches(root: Path, filenames: Sequence[str]) -> Iterator[Decoded]:
    """Decodes images, in order: plain ones by TensorFlow, all others by `read_image_file`."""
    black = tf.io.encode_jpeg(tf.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), tf.uint8))
    paths = [os.fsencode(f"{root}/{name}") for name in filenames]  # Path takes 0.5 s for all
    dataset = tf.data.Dataset.from_tensor_slices((np.arange(len(paths)), tf.constant(paths, tf.string)))
    dataset = dataset.map(lambda i, path: (i, *decode_plain_jpeg(tf.io.read_file(path), black)), CORES)
    dataset = dataset.ignore_errors()  # what is damaged or cannot be read is left to Pillow too
    batches = without_tuning(dataset.batch(PACK_BATCH).prefetch(4)).as_numpy_iterator()
    end = np.array([len(paths) - 1]), np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8), np.zeros(1, int)
    first = 0
    with ThreadPoolExecutor(CORES) as pool:
        for indices, pixels, channels in chain(batches, [end]):
            plain = channels > 0
            others = np.setdiff1d(np.arange(first, indices[-1] + 1), indices[plain])
            first = indices[-1] + 1
            decoded = Decoded(indices[plain], pixels[plain], channels[plain] == 1, np.zeros(plain.sum(), bool), {})
            results = pool.map(_read_or_reason, [os.fsdecode(paths[i]) for i in others])
            yield _insert(decoded, dict(zip(others.tolist(), results, strict=True))) if len(others) else decoded


def _read_or_reason(path: str) -> ImageFile | str:
    try:
        return read_image_file(path)
    except BadImageError as error:
        return error.reason


def _insert(decoded: Decoded, results: dict[int, ImageFile | str]) -> Decoded:
    reasons = {i: result for i, result in results.items() if isinstance(result, str)}
    images = {i: result for i, result in results.items() if i not in reasons}
    if not images:
        return decoded._replace(reasons=reasons)
    columns = [list(images), *zip(*images.values(), strict=True)]
    places = np.searchsorted(decoded.indices, columns[0])
    merged = [np.insert(old, places, new, axis=0) for old, new in zip(decoded[:4], columns, strict=True)]
    return Decoded(*merged, reasons)


# Packing


def file_stamp(path: Path) -> list[int]:
    """Size and modification time of a file, which show that it was changed."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def pack_split(path: Path, root: Path, images: ImageList, digest) -> tuple[dict, list[str]]:
    """Packs the images of one split into the file `path`, and feeds pixels and labels to the digest.

    Returns:
        Its part of the index, and the images that cannot be used, each with the reason.
    """
    kept, grayscale, scaled, bad = [], [], [], []
    with progress_bar(len(images.filenames), f"packing {path.stem}") as bar, quiet_stderr(), path.open("wb") as file:
        file.seek(HEADER_BYTES)  # written last
        for indices, pixels, is_grayscale, is_scaled, reasons in decode_batches(root, images.filenames):
            file.write(pixels.data)  # not through a memory map: with a full disk, that ends the process with a signal
            digest.update(pixels.data)
            grayscale += (len(kept) + np.flatnonzero(is_grayscale)).tolist()
            scaled += (len(kept) + np.flatnonzero(is_scaled)).tolist()
            kept += indices.tolist()
            bad += [f"{printable(images.filenames[i])} ({reason})" for i, reason in reasons.items()]
            bar.update(len(indices) + len(reasons))
        file.seek(0)
        shape = (len(kept), IMAGE_SIZE, IMAGE_SIZE, 3)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    fsync(path)
    filenames, labels = [images.filenames[i] for i in kept], [images.labels[i] for i in kept]
    digest.update(np.array(labels, "<i4").tobytes())
    part = {"filenames": filenames, "labels": labels, "grayscale": grayscale, "scaled": scaled}
    return part | {"stamp": file_stamp(path), "notes": images.notes}, bad


def pack_dataset(root: Path, packed: Path, files: Files, stamp: str, skip_bad_images: bool, needs_val: bool) -> None:
    """Checks the dataset's folder and writes the folder `packed`.

    Raises:
        UserError: something is wrong with a folder. What `packed` held is still there.
    """
    label_of_id, class_names, train, val, notes = read_folder(root, files, needs_val)
    index = {"version": INDEX_VERSION, "stamp": stamp, "class_ids": list(label_of_id), "class_names": class_names}
    digest = hashlib.sha256(json.dumps(index["class_ids"]).encode())
    check_is_ours(packed)
    packed.mkdir(parents=True, exist_ok=True)
    with temporary_folder(packed, ".writing") as temporary:
        index["train"], bad = pack_split(temporary / "train.npy", root, train, digest)
        index["val"], bad_val = pack_split(temporary / "val.npy", root, val, digest)
        bad_list = (root if packed == root / "packed" else packed) / BAD_LIST
        notes += list_bad_images(bad_list, temporary / BAD_LIST, bad + bad_val, skip_bad_images)
        labels = index["val"]["labels"]
        check_labels(root, list(label_of_id), index["train"]["labels"], labels, needs_val)
        if missing := [list(label_of_id)[label] for label in sorted(set(label_of_id.values()) - set(labels))]:
            index["val"]["notes"].append(f"{printable(root / 'val')} has no images of {first_few(missing)}")
        index |= {"fingerprint": digest.hexdigest(), "notes": notes + train.notes, "has_skipped": bool(bad + bad_val)}
        write_text(temporary / "index.json", json.dumps(index))
        claim = temporary / "claim"  # makes the arrays ours even if this process is killed before it moves the index
        write_text(claim, json.dumps({"version": INDEX_VERSION, "stamp": ""}))
        claim.replace(packed / "index.json")
        for name in PACKED_FILES:
            (temporary / name).replace(packed / name)
        fsync(packed)


def check_is_ours(packed: Path) -> None:
    """Raises UserError if the folder holds a file that packing would replace, but that this program did not write."""
    found = [packed / name for name in PACKED_FILES if (packed / name).is_symlink() or (packed / name).exists()]
    if links := [path for path in found if path.is_symlink()]:
        raise UserError(f"{printable(links[0])} is a symbolic link, which this program does not create; remove it")
    index = packed / "index.json"
    if found and not (index.is_file() and INDEX_START.match(index.read_bytes())):
        advice = "move it, or choose another folder with --packed-dir"
        raise UserError(f"{printable(found[0])} was not written by this program, which would replace it; {advice}")


def list_bad_images(path: Path, temporary: Path, bad: Sequence[str], skip_bad_images: bool) -> list[str]:
    """Lists bad images in the file `path`, or removes it if there are none. Returns a note on them, if there are any.

    Raises:
        UserError: there are bad images, which must not be skipped; or `path` is a file that this program did not write.
    """
    is_ours = path.is_file() and not path.is_symlink() and path.read_bytes().startswith(BAD_START.encode())
    if not bad:
        if is_ours:
            path.unlink()
        return []
    few = first_few(bad, 10)
    if not is_ours and (path.is_symlink() or path.exists()):
        raise UserError(f"{len(bad)} bad image(s): {few}; to list them all, move {printable(path)}, which is not ours")
    write_text(temporary, BAD_START + "".join(f"{line}\n" for line in bad))
    temporary.replace(path)
    note = f"{len(bad)} bad image(s), listed in {printable(path)}: {few}"
    if not skip_bad_images:
        raise UserError(f"{note}; replace them, or leave them out with --skip-bad-images")
    return [f"{note}; left out"]
