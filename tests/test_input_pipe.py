"""Batches are a pure function of (seed, step); each fast path equals the plain one of tf.image."""

from startup import tf

from dataclasses import replace

import numpy as np
import pytest

import input_pipe
from config import TrainConfig
from dataset import Split

PLAIN = TrainConfig(random_crop=False, random_flip=False, saturation=(1.0, 1.0))


def split(num_pictures: int) -> Split:
    """Random pictures; picture n has label n, so that a batch's labels say which pictures it took."""
    pictures = np.random.default_rng(0).integers(0, 256, (num_pictures, 64, 64, 3), dtype=np.uint8)
    return Split(pictures, np.arange(num_pictures, dtype=np.int32), [str(n) for n in range(num_pictures)], 0)


def batches(dataset, count):
    return list(dataset.take(count).as_numpy_iterator())


def test_shapes_and_dtypes():
    pictures, labels = batches(input_pipe.train_batches(split(10), TrainConfig(batch_size=4)), 1)[0]
    assert (pictures.shape, pictures.dtype) == ((4, 56, 56, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((4,), np.int32)


def test_a_batch_is_a_function_of_seed_and_step():
    config, data = TrainConfig(batch_size=4, hue=0.05), split(10)
    whole = batches(input_pipe.train_batches(data, config), 9)
    for start in (1, 2, 5, 7):  # 10 pictures in batches of 4: batches 2 and 7 span two epochs
        rest = batches(input_pipe.train_batches(data, config, start), 9 - start)
        for (ours, our_labels), (theirs, their_labels) in zip(whole[start:], rest, strict=True):
            np.testing.assert_array_equal(ours, theirs)
            np.testing.assert_array_equal(our_labels, their_labels)
    other = batches(input_pipe.train_batches(data, replace(config, seed=1)), 9)
    assert any((ours[1] != theirs[1]).any() for ours, theirs in zip(whole, other, strict=True))


def test_every_epoch_holds_every_picture_once_in_a_new_order():
    labels = np.concatenate([b[1] for b in batches(input_pipe.train_batches(split(10), TrainConfig(batch_size=4)), 5)])
    epochs = labels.reshape(2, 10)
    np.testing.assert_array_equal(np.sort(epochs), [np.arange(10)] * 2)
    assert (epochs[0] != epochs[1]).any()


def test_without_augmentation_the_training_picture_is_the_central_crop():
    data = split(6)
    pictures, labels = batches(input_pipe.train_batches(data, replace(PLAIN, batch_size=6)), 1)[0]
    np.testing.assert_array_equal(pictures, data.images[labels, 4:60, 4:60])


def test_evaluation_sees_every_picture_once_as_its_central_crop():
    data = split(7)
    found = batches(input_pipe.eval_batches(data, replace(PLAIN, crop_size=48), batch_size=3), 9)
    assert [len(labels) for _, labels in found] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([b[0] for b in found]), data.images[:, 8:56, 8:56])
    np.testing.assert_array_equal(np.concatenate([b[1] for b in found]), np.arange(7))


def test_crops_are_squares_of_the_picture_some_mirrored_each_by_itself():
    config = replace(PLAIN, random_crop=True, random_flip=True, crop_size=62)
    picture = split(1).images[0]
    crops = input_pipe.crop_and_flip(tf.constant(np.stack([picture] * 400)), config, seed=[1, 2]).numpy()
    squares = {}
    for top in range(3):
        for left in range(3):
            square = picture[top : top + 62, left : left + 62]
            squares[square.tobytes()] = (top, left, False)
            squares[square[:, ::-1].tobytes()] = (top, left, True)
    found = [squares.get(crop.tobytes()) for crop in crops]
    assert None not in found
    assert len(set(found)) == 18
    assert 150 < sum(flipped for *_, flipped in found) < 250


@pytest.mark.parametrize("settings", [{"random_crop": True}, {"random_flip": True}, {"saturation": (0.0, 0.0)}])
def test_each_augmentation_works_alone(settings):
    pictures = tf.constant(split(8).images)
    plain = input_pipe.train_preprocessing(pictures, PLAIN, step=0)
    changed = input_pipe.train_preprocessing(pictures, replace(PLAIN, **settings), step=0)
    assert changed.shape == plain.shape
    assert (changed.numpy() != plain.numpy()).any()


def test_preprocessing_is_the_same_eagerly_and_inside_map():
    config, pictures = TrainConfig(hue=0.05), tf.constant(split(4).images)
    mapped = tf.data.Dataset.from_tensors(pictures).map(lambda x: input_pipe.train_preprocessing(x, config, 3))
    eager = input_pipe.train_preprocessing(pictures, config, 3)
    np.testing.assert_array_equal(next(mapped.as_numpy_iterator()), eager)


@pytest.mark.parametrize(
    ("fast", "plain", "low", "high"),
    [
        (input_pipe.scale_saturation, tf.image.adjust_saturation, 0.5, 2.0),
        (input_pipe.shift_hue, tf.image.adjust_hue, -0.5, 0.5),
    ],
)
def test_colours_equal_tf_image_with_a_factor_for_each_picture(fast, plain, low, high):
    pictures = np.concatenate([split(16).images, np.repeat(split(2).images[..., :1], 3, axis=-1)])  # two grey ones
    pictures[0], pictures[1] = 0, 255
    factors = np.random.default_rng(1).uniform(low, high, (18, 1, 1, 1)).astype(np.float32)
    ours = fast(tf.constant(pictures), tf.constant(factors)).numpy().astype(int)
    theirs = np.stack([plain(p, float(f)) for p, f in zip(pictures, factors.flat, strict=True)])
    assert np.abs(ours - theirs).max() <= 1  # float32 rounding may fall to either side of a level
    assert (ours != theirs).mean() < 1e-3


def test_saturation_one_and_hue_zero_change_nothing():
    pictures = tf.constant(split(4).images)
    np.testing.assert_array_equal(input_pipe.scale_saturation(pictures, tf.ones([4, 1, 1, 1])), pictures)
    np.testing.assert_array_equal(input_pipe.shift_hue(pictures, tf.zeros([4, 1, 1, 1])), pictures)


def test_ten_crops():
    pictures = split(2).images
    crops = input_pipe.ten_crops(tf.constant(pictures), PLAIN).numpy()
    assert crops.shape == (10, 2, 56, 56, 3)
    for crop, (top, left) in zip(crops, [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)], strict=False):
        np.testing.assert_array_equal(crop, pictures[:, top : top + 56, left : left + 56])
    np.testing.assert_array_equal(crops[5:], crops[:5, :, :, ::-1])


