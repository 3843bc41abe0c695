"""The images of a dataset, decoded once into `packed/` in its folder: train.npy, val.npy and index.json.

They are written into `packed/.writing/` and moved when all of them are on the disk, the index last. It holds the stamps
of the arrays, so nothing that a killed process or a full disk leaves behind is taken for a packed dataset.
"""

import hashlib
import json
import os
import warnings
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from tiny_imagenet.config import IMAGE_SIZE
from tiny_imagenet.errors import UserError, is_utf8, printable
from tiny_imagenet.file_utils import disk_errors, fsync, progress_bar, quiet_stderr, remove, write_text
from tiny_imagenet.image_folder import ImageList, check_labels, first_few, is_image, read_folder

INDEX_VERSION = 3  # of what `packed/` holds; other versions are packed again
BAD_LIST = "bad_images.txt"  # in the dataset's folder
CORES = len(os.sched_getaffinity(0))
PACK_BATCH = 512  # images that are decoded between two writes: 6 MB
GOOD_KINDS = [f"{form} {IMAGE_SIZE}x{IMAGE_SIZE} {mode}" for form in ("JPEG", "MPO") for mode in ("RGB", "L")]
HEADER_BYTES = 128  # of a .npy file of images, whatever their number


# Stamps, which show that a file was changed


def file_stamp(path: Path) -> list[int]:
    """Size and modification time of a file."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def folder_stamp(root: Path) -> str:
    """sha256 over names, sizes and modification times of all files that are read.

    The times of the folders would not show that an image was overwritten in place. 0.3 s for 105,000 images.
    """
    digest = hashlib.sha256()
    for name in ("wnids.txt", "words.txt", "val/val_annotations.txt"):
        with suppress(FileNotFoundError, NotADirectoryError):  # reported when the dataset is packed
            digest.update(f"{name} {file_stamp(root / name)}\n".encode())
    for split in ("train", "val"):
        with suppress(FileNotFoundError, NotADirectoryError):
            for folder, folders, files, descriptor in os.fwalk(root / split, follow_symlinks=True):
                path = Path(folder).relative_to(root)
                is_deepest = len(path.parts) == 4  # val/images/<class>/images
                folders[:] = [] if is_deepest else sorted(name for name in folders if not name.startswith("."))
                names = sorted(filter(is_image, files))
                numbers = array("q")
                for name in names:
                    try:
                        status = os.stat(name, dir_fd=descriptor)  # twice as fast as with its path
                        numbers.extend((status.st_size, status.st_mtime_ns))
                    except OSError:  # a broken link; its target may appear
                        numbers.extend((-1, -1))
                digest.update(os.fsencode(f"{path}/{'/'.join(names)}\n") + numbers.tobytes())
    return digest.hexdigest()


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


def decode_jpeg(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes a 64x64 JPEG, in RGB or grayscale; anything else is an InvalidArgumentError.

    Returns:
        (64, 64, 3) uint8, exactly Pillow's pixels; and the number of channels in the file, 3 or 1.
    """
    shape = tf.image.extract_jpeg_shape(data)  # fails for PNG, GIF, ..., which decode_jpeg would accept
    channels = shape[2]  # 4 is CMYK, whose colors decode_jpeg gets wrong
    is_right = tf.reduce_all(shape[:2] == IMAGE_SIZE) & ((channels == 1) | (channels == 3))
    data = tf.where(is_right, data, "")  # which fails, before memory for the pixels is allocated
    image = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")  # as Pillow does, and as fast
    return tf.ensure_shape(image, (IMAGE_SIZE, IMAGE_SIZE, 3)), channels


