"""2017's rule for the learning rate, the schedules of fixed length, image sizes, and the number of steps."""

import re
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tiny_imagenet.config import TrainConfig
from tiny_imagenet.errors import UserError
from tiny_imagenet.schedules import (
    FixedLengthSchedule,
    TrainControl,
    count_steps,
    eval_image_size,
    image_size,
    image_size_end,
)

LINEAR = TrainConfig("resnet_18", schedule="linear", lr=1.0, image_sizes=(32, 32, 48), random_resized_crop=(44, 64))


@pytest.mark.parametrize(
    ("val_accs", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1]),  # progress
        ([0.3, 0.2], [1, 1]),  # never before the third
        ([0.1, 0.3, 0.29], [1, 1, 0.2]),  # below the best
        ([0.3, 0.1, 0.2, 0.4], [1, 1, 0.2, 0.2]),  # below the best of all, not only of the last two
        ([0.300, 0.302, 0.3029], [1, 1, 0.2]),  # the best, but within 0.002 of the mean, 0.301
        ([0.300, 0.302, 0.3031], [1, 1, 1]),  # 0.0021 above the mean
        ([0.1, 0.1, 0.1], [1, 1, 0.2]),  # equal to the best, but no progress
        ([0.5, 0.4, 0.4, 0.4, 0.4, 0.4], [1, 1, 0.2, 0.04, 0.008, 0.0016]),  # the fourth cut ends training
    ],
)
def test_without_progress_the_learning_rate_is_cut_to_a_fifth(val_accs, expected):
    control, found = TrainControl(lr=1.0), []
    for val_acc in val_accs:
        assert not control.done()
        control.add_val_acc(val_acc)
        control.update_lr()
        found.append(round(control.lr, 6))
    assert found == expected
    assert control.done() == (expected[-1] == 0.0016)


@pytest.mark.parametrize(
    ("schedule", "warmup", "total_steps", "expected"),
    [
        ("linear", 0.25, 8, [0.25, 0.75, 11 / 12, 9 / 12, 7 / 12, 5 / 12, 3 / 12, 1 / 12]),  # 2 of 8 steps up to 1
        ("linear", 0.0, 10, [0.95, 0.85, 0.75, 0.65]),
        ("cosine", 0.0, 10, [0.99384417, 0.94550326, 0.85355339]),  # (1 + cos(pi (n + 1/2) / 10)) / 2
    ],
)
def test_the_learning_rate_rises_and_falls_to_zero(schedule, warmup, total_steps, expected):
    schedule = FixedLengthSchedule(replace(LINEAR, schedule=schedule, warmup=warmup), total_steps)
    found = [float(schedule(step)) for step in range(total_steps)]
    assert found[: len(expected)] == pytest.approx(expected, rel=1e-5)
    assert 0 < found[-1] < 0.1


@pytest.mark.parametrize("sizes", [(32,), (32, 32, 48), (48, 32, 48), (32, 40, 40, 48, 56, 56)])
@pytest.mark.parametrize("total_steps", [6, 7, 10, 100])
def test_each_image_size_gets_an_equal_part_of_the_run(sizes, total_steps):
    config = replace(LINEAR, image_sizes=sizes)
    found = [image_size(config, step, total_steps) for step in range(total_steps)]
    for size in set(sizes):
        assert abs(found.count(size) - total_steps * sizes.count(size) / len(sizes)) < sizes.count(size)
    for step, size in enumerate(found):
        later = [other for other in range(step, total_steps) if found[other] != size]
        assert image_size_end(config, step, total_steps) == min(later, default=total_steps)


def test_an_evaluation_is_as_far_below_crop_size_as_training_is_below_its_last_size():
    assert eval_image_size(LINEAR, 10, 10) == 56
    assert eval_image_size(LINEAR, 1, 10) == round(56 * 32 / 48)
    assert image_size(TrainConfig(), 5, 10) == eval_image_size(TrainConfig(), 5, 10) == 56
    assert image_size_end(TrainConfig(), 5, 10) == 10


def make_data(num_images=200, num_classes=10):
    return SimpleNamespace(
        root="data", class_ids=tuple(map(str, range(num_classes))), train=SimpleNamespace(labels=range(num_images))
    )


def test_ten_million_epochs_are_counted_at_once():
    config, start = replace(LINEAR, num_epochs=10**7), time.perf_counter()
    total_steps = count_steps(config, make_data(100_000))
    assert total_steps == 10**7 * 100_000 // 64
    assert image_size_end(config, 0, total_steps) == -(-2 * total_steps // 3)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("settings", "data", "answer"),
    [
        ({}, make_data(num_classes=1), "data has only one class"),
        ({"batch_size": 201}, make_data(), "batch_size is 201, but there are only 200 training images"),
        ({"eval_interval": 32}, make_data(), "eval_interval is 32, but the run has only 31 steps"),
        ({"image_sizes": (32,) * 32}, make_data(), "there are 32 image_sizes for 31 steps"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_named(settings, data, answer):
    config = replace(LINEAR, num_epochs=10, eval_interval=5)
    assert count_steps(config, make_data()) == 31  # 10 * 200 // 64
    with pytest.raises(UserError, match=answer):
        count_steps(replace(config, **settings), data)


def test_the_highest_ema_momentum_that_the_error_names_is_accepted():
    config, data = TrainConfig(batch_size=20, num_epochs=150, eval_interval=10, ema_momentum=0.99999), make_data()
    with pytest.raises(UserError, match="ema_momentum is 0.99999") as error:
        count_steps(config, data)
    highest = float(re.search("set --ema-momentum to (.*) or less", str(error.value)).group(1))
    assert count_steps(replace(config, ema_momentum=highest), data) == 1500
