"""Batches are a pure function of (seed, step); each fast path equals the plain one of tf.image."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

import input_pipe
from tiny_imagenet import image_ops
from tiny_imagenet.config import TrainConfig
from tiny_imagenet.dataset import Split

PLAIN = TrainConfig(random_crop=False, random_flip=False, saturation=(1.0, 1.0))
SCALED = replace(PLAIN, random_resized_crop=(44, 64), crop_size=48)
RANDOM = TrainConfig(batch_size=4, hue=0.05)
RANDOM_SCALED = replace(SCALED, random_crop=True, random_flip=True, batch_size=4)


def make_split(num_images: int) -> Split:
    """Random images; image n has label n, so that a batch's labels say which images it took."""
    images = np.random.default_rng(0).integers(0, 256, (num_images, 64, 64, 3), dtype=np.uint8)
    return Split(images, np.arange(num_images, dtype=np.int32), [str(n) for n in range(num_images)], 0, 0)


def take(dataset: tf.data.Dataset, count: int = 99) -> list[tuple[np.ndarray, ...]]:
    return list(dataset.take(count).as_numpy_iterator())


def resized(image, top, left, side, size):
    """With tf.image: (64, 64, 3) to (size, size, 3) float32."""
    crop = image[top : top + side, left : left + side].astype(np.float32)
    return tf.image.resize(crop, (size, size), antialias=True).numpy()


# Batches


@pytest.mark.parametrize(("config", "size"), [(RANDOM, None), (RANDOM_SCALED, 32)])
def test_a_batch_is_a_function_of_seed_and_step(config, size):
    data, side = make_split(10), size or config.crop_size
    whole = take(input_pipe.train_batches(data, config, 0, size), 6)
    assert (whole[0][0].shape, whole[0][0].dtype) == ((4, side, side, 3), np.uint8)
    assert (whole[0][1].shape, whole[0][1].dtype) == ((4,), np.int32)
    for start in (2, 5):  # 10 images in batches of 4: batches 2 and 7 span two epochs
        rest = take(input_pipe.train_batches(data, config, start, size), 6 - start)
        for ours, theirs in zip(whole[start:], rest, strict=True):
            assert all(map(np.array_equal, ours, theirs))
    other = take(input_pipe.train_batches(data, replace(config, seed=1), 0, size), 6)
    assert any((ours[1] != theirs[1]).any() for ours, theirs in zip(whole, other, strict=True))


def test_every_epoch_holds_every_image_once_in_a_new_order():
    """Without augmentation, as its central crop."""
    data = make_split(10)
    batches = take(input_pipe.train_batches(data, replace(PLAIN, batch_size=4)), 5)
    images, labels = map(np.concatenate, zip(*batches, strict=True))
    np.testing.assert_array_equal(images, data.images[labels, 4:60, 4:60])
    epochs = labels.reshape(2, 10)
    np.testing.assert_array_equal(np.sort(epochs), [np.arange(10)] * 2)
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize(("config", "count"), [(RANDOM, 3), (RANDOM_SCALED, 2)])
def test_the_shards_of_all_processes_are_the_batch(config, count):
    config, data = replace(config, batch_size=6), make_split(10)
    whole = take(input_pipe.train_batches(data, config, start_step=1), 4)  # two of them span two epochs
    parts = [take(input_pipe.train_batches(data, config, start_step=1, shard=(i, count)), 4) for i in range(count)]
    for expected, *shards in zip(whole, *parts, strict=True):
        assert all(map(np.array_equal, map(np.concatenate, zip(*shards, strict=True)), expected))


def test_evaluation_sees_every_image_once_as_its_central_crop():
    data = make_split(7)
    found = take(input_pipe.eval_batches(data, replace(PLAIN, crop_size=48), batch_size=3))
    assert [len(labels) for _, labels in found] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([images for images, _ in found]), data.images[:, 8:56, 8:56])
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in found]), np.arange(7))


