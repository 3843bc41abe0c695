"""How the learning rate and the image size change during a run, and how many steps it has."""

import math
from dataclasses import dataclass, field, replace

import keras
from keras import ops

from tiny_imagenet.config import TrainConfig
from tiny_imagenet.dataset import Dataset
from tiny_imagenet.errors import UserError


@dataclass
class TrainControl:
    """The plateau schedule of 2017: cuts the learning rate when validation accuracy stalls, four times in all."""

    lr: float
    """The current learning rate."""
    val_accs: list[float] = field(default_factory=list)
    """Validation accuracies so far, 0 to 1."""
    num_cuts: int = 0

    FACTOR = 1 / 5
    MIN_GAIN = 0.002  # absolute; a smaller difference of accuracies counts as none
    MAX_CUTS = 4

    def add_val_acc(self, val_acc: float) -> None:
        """Records the validation accuracy (0 to 1) of a new evaluation."""
        self.val_accs.append(val_acc)

    def update_lr(self) -> None:
        """Cuts the learning rate if the latest accuracy, from the third on, is no improvement."""
        if len(self.val_accs) < 3:
            return
        before_last, last, now = self.val_accs[-3:]
        if now < max(self.val_accs) or abs(now - (before_last + last) / 2) < self.MIN_GAIN:
            self.lr *= self.FACTOR
            self.num_cuts += 1

    def done(self) -> bool:
        """Whether training should end."""
        return self.num_cuts >= self.MAX_CUTS


class FixedLengthSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate rises linearly from 0 during the warm-up, then falls to 0 at the end of the run.

    Args:
        config: `lr`, `schedule` ("linear", or "cosine", https://arxiv.org/abs/1608.03983) and `warmup` are used.
        total_steps: number of steps of the whole run.
    """

    def __init__(self, config: TrainConfig, total_steps: int) -> None:
        self.config, self.total_steps = config, total_steps

    def __call__(self, step):
        """The learning rate of step `step`, counted from 0; a scalar."""
        config = self.config
        done = (ops.cast(step, "float32") + 0.5) / self.total_steps  # at the middle of the step
        left = ops.maximum(1 - done, 0) / (1 - config.warmup)  # 1 after the warm-up, 0 at the end
        if config.schedule == "cosine":
            left = 0.5 - 0.5 * ops.cos(math.pi * left)
        in_warmup = done < config.warmup
        return config.lr * ops.where(in_warmup, done / max(config.warmup, 1e-9), left)


def image_size(config: TrainConfig, step: int, total_steps: int) -> int:
    """Side of the training images of step `step`, counted from 0."""
    sizes = config.image_sizes or (config.crop_size,)
    return sizes[min(step, total_steps - 1) * len(sizes) // total_steps]


def image_size_end(config: TrainConfig, step: int, total_steps: int) -> int:
    """The first step after `step` whose images have a different size, or `total_steps`."""
    sizes, size = config.image_sizes, image_size(config, step, total_steps)
    starts = [-(-part * total_steps // len(sizes)) for part in range(len(sizes)) if sizes[part] != size]  # rounded up
    return min((start for start in starts if start > step), default=total_steps)


def eval_image_size(config: TrainConfig, step: int, total_steps: int) -> int:
    """Side of the images of an evaluation after `step` steps: as far below crop_size as training is below its last."""
    last = image_size(config, total_steps - 1, total_steps)
    return round(config.crop_size * image_size(config, step - 1, total_steps) / last)


def resolve_eval_interval(config: TrainConfig, data: Dataset) -> TrainConfig:
    """Replaces eval_interval 0 with the number of steps of one epoch."""
    return replace(config, eval_interval=config.eval_interval or max(1, len(data.train.labels) // config.batch_size))


def count_steps(config: TrainConfig, data: Dataset) -> int:
    """The number of steps of the whole run.

    Raises:
        UserError: the settings do not fit the data.
    """
    num_images = len(data.train.labels)
    if len(data.class_ids) < 2:
        raise UserError(f"{data.root} has only one class; training needs two or more")
    if config.batch_size > num_images:
        raise UserError(f"batch_size is {config.batch_size}, but there are only {num_images} training images; lower it")
    total_steps = config.num_epochs * num_images // config.batch_size
    if config.ema_momentum and 1 / (1 - config.ema_momentum) > total_steps:
        highest = math.floor(1e5 * (1 - 1 / total_steps)) / 1e5
        raise UserError(
            f"ema_momentum is {config.ema_momentum}, an average over more than the {total_steps} steps of the run; "
            f"set --ema-momentum to {highest:g} or less"
        )
    if len(config.image_sizes) > total_steps:
        raise UserError(f"there are {len(config.image_sizes)} image_sizes for {total_steps} steps; use fewer")
    if config.eval_interval > total_steps:
        what = f"eval_interval is {config.eval_interval}, but the run has only {total_steps} steps"
        raise UserError(f"{what}; raise --num-epochs or, in a new run, lower --eval-interval")
    return total_steps
