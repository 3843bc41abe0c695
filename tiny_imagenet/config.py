"""`TrainConfig`: every setting of a training run, with its default of 2017, its unit and its range."""

import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from tiny_imagenet.errors import UserError, printable
from tiny_imagenet.readers import convert

DEFAULT_DATA_DIR = "tiny-imagenet-200"  # the only folder that is downloaded automatically
FOLDER_NAME = r"[\w][\w.-]*"  # a name of one folder: letters, digits, '_', '-' and '.'
IMAGE_SIZE = 64  # pixels; the dataset's images are squares of this side
MAX_INT = 2**31 - 1
CHANGEABLE = {"config_name", "data_dir", "packed_dir", "runs_dir", "skip_bad_images", "require_gpu"}
CHANGEABLE |= {"num_epochs", "summary_interval", "histogram_interval", "checkpoint_interval", "keep_checkpoints"}


def setting(default: Any, low: float, high: float = MAX_INT) -> Any:
    """A dataclass field whose value (every element, for a tuple) must lie in low..high, both included."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class TrainConfig:
    """All settings of one run. The defaults are those of 2017 (VGG-16 on Tiny ImageNet)."""

    # The run: which model, on which data, under which name
    model_name: str = "vgg_16"
    """The model: a file at the root that defines a function of the same name."""
    config_name: str = "default"
    """The run's name: its folder is RUNS_DIR/MODEL_NAME/CONFIG_NAME."""
    data_dir: str = DEFAULT_DATA_DIR
    """The dataset's folder, in Tiny ImageNet's or ImageFolder's layout. The default one is downloaded if it does not
    exist."""
    packed_dir: str = ""
    """The folder for the packed images; empty: packed/ in the dataset's folder. Set it if that one is read-only."""
    runs_dir: str = "runs"
    """The folder of all runs."""
    skip_bad_images: bool = False
    """Leave out images that cannot be used, instead of stopping."""
    holdout: int = setting(0, 0)
    """Validate on this many training images of each class, drawn by SEED and left out of training (0 or more; 0: on the
    dataset's own validation images)."""

    # Optimization
    optimizer: Literal["sgd", "muon"] = "sgd"
    """SGD with Nesterov momentum; or Muon for all kernels but the last, with Adam at a quarter of the learning rate for
    the other parameters."""
    batch_size: int = setting(64, 1)
    """Images per step (1 or more)."""
    num_epochs: int = setting(50, 1)
    """Passes over the training images (1 or more); with the plateau schedule, training may end sooner."""
    lr: float = setting(0.01, 0, 1e6)
    """The peak learning rate (0 to 1e6): at the start, or after the warm-up."""
    schedule: Literal["plateau", "cosine", "linear"] = "plateau"
    """How the learning rate falls. plateau: to a fifth whenever validation accuracy stops improving, and the fourth cut
    ends training; best.keras has the most accurate parameters. cosine, linear: to 0 over all epochs; last.keras has the
    last parameters."""
    warmup: float = setting(0.0, 0, 0.9)
    """For cosine and linear: the share of all steps in which the learning rate first rises from 0 (0 to 0.9)."""
    momentum: float = setting(0.9, 0, 1)
    """Nesterov momentum (0 to 1)."""
    ema_momentum: float = setting(0.0, 0, 0.99999)
    """Momentum of an exponential moving average of the parameters, which is then what is evaluated and kept (0 to
    0.99999; 0: off)."""
    reg: float = setting(5e-4, 0, 1e38)
    """L2 penalty: reg/2 times the sum of squares of each kernel is added to the loss (0 to 1e38). With muon, which
    ignores the size of a gradient, use WEIGHT_DECAY instead."""
    weight_decay: float = setting(0.0, 0, 100)
    """Decoupled weight decay (https://arxiv.org/abs/1711.05101), times the learning rate as in Keras and PyTorch: the
    share of each kernel that a step removes (0 to 100); with muon, the last kernel is exempt."""
    reg_last_only: bool = False
    """Apply the L2 penalty to the last layer's kernel only, as 2017 did for its SVM."""
    dropout_keep_prob: float = setting(0.5, 0.01, 1)
    """Share of the hidden dense units that dropout keeps (0.01 to 1; 1: no dropout)."""
    loss: Literal["softmax_ce", "softmax_smooth_ce", "svm"] = "softmax_ce"
    """Cross-entropy, cross-entropy with label smoothing, or one-vs-all hinge."""
    smoothing: float = setting(0.1, 0, 1)
    """For softmax_smooth_ce: the share of the target that is spread evenly over all classes (0 to 1)."""

    # The model
    width: float = setting(1.0, 0.01, 8)
    """Factor on the number of units of every hidden layer (0.01 to 8)."""
    hidden_units: tuple[int, int] = setting((4096, 2048), 1, 65536)
    """Units of vgg_16's two hidden dense layers, before WIDTH (1 to 65536)."""
    dropout_layers: int = setting(2, 0, 2)
    """How many of vgg_16's hidden dense layers, from the first, are followed by dropout (0 to 2)."""
    init_from: str = ""
    """Start from the parameters of the run in this folder: all whose names and shapes match are loaded."""
    freeze_features: bool = False
    """Train a new last layer only, on top of the features of INIT_FROM, which stay as they are."""

    # Augmentation: a random crop, or a random resized crop that is evaluated on the whole image, scaled
    crop_size: int = setting(56, 32, IMAGE_SIZE)
    """Side of the square that the model sees, in pixels (32 to 64)."""
    image_sizes: tuple[int, ...] = setting((), 16, IMAGE_SIZE)
    """Progressive resizing: the sides of the training images, in pixels (16 to 64), each for an equal part of training;
    for example 32 48. None: always CROP_SIZE. The final evaluation is at CROP_SIZE, earlier ones in proportion."""
    random_resized_crop: tuple[int, int] = setting((0, 0), 0, IMAGE_SIZE)
    """Cut squares with sides drawn uniformly from this range, in pixels (1 to 64), and scale them, antialiased, to the
    size that the model sees; 0 0: off, crops are not scaled."""
    random_crop: bool = True
    """Crop at a random position, rather than at the center."""
    random_flip: bool = True
    """Flip every other image, at random, left to right."""
    saturation: tuple[float, float] = setting((0.5, 2.0), 0, 1000)
    """Factor on the color saturation, drawn uniformly from this range (0 to 1000; 1 1: off)."""
    hue: float = setting(0.0, 0, 0.5)
    """Hue shift, drawn uniformly from -hue to hue, in turns of the color wheel (0 to 0.5; 0: off; 2017 tried 0.05)."""

    # Hardware
    require_gpu: bool = False
    """Stop if there is no GPU, rather than train on the CPU."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16", "auto"] = "float32"
    """Keras dtype policy; parameters are always kept in float32. auto: mixed_bfloat16 if the model has convolutions and
    the device is faster in bfloat16, else float32; the run records which."""
    seed: int = setting(0, 0, MAX_INT)
    """Seed of the initial parameters, the batches and dropout (0 to 2147483647): the same seed gives the same run."""

    # Logging and checkpoints
    summary_interval: int = setting(250, 1)
    """Steps between two points of the training curves, each a mean over these steps (1 or more)."""
    eval_interval: int = setting(2000, 0)
    """Steps between two evaluations on all validation images (1 or more; 0: once per epoch)."""
    histogram_interval: int = setting(0, 0)
    """Steps between histograms of parameters and activations (1 or more; 0: at every evaluation)."""
    checkpoint_interval: int = setting(500, 1)
    """Steps between checkpoints (1 or more); every evaluation saves one too."""
    keep_checkpoints: int = setting(2, 1)
    """How many checkpoints are kept, newest first (1 or more)."""

    def __post_init__(self) -> None:
        """Raises UserError for the first setting that has the wrong type, is out of range or contradicts another."""
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, str) and printable(value) != value:
                raise UserError(f"{item.name} is {value!r}, which cannot be printed on one line; rename it")
            numbers = [x for x in (value if isinstance(value, tuple) else [value]) if type(x) in (int, float)]
            low, high = item.metadata.get("low"), item.metadata.get("high")
            if item.metadata and not all(low <= number <= high for number in numbers):  # infinity and NaN fail too
                raise UserError(f"{item.name} is {str(value)[:50]}; it must be {low} to {high}")
            try:
                object.__setattr__(self, item.name, convert(item.type, value, item.name))  # 1 becomes 1.0
            except ValueError as error:
                raise UserError(str(error)) from None
        for name in ("model_name", "config_name"):
            if not re.fullmatch(FOLDER_NAME, getattr(self, name)):
                raise UserError(f"{name} is {getattr(self, name)!r}; use only letters, digits, '_', '-' and '.'")
        for name in ("saturation", "random_resized_crop"):
            if getattr(self, name)[0] > getattr(self, name)[1]:
                raise UserError(f"{name} is {getattr(self, name)}; the first number must not exceed the second")
        if self.random_resized_crop[0] == 0 < self.random_resized_crop[1]:
            raise UserError(f"random_resized_crop is {self.random_resized_crop}; use two sides from 1 to 64, or 0 0")
        if self.smoothing != type(self).smoothing and self.loss != "softmax_smooth_ce":
            raise UserError(f"smoothing is {self.smoothing}, but loss is {self.loss}; set --loss softmax_smooth_ce")
        if self.freeze_features and not self.init_from:
            raise UserError("freeze_features needs the features of a trained run; name it with --init-from RUN")
        if self.schedule == "plateau" and (self.image_sizes or self.warmup):
            name = "image_sizes" if self.image_sizes else "warmup"
            raise UserError(f"{name} needs a schedule of fixed length; set --schedule to cosine or linear")
        if self.image_sizes and not self.scales_images:
            raise UserError("image_sizes needs images that are scaled; set --random-resized-crop, for example to 44 64")

    @property
    def scales_images(self) -> bool:
        """Whether images are scaled, rather than cropped, to the size that the model sees."""
        return self.random_resized_crop != (0, 0)

    @property
    def hidden_reg(self) -> float:
        """`reg` for all kernels but the last."""
        return 0.0 if self.reg_last_only else self.reg

    @property
    def model_file(self) -> str:
        """Where the model is kept: of the most accurate parameters or, with a schedule of fixed length, the last."""
        return "best.keras" if self.schedule == "plateau" else "last.keras"

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return Path(self.runs_dir) / self.model_name / self.config_name


def differences(config: TrainConfig, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configurations differ: name -> (value in config, value in other)."""
    ours, theirs = asdict(config), asdict(other)
    return {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}


def fixed_changes(before: TrainConfig, now: TrainConfig) -> list[str]:
    """What has changed of the settings on which a run's result depends, which cannot change when it is resumed."""
    changes, fixed = differences(before, now), {"num_epochs"} if now.schedule != "plateau" else set()
    shown = {name: ["none" if value in ("", ()) else value for value in pair] for name, pair in changes.items()}
    return [f"{name} was {old}, now {new}" for name, (old, new) in shown.items() if name not in CHANGEABLE - fixed]


def from_dict(values: dict[str, Any], source: str | Path) -> TrainConfig:
    """The inverse of `dataclasses.asdict`, for a configuration read from the JSON file `source`.

    Raises:
        UserError: a setting is unknown, of the wrong type or out of range.
    """
    known = [item.name for item in fields(TrainConfig)]
    if unknown := sorted(set(values) - set(known)):
        raise UserError(f"{source}: unknown setting {', '.join(unknown)[:60]}; this version knows: {', '.join(known)}")
    try:
        return TrainConfig(**values)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