def test_pictures_are_not_copied(tmp_path):
    np.save(tmp_path / "pictures.npy", split(3).images)
    mapped = np.load(tmp_path / "pictures.npy", mmap_mode="c")
    tensor = input_pipe.as_tensor(mapped)
    mapped[1, 2, 3] = 77  # private to this process, as the tensor is
    np.testing.assert_array_equal(tensor[1, 2, 3], [77, 77, 77])


# Pictures that are scaled

SCALED = replace(PLAIN, resized_crop=(44, 64), crop_size=48)


def resized(picture, top, left, side, size):
    """By tf.image: (64, 64, 3) to (size, size, 3) float32."""
    cut = picture[top : top + side, left : left + side].astype(np.float32)
    return tf.image.resize(cut, (size, size), antialias=True).numpy()


@pytest.mark.parametrize(("top", "left", "side"), [(0, 0, 64), (3, 9, 50), (20, 0, 44), (8, 8, 48), (1, 2, 31)])
@pytest.mark.parametrize("size", [32, 48, 56])
def test_squares_equal_tf_image_resize_with_antialiasing(top, left, side, size):
    pictures = split(3).images
    found = input_pipe.squares(tf.constant(pictures), top, left, side, size).numpy()
    assert found.dtype == np.uint8
    for ours, picture in zip(found, pictures, strict=True):
        assert np.abs(ours - resized(picture, top, left, side, size)).max() < 0.501  # rounded to whole levels


def test_random_squares_are_the_scaled_ones_of_every_side_some_mirrored():
    """Random pixels are told apart: for each picture there is just one square, mirrored or not, that gives it."""
    config = replace(SCALED, random_crop=True, random_flip=True, resized_crop=(62, 64), crop_size=32)
    pictures = split(40).images
    found = input_pipe.train_preprocessing(tf.constant(pictures), config, tf.constant(3, tf.int64)).numpy()
    squares = [(y, x, side) for side in (62, 63, 64) for y in range(65 - side) for x in range(65 - side)]
    seen = set()
    for ours, picture in zip(found, pictures, strict=True):
        candidates = {
            (*square, flip): np.abs(ours - resized(picture, *square, 32)[:, :: -1 if flip else 1]).max()
            for square in squares
            for flip in (False, True)
        }
        best = min(candidates, key=candidates.get)
        assert candidates[best] < 0.501
        seen.add(best)
    assert {side for *_, side, _ in seen} == {62, 63, 64}
    assert {flip for *_, flip in seen} == {False, True}
    assert len(seen) > 15


def test_scaled_batches_of_any_size_are_a_function_of_seed_and_step():
    config, data = replace(SCALED, random_crop=True, random_flip=True, batch_size=4), split(10)
    for size in (32, None):
        whole = batches(input_pipe.train_batches(data, config, 0, size), 5)
        rest = batches(input_pipe.train_batches(data, config, 2, size), 3)
        for (ours, _), (theirs, _) in zip(whole[2:], rest, strict=True):
            assert ours.shape == (4, size or 48, size or 48, 3)
            np.testing.assert_array_equal(ours, theirs)


def test_a_net_of_scaled_pictures_is_evaluated_on_whole_scaled_ones():
    data = split(7)
    found = batches(input_pipe.eval_batches(data, SCALED, batch_size=3), 9)
    pictures = np.concatenate([pictures for pictures, _ in found])
    for ours, picture in zip(pictures, data.images, strict=True):
        assert np.abs(ours - resized(picture, 0, 0, 64, 48)).max() < 0.501
    crops = input_pipe.ten_crops(tf.constant(data.images), SCALED).numpy()
    assert crops.shape == (10, 7, 48, 48, 3)
    np.testing.assert_array_equal(crops[input_pipe.CENTER], pictures)
    assert np.abs(crops[3, 0] - resized(data.images[0], 4, 4, 60, 48)).max() < 0.501
    np.testing.assert_array_equal(crops[5:], crops[:5, :, :, ::-1])
