"""Whatever the files hold: success or a UserError of one line, nothing else."""

from startup import UserError

import tempfile
from pathlib import Path

import numpy as np
import pytest
from folders import CLASS_IDS, make_folder, picture, write
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dataset import build_label_dicts, load_filenames_labels, open_dataset

FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
# Fragments that mean something to the parsers, among any bytes at all.
FRAGMENTS = [*CLASS_IDS, "val_0.JPEG", "val_1.JPEG", "\t", "\n", "\r\n", "\r", " ", "/", "..", "\0", "\ufeff", "é", ","]
TEXT = st.lists(st.sampled_from([f.encode() for f in FRAGMENTS]) | st.binary(max_size=5), max_size=12).map(b"".join)


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as top:
        yield make_folder(Path(top) / "data", per_class=1, num_val=2)


def outcome(function, *arguments, **options):
    """The result, or None after a UserError, which must be one line."""
    try:
        return function(*arguments, **options)
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 3000
        return None


@FUZZ
@given(data=TEXT)
@example(data=b"n03\r\n\xef\xbb\xbf")
@example(data=b"n03\nn\x00\n")
def test_wnids(folder, data):
    original = (folder / "wnids.txt").read_bytes()
    try:
        write(folder / "wnids.txt", data)
        labels = outcome(build_label_dicts, folder)
        outcome(load_filenames_labels, folder, "train")
        if labels:
            label_of_id, names = labels
            assert sorted(label_of_id.values()) == list(range(len(names)))
            assert all(class_id.encode() in data for class_id in label_of_id)
    finally:
        write(folder / "wnids.txt", original)


@FUZZ
@given(data=TEXT)
@example(data=b"val_0.JPEG\tn03\r\nval_1.JPEG\tn01")
def test_annotations(folder, data):
    write(folder / "val/val_annotations.txt", data)
    found = outcome(load_filenames_labels, folder, "val")
    if found:
        filenames, labels = found
        assert 0 < len(filenames) == len(labels) == len(set(filenames)) and set(labels) <= {0, 1, 2}
        assert all((folder / filename).is_file() for filename in filenames)


@FUZZ
@given(data=TEXT)
def test_words(folder, data):
    write(folder / "words.txt", data)
    found = outcome(build_label_dicts, folder)
    assert found is None or (len(found[1]) == 3 and all(name.isprintable() and name for name in found[1].values()))


JPEGS = [
    picture(1),
    picture(2, mode="L"),
    picture(3, progressive=True),
    picture(4, mode="CMYK"),
    picture(5, form="PNG"),
]


@st.composite
def damaged_jpegs(draw) -> bytes:
    """A picture with bytes changed (the header's more often), cut out, doubled or cut off."""
    data = bytearray(draw(st.sampled_from(JPEGS)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, min(len(data) - 1, draw(st.sampled_from([30, 700, len(data)])))))
        data[place] = draw(st.sampled_from([0, 1, 0xD8, 0xD9, 0xFF]) | st.integers(0, 255))
    start = draw(st.integers(0, len(data)))
    stop = draw(st.integers(start, min(start + 20, len(data))))
    edit = draw(st.sampled_from(["nothing", "cut out", "double", "cut off"]))
    edited = {"nothing": data, "cut out": data[:start] + data[stop:], "double": data[:stop] + data[start:]}
    return bytes(edited.get(edit, data[:start]))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(pictures=st.lists(damaged_jpegs(), min_size=30, max_size=30))
def test_damaged_jpegs(pictures):
    with tempfile.TemporaryDirectory() as top:
        folder = make_folder(Path(top) / "data", per_class=1, num_val=1)
        for i, data in enumerate(pictures):
            write(folder / f"train/n01/images/x{i:02}.JPEG", data)
        strict = outcome(open_dataset, folder)
        data = open_dataset(folder, skip_bad_images=True)
        assert (strict is None) == bool(data.notes)
        assert data.train.images.shape == (len(data.train.labels), 64, 64, 3)
        assert len(data.train.filenames) == len(data.train.labels) <= 33
        np.testing.assert_array_equal(np.load(folder / "packed/train.npy"), data.train.images)
