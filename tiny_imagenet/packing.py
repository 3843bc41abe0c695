"""The images of a dataset, decoded once into train.npy, val.npy and index.json, in its `packed/` or another folder.

They are written into a temporary folder and moved when all of them are on the disk, the index last. It holds the stamps
of the arrays, so nothing that a killed process or a full disk leaves behind is taken for a packed dataset. A folder is
ours if it has our index, which is written first; in any other, no file is replaced or removed.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf

from tiny_imagenet.config import IMAGE_SIZE
from tiny_imagenet.errors import UserError, first_few, printable
from tiny_imagenet.file_utils import fsync, temporary_folder, write_text
from tiny_imagenet.image_folder import ImageList, check_labels, file_stamp, list_images, read_classes
from tiny_imagenet.images import BadImageError, ImageFile, read_image_file
from tiny_imagenet.terminal import progress_bar, quiet_stderr

INDEX_VERSION = 5  # of what is packed; other versions are packed again
INDEX_START = re.compile(rb'\{"version": \d+, "stamp": "')  # of every index.json of this program, in any version
PACKED_FILES = ("train.npy", "val.npy", "index.json")
BAD_LIST = "bad_images.txt"
BAD_START = b"# Images that cannot be used, and why"
CORES = len(os.sched_getaffinity(0))
PACK_BATCH = 256  # images that are decoded between two writes: 3 MB
HEADER_BYTES = 128  # of a .npy file of images, whatever their number


# Decoding


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
def decode_plain_jpegs(paths: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes 64x64 JPEGs, in RGB or grayscale and without an orientation: Pillow's pixels exactly, but faster.

    Returns:
        (B, 64, 64, 3) uint8; and the number of channels in each file, 3 or 1, or 0 of other files, which become black.

    Raises:
        tf.errors.OpError: a file is damaged or cannot be read. The message does not say which.
    """
    black = tf.io.encode_jpeg(tf.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), tf.uint8))

    def decode(path):
        data = tf.io.read_file(path)
        is_jpeg = tf.strings.substr(data, 0, 3) == b"\xff\xd8\xff"
        has_orientation = tf.strings.regex_full_match(data, r"\C*(Exif|tiff:Orientation)\C*")  # \C is any byte
        shape = tf.image.extract_jpeg_shape(tf.where(is_jpeg, data, black))
        has_right_shape = tf.reduce_all(shape[:2] == IMAGE_SIZE) & (shape[2] < 4)  # 4: CMYK, with wrong colors
        is_plain = is_jpeg & has_right_shape & ~has_orientation
        data = tf.where(is_plain, data, black)
        image = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")  # as Pillow does, and as fast
        return tf.ensure_shape(image, (IMAGE_SIZE, IMAGE_SIZE, 3)), tf.where(is_plain, shape[2], 0)

    return tf.map_fn(decode, paths, fn_output_signature=(tf.uint8, tf.int32), parallel_iterations=2 * CORES)


def read_images(root: Path, filenames: Sequence[str]) -> Iterator[ImageFile | str]:
    """Each image, in order, or the reason why it cannot be used.

    TensorFlow decodes plain JPEGs; `read_image_file` all others, and a whole batch if one of its files is damaged.
    """
    paths = [f"{root}/{name}" for name in filenames]  # Path takes 0.5 s for all
    with ThreadPoolExecutor(CORES) as pool:
        for start in range(0, len(paths), PACK_BATCH):
            batch = paths[start : start + PACK_BATCH]
            try:
                tensors = decode_plain_jpegs([os.fsencode(path) for path in batch])
                pixels, channels = (tensor.numpy() for tensor in tensors)
            except tf.errors.OpError:
                pixels = channels = [0] * len(batch)
            others = pool.map(_read_or_reason, [path for path, count in zip(batch, channels, strict=True) if not count])
            for image, count in zip(pixels, channels, strict=True):
                yield ImageFile(image, count == 1) if count else next(others)


def _read_or_reason(path: str) -> ImageFile | str:
    try:
        return read_image_file(path)
    except BadImageError as error:
        return error.reason


# Packing