def decode_batches(root: Path, filenames: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields (indices (B,), images (B, 64, 64, 3) uint8, channels (B,)), in order, without what cannot be decoded."""

    def decode(index, path):
        return index, *decode_jpeg(tf.io.read_file(path))

    paths = [os.fsencode(f"{root}/{name}") if is_utf8(name) else b"" for name in filenames]  # Path takes 0.5 s for all
    dataset = tf.data.Dataset.from_tensor_slices((np.arange(len(paths)), tf.constant(paths, tf.string)))
    dataset = dataset.map(decode, num_parallel_calls=CORES).ignore_errors()
    yield from without_tuning(dataset.batch(PACK_BATCH).prefetch(4)).as_numpy_iterator()


def find_defect(path: Path) -> str:
    """What is wrong with an image that could not be decoded.

    Raises:
        UserError: reading it failed (bad disk or network, too many open files), so that it must not be left out.
    """
    if not is_utf8(path.name):
        return "its name is not UTF-8"
    with disk_errors(path):
        try:
            data = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
            return error.strerror
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(BytesIO(data)) as image:
            kind = f"{image.format} {image.width}x{image.height} {image.mode}"
    except Exception:  # Pillow raises many kinds on damaged data
        return "not an image" if data else "empty"
    if kind not in GOOD_KINDS:
        return f"{kind}, not {GOOD_KINDS[0]}"
    with quiet_stderr(), suppress(tf.errors.InvalidArgumentError):
        decode_jpeg(data)
        kind = ""
    if not kind:
        raise UserError(f"{printable(path)} could not be read at first, but now it can; check the disk, then try again")
    return "damaged or cut off"


# Packing


def pack_split(path: Path, root: Path, images: ImageList, digest) -> tuple[dict, list[str]]:
    """Packs the images of one split into the file `path`, and feeds pixels and labels to the digest.

    Returns:
        Its part of the index, and the names of the images that could not be decoded.
    """
    kept, num_grayscale = [], 0
    with progress_bar(len(images.filenames), f"packing {path.stem}") as bar, quiet_stderr(), path.open("wb") as file:
        file.seek(HEADER_BYTES)  # written last
        for indices, pixels, channels in decode_batches(root, images.filenames):
            file.write(pixels.data)  # not through a memory map: with a full disk, that ends the process with a signal
            digest.update(pixels.data)
            kept += indices.tolist()
            num_grayscale += int((channels == 1).sum())
            bar.update(len(indices))
        file.seek(0)
        shape = (len(kept), IMAGE_SIZE, IMAGE_SIZE, 3)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    fsync(path)
    filenames, labels = [images.filenames[i] for i in kept], [images.labels[i] for i in kept]
    digest.update(np.array(labels, "<i4").tobytes())
    part = {"filenames": filenames, "labels": labels, "num_grayscale": num_grayscale, "stamp": file_stamp(path)}
    return part, sorted(set(images.filenames) - set(filenames))


def pack_dataset(root: Path, stamp: str, skip_bad_images: bool) -> None:
    """Checks the dataset's folder and writes `packed/`.

    Raises:
        UserError: something is wrong with the folder. What `packed/` held is still there.
    """
    label_of_id, class_names, splits, notes = read_folder(root)
    index = {"version": INDEX_VERSION, "stamp": stamp, "class_ids": list(label_of_id), "class_names": class_names}
    digest = hashlib.sha256(json.dumps(index["class_ids"]).encode())
    temporary = root / "packed" / ".writing"
    remove(temporary)  # of a process that was killed
    try:
        temporary.mkdir(parents=True)
        bad = []
        for name, images in splits.items():
            index[name], bad_of_split = pack_split(temporary / f"{name}.npy", root, images, digest)
            bad += bad_of_split
        notes += list_bad_images(root, bad, skip_bad_images)
        for mode in splits:
            check_labels(root, mode, label_of_id, index[mode]["labels"])
        index |= {"fingerprint": digest.hexdigest(), "notes": notes, "has_skipped": bool(bad)}
        write_text(temporary / "index.json", json.dumps(index))
        for name in ("train.npy", "val.npy", "index.json"):
            (temporary / name).replace(root / "packed" / name)
        fsync(root / "packed")
    finally:
        remove(temporary)


def list_bad_images(root: Path, bad: Sequence[str], skip_bad_images: bool) -> list[str]:
    """Lists bad images in the file BAD_LIST. Returns a note on them, if there are any.

    Raises:
        UserError: there are bad images, which must not be skipped.
    """
    reasons = [f"{printable(name)} ({find_defect(root / name)})" for name in bad]
    remove(root / BAD_LIST)  # of an earlier time
    if not bad:
        return []
    write_text(root / BAD_LIST, "".join(f"{reason}\n" for reason in reasons))
    note = f"{len(bad)} bad image(s), listed in {printable(root / BAD_LIST)}: {first_few(reasons, 10)}"
    if not skip_bad_images:
        raise UserError(f"{note}; replace them, or leave them out with --skip-bad-images")
    return [f"{note}; left out"]