@pytest.mark.parametrize(("num_devices", "count"), [(2, 1), (2, 2), (6, 2), (3, 3)])
@pytest.mark.parametrize("num_images", [1, 12, 25])
def test_on_several_devices_every_image_has_weight_one_once(num_devices, count, num_images):
    data, settings = make_split(num_images), {"batch_size": 5, "num_devices": num_devices}
    parts = [take(input_pipe.eval_batches(data, PLAIN, **settings, shard=(i, count))) for i in range(count)]
    assert len({len(part) for part in parts}) == 1
    found = [example for part in parts for batch in part for example in zip(*batch, strict=True) if example[2]]
    assert sorted(label for _, label, _ in found) == list(range(num_images))
    assert all((image == data.images[label, 4:60, 4:60]).all() for image, label, _ in found)
    assert {len(labels) % (num_devices // count) for part in parts for _, labels, _ in part} == {0}


# Preprocessing


@pytest.mark.parametrize("settings", [{"random_crop": True}, {"random_flip": True}, {"saturation": (0.0, 0.0)}])
def test_each_augmentation_works_without_the_others_eagerly_and_inside_map(settings):
    images, config = tf.constant(make_split(8).images), replace(PLAIN, **settings)
    plain = input_pipe.train_preprocessing(images, PLAIN, step=0)
    changed = input_pipe.train_preprocessing(images, config, step=3)
    assert changed.shape == plain.shape and (changed.numpy() != plain.numpy()).any()
    mapped = tf.data.Dataset.from_tensors(images).map(lambda x: input_pipe.train_preprocessing(x, config, 3))
    np.testing.assert_array_equal(take(mapped)[0], changed)


def test_crops_are_squares_of_the_image_some_flipped():
    config = replace(PLAIN, random_crop=True, random_flip=True, crop_size=62)
    image = make_split(1).images[0]
    crops = input_pipe.train_preprocessing(tf.constant(np.stack([image] * 400)), config, step=2).numpy()
    squares = {}
    for top, left in np.ndindex(3, 3):
        square = image[top : top + 62, left : left + 62]
        squares |= {square.tobytes(): (top, left, False), square[:, ::-1].tobytes(): (top, left, True)}
    found = [squares[crop.tobytes()] for crop in crops]
    assert len(set(found)) == 18 and 150 < sum(flipped for *_, flipped in found) < 250


def test_random_resized_crops_have_every_side_some_flipped():
    """The images are noise: for each there is just one square, flipped or not, that gives the crop."""
    config = replace(RANDOM_SCALED, random_resized_crop=(62, 64), crop_size=32)
    images = make_split(24).images
    crops = input_pipe.train_preprocessing(tf.constant(images), config, tf.constant(3, tf.int64)).numpy()
    places = [(*place, side) for side in (62, 63, 64) for place in np.ndindex(65 - side, 65 - side)]
    squares = [(*place, step) for place in places for step in (1, -1)]
    found = set()
    for crop, image in zip(crops, images, strict=True):
        differences = [np.abs(crop - resized(image, *square, 32)[:, ::step]).max() for *square, step in squares]
        assert min(differences) < 0.501
        found.add(squares[np.argmin(differences)])
    assert len(found) > 10 and {(side, step) for _, _, side, step in found} > {(62, 1), (63, -1)}


@pytest.mark.parametrize(("top", "left", "side"), [(0, 0, 64), (3, 9, 50), (20, 0, 44), (1, 2, 31)])
@pytest.mark.parametrize("size", [32, 48])
def test_resized_crops_equal_tf_image_with_antialiasing(top, left, side, size):
    images = make_split(3).images
    found = image_ops.resized_crop(tf.constant(images), top, left, side, size).numpy()
    assert found.dtype == np.uint8
    for ours, image in zip(found, images, strict=True):
        assert np.abs(ours - resized(image, top, left, side, size)).max() < 0.501  # rounded to whole levels


def test_ten_crops_and_evaluation_of_scaled_images():
    images = make_split(2).images
    crops = input_pipe.ten_crops(tf.constant(images), PLAIN).numpy()
    assert crops.shape == (10, 2, 56, 56, 3)
    for crop, (top, left) in zip(crops, [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)], strict=False):
        np.testing.assert_array_equal(crop, images[:, top : top + 56, left : left + 56])
    np.testing.assert_array_equal(crops[5:], crops[:5, :, :, ::-1])

    crops = input_pipe.ten_crops(tf.constant(images), SCALED).numpy()
    assert np.abs(crops[3, 0] - resized(images[0], 4, 4, 60, 48)).max() < 0.501
    assert np.abs(crops[input_pipe.CENTER, 0] - resized(images[0], 0, 0, 64, 48)).max() < 0.501
    np.testing.assert_array_equal(crops[input_pipe.CENTER], take(input_pipe.eval_batches(make_split(2), SCALED))[0][0])


SATURATION = (image_ops.scale_saturation, tf.image.adjust_saturation, 0.5, 2.0)
HUE = (image_ops.shift_hue, tf.image.adjust_hue, -0.5, 0.5)


@pytest.mark.parametrize(("fast", "plain", "low", "high"), [SATURATION, HUE])
def test_colors_equal_tf_image_with_a_factor_for_each_image(fast, plain, low, high):
    images = np.concatenate([make_split(16).images, np.repeat(make_split(2).images[..., :1], 3, axis=-1)])  # two gray
    images[0], images[1] = 0, 255
    factors = np.random.default_rng(1).uniform(low, high, (18, 1, 1, 1)).astype(np.float32)
    ours = fast(tf.constant(images), tf.constant(factors)).numpy().astype(int)
    theirs = np.stack([plain(image, float(factor)) for image, factor in zip(images, factors.flat, strict=True)])
    assert np.abs(ours - theirs).max() <= 1  # float32 rounding may fall to either side of a level
    assert (ours != theirs).mean() < 1e-3
    neutral = np.full((18, 1, 1, 1), 1 if low > 0 else 0, np.float32)
    np.testing.assert_array_equal(fast(tf.constant(images), tf.constant(neutral)), images)
