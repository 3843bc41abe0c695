"""Whatever the files hold: success or a UserError of one line, nothing else."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers import CLASS_IDS, encode_image, make_dataset, write
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tiny_imagenet.dataset import open_dataset
from tiny_imagenet.errors import UserError
from tiny_imagenet.image_folder import build_label_dicts, load_filenames_labels

# Fragments that mean something to the parsers, among arbitrary bytes
FRAGMENTS = [*CLASS_IDS, "val_0.JPEG", "val_1.JPEG", "\t", "\n", "\r\n", "\r", " ", "/", "..", "\0", "\ufeff", "é", ","]
TEXT = st.lists(st.sampled_from([f.encode() for f in FRAGMENTS]) | st.binary(max_size=5), max_size=12).map(b"".join)
FILES = ("wnids.txt", "words.txt", "val/val_annotations.txt")
JPEGS = [encode_image(1), encode_image(2, mode="L"), encode_image(3, progressive=True)]
OTHERS = [encode_image(4, mode="CMYK"), encode_image(5, form="PNG")]


def call(function, *arguments, **options):
    """The result, or None after a UserError, which must be one line."""
    try:
        return function(*arguments, **options)
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 3000
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("fuzz") / "data", per_class=1, num_val=2)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(FILES), data=TEXT)
@example(name="wnids.txt", data=b"n03\r\n\xef\xbb\xbf")
@example(name="wnids.txt", data=b"n03\nn\x00\n")
@example(name="val/val_annotations.txt", data=b"val_0.JPEG\tn03\r\nval_1.JPEG\tn01")
def test_text_files(folder, name, data):
    original = (folder / name).read_bytes()
    write(folder / name, data)
    try:
        classes = call(build_label_dicts, folder)
        lists = [call(load_filenames_labels, mode, folder) for mode in ("train", "val")]
    finally:
        write(folder / name, original)
    if classes:
        label_of_id, names = classes
        assert sorted(label_of_id.values()) == list(range(len(names))) == sorted(names)
        assert all(class_name and class_name.isprintable() for class_name in names.values())
        assert name != "wnids.txt" or all(class_id.encode() in data for class_id in label_of_id)
    for filenames, labels in filter(None, lists):
        assert 0 < len(filenames) == len(labels) == len(set(filenames)) and set(labels) <= {0, 1, 2}
        assert all((folder / filename).is_file() for filename in filenames)


@st.composite
def damaged_images(draw) -> bytes:
    """An image with bytes changed (more often in its header), cut out, doubled or cut off."""
    data = bytearray(draw(st.sampled_from(JPEGS + OTHERS)))
    for _ in range(draw(st.integers(0, 4))):
        position = draw(st.integers(0, min(len(data) - 1, draw(st.sampled_from([30, 700, len(data)])))))
        data[position] = draw(st.sampled_from([0, 1, 0xD8, 0xD9, 0xFF]) | st.integers(0, 255))
    start = draw(st.integers(0, len(data)))
    stop = draw(st.integers(start, min(start + 20, len(data))))
    edits = {"nothing": data, "cut out": data[:start] + data[stop:], "double": data[:stop] + data[start:]}
    return bytes(edits.get(draw(st.sampled_from([*edits, "cut off"])), data[:start]))


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(images=st.lists(damaged_images(), min_size=30, max_size=30))
def test_damaged_images(images):
    with tempfile.TemporaryDirectory() as top:
        folder = make_dataset(Path(top) / "data", per_class=1, num_val=1)
        for i, data in enumerate(images):
            write(folder / f"train/n01/images/x{i:02}.JPEG", data)
        strict = call(open_dataset, folder)
        data = open_dataset(folder, skip_bad_images=True)
        assert (strict is None) == any("bad image" in note for note in data.notes)
        assert data.train.images.shape == (len(data.train.labels), 64, 64, 3)
        assert len(data.train.filenames) == len(data.train.labels) <= 33
        np.testing.assert_array_equal(np.load(folder / "packed/train.npy"), data.train.images)