def pack_split(path: Path, root: Path, images: ImageList, digest) -> tuple[dict, list[str]]:
    """Packs the images of one split into the file `path`, and feeds pixels and labels to the digest.

    Returns:
        Its part of the index, and the images that cannot be used, each with the reason.
    """
    filenames, labels, grayscale, scaled, bad = [], [], [], [], []
    with progress_bar(len(images.filenames), f"packing {path.stem}") as bar, quiet_stderr(), path.open("wb") as file:
        file.seek(HEADER_BYTES)  # written last
        for filename, label, image in zip(*images[:2], read_images(root, images.filenames), strict=True):
            bar.update()
            if isinstance(image, str):
                bad.append(f"{printable(filename)} ({image})")
                continue
            file.write(image.pixels.data)  # on a full disk, a memory map would end the process with a signal
            digest.update(image.pixels.data)
            grayscale += [len(labels)] if image.is_grayscale else []
            scaled += [len(labels)] if image.is_scaled else []
            filenames.append(filename)
            labels.append(label)
        file.seek(0)
        shape = (len(labels), IMAGE_SIZE, IMAGE_SIZE, 3)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    fsync(path)
    digest.update(np.array(labels, "<i4").tobytes())
    part = {"filenames": filenames, "labels": labels, "grayscale": grayscale, "scaled": scaled}
    return part | {"stamp": file_stamp(path), "notes": images.notes}, bad


def pack_dataset(
    root: Path, packed: Path, files: list[str], stamp: str, skip_bad_images: bool, needs_val: bool
) -> None:
    """Checks the dataset's folder and writes the folder `packed`.

    Raises:
        UserError: something is wrong with a folder, or with "val" if that is needed. What `packed` held is still there.
    """
    label_of_id, class_names, notes = read_classes(root, files)
    class_ids = list(label_of_id)
    train = list_images(root, files, "train", label_of_id)
    try:
        val = list_images(root, files, "val", label_of_id)
    except UserError:
        if needs_val:
            raise
        val = ImageList([], [], [])
    check_labels(root, class_ids, train.labels, val.labels, needs_val)
    claim_folder(packed)
    digest = hashlib.sha256(json.dumps(class_ids).encode())
    with temporary_folder(packed, ".writing") as temporary:
        train_part, bad = pack_split(temporary / "train.npy", root, train, digest)
        val_part, bad_val = pack_split(temporary / "val.npy", root, val, digest)
        if bad := bad + bad_val:
            notes.append(list_bad_images(packed / BAD_LIST, bad, skip_bad_images))
        check_labels(root, class_ids, train_part["labels"], val_part["labels"], needs_val)
        if missing := [class_ids[label] for label in sorted(set(label_of_id.values()) - set(val_part["labels"]))]:
            val_part["notes"].append(f"{printable(root / 'val')} has no images of {first_few(missing)}")
        index = {"version": INDEX_VERSION, "stamp": stamp, "class_ids": class_ids, "class_names": class_names}
        index |= {"fingerprint": digest.hexdigest(), "notes": notes + train.notes, "has_skipped": bool(bad)}
        write_text(temporary / "index.json", json.dumps(index | {"train": train_part, "val": val_part}))
        for name in PACKED_FILES:
            (temporary / name).replace(packed / name)
        if not bad:
            (packed / BAD_LIST).unlink(missing_ok=True)
        fsync(packed)


def claim_folder(packed: Path) -> None:
    """Makes a folder ours by an empty index, if it is not yet.

    Raises:
        UserError: it cannot be written to, or holds a file that packing would replace, but that is not ours.
    """
    place = next(path for path in (packed, *packed.parents) if path.exists())
    if not os.access(place, os.W_OK, effective_ids=True):
        raise UserError(f"{printable(place)} cannot be written to; choose another folder with --packed-dir")
    index = packed / "index.json"
    is_ours = index.is_file() and INDEX_START.match(index.read_bytes())
    found = [path for path in (packed / name for name in (*PACKED_FILES, BAD_LIST)) if os.path.lexists(path)]
    if is_ours:
        bad_list = [path for path in found if path.name == BAD_LIST and not path.read_bytes().startswith(BAD_START)]
        found = [path for path in found if path.is_symlink()] + bad_list
    if found:
        advice = "move it, or choose another folder with --packed-dir"
        raise UserError(f"{printable(found[0])} was not written by this program, which would replace it; {advice}")
    packed.mkdir(parents=True, exist_ok=True)
    if not is_ours:
        write_text(index, json.dumps({"version": INDEX_VERSION, "stamp": ""}))


def list_bad_images(path: Path, bad: Sequence[str], skip_bad_images: bool) -> str:
    """Lists bad images in the file `path`. Returns a note on them or, if they must not be skipped, raises it."""
    write_text(path, "\n".join([BAD_START.decode(), *bad, ""]))
    note = f"{len(bad)} bad image(s), listed in {printable(path)}: {first_few(bad, 10)}"
    if not skip_bad_images:
        raise UserError(f"{note}; replace them, or leave them out with --skip-bad-images")
    return f"{note}; left out"
