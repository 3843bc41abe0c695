"""`TrainConfig`: every setting of a training run, with its default of 2017, its unit and its range; and the recipes."""

from startup import UserError

import re
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from files import is_utf8, shown

DEFAULT_DATA_DIR = "tiny-imagenet-200"  # the one folder that downloads by itself
NAME = r"[\w][\w.-]*"  # what names a folder: letters, digits, '_', '-' and '.'
PICTURE_SIZE = 64  # pixels: the pictures of the dataset are squares of this side


def setting(default: Any, low: float | None = None, high: float | None = None) -> Any:
    """A dataclass field whose value (each of them, for a tuple) must lie in low..high, both included."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class TrainConfig:
    """All settings of one run. The defaults are those of 2017 (VGG-16 on Tiny ImageNet)."""

    # What is trained, on what, under which name
    model_name: str = "vgg_16"
    """The model: the name of a file at the root that defines a function of the same name."""
    config_name: str = "default"
    """The run's name: it lives in RUNS_DIR/MODEL_NAME/CONFIG_NAME."""
    data_dir: str = DEFAULT_DATA_DIR
    """The dataset's folder, in Tiny ImageNet's layout. The default one is downloaded if it is not there."""
    runs_dir: str = "runs"
    """The folder of all runs."""

    skip_bad_images: bool = False
    """Leave out pictures that cannot be used, instead of stopping."""

    # The optimisation
    optimizer: Literal["sgd", "muon"] = "sgd"
    """Nesterov's SGD, or Muon for all kernels but the last, with Adam at a quarter of the rate for the rest."""
    batch_size: int = setting(64, 1)
    """Pictures a step (1 or more)."""
    num_epochs: int = setting(50, 1)
    """Passes over the training pictures at most (1 or more); a plateau ends the run sooner."""
    lr: float = setting(0.01, 0, 1e6)
    """The learning rate at its highest (0 to 1e6): at the start, or after the warm-up."""
    schedule: Literal["plateau", "cosine", "one_cycle"] = "plateau"
    """How the rate falls. plateau: each plateau of the validation accuracy cuts it to a fifth, and the fourth cut ends
    the run; best.keras holds the most accurate weights. cosine, one_cycle (a straight line): to 0 over all epochs;
    last.keras holds the last."""
    warmup: float = setting(0.0, 0, 0.9)
    """For cosine and one_cycle: share of all steps in which the rate first rises from 0 (0 to 0.9)."""
    momentum: float = setting(0.9, 0, 1)
    """Nesterov momentum (0 to 1)."""
    ema_momentum: float = setting(0.0, 0, 0.99999)
    """Momentum a step of a moving average of the weights, which then is what is evaluated, kept and seen by the rule of
    the plateau (0 to 0.99999; 0: the weights themselves are)."""
    reg: float = setting(5e-4, 0, 1e38)
    """L2 penalty on kernels: reg/2 times the sum of their squares is added to the loss (0 to 1e38). With muon rather 0:
    it takes a gradient's direction alone, in which a penalty is no decay of the weights."""
    weight_decay: float = setting(0.0, 0, 100)
    """Decoupled weight decay (https://arxiv.org/abs/1711.05101; but times the rate, as in Keras and PyTorch): a step
    takes this many times the rate of each kernel away (0 to 100); with muon not of the last one."""
    reg_last_only: bool = False
    """Put the penalty on the last layer's kernel alone, as 2017 did with its SVM."""
    dropout_keep_prob: float = setting(0.5, 0.01, 1)
    """Share of the hidden dense units that dropout keeps (0.01 to 1; 1: no dropout)."""
    loss: Literal["softmax_ce", "softmax_smooth_ce", "svm"] = "softmax_ce"
    """Cross-entropy, cross-entropy with smoothed labels, or one-vs-all hinge."""
    smoothing: float = setting(0.1, 0, 1)
    """For softmax_smooth_ce: share of the target that is spread evenly over all classes (0 to 1)."""

    # The model
    width: float = setting(1.0, 0.01, 8)
    """Factor on the number of units of every hidden layer (0.01 to 8)."""
    hidden_units: tuple[int, int] = setting((4096, 2048), 1)
    """Units of vgg_16's two hidden dense layers, before WIDTH (1 or more)."""
    dropout_layers: int = setting(2, 0, 2)
    """How many of vgg_16's hidden dense layers are followed by dropout, the first one first (0 to 2)."""
    init_from: str = ""
    """Begin with the weights of the run in this folder, instead of random ones, wherever name and shape agree."""
    freeze_features: bool = False
    """Train the last layer alone, from INIT_FROM's if that has as many classes, over features that stay INIT_FROM's
    (dropout goes on, unless DROPOUT_KEEP_PROB is 1)."""

    # The training picture; evaluation takes the central crop or, with resized_crop, the whole picture, scaled
    crop_size: int = setting(56, 32, PICTURE_SIZE)
    """Side of the square that the model sees, in pixels (32 to 64)."""
    picture_sizes: tuple[int, ...] = setting((), 16, PICTURE_SIZE)
    """Sides of the training pictures over time, in pixels (16 to 64): each for an equal part of the run, 32 48 for a
    half each; none: always CROP_SIZE. The last weights are evaluated at CROP_SIZE, earlier ones in proportion."""
    resized_crop: tuple[int, int] = setting((0, 0), 0, PICTURE_SIZE)
    """Cut squares whose sides are drawn evenly from this range, in pixels (1 to 64), and scale them, averaging, to the
    size that the model sees; 0 0: off, squares are cut at that size."""
    random_crop: bool = True
    """Cut the square at a random place; else at the centre."""
    random_flip: bool = True
    """Mirror every other picture, at random, left to right."""
    saturation: tuple[float, float] = setting((0.5, 2.0), 0, 1000)
    """Factor on the colour saturation, drawn evenly from this range (0 to 1000; 1 1: off)."""
    hue: float = setting(0.0, 0, 0.5)
    """Hue shift, drawn evenly from -hue to hue, in turns of the colour wheel (0 to 0.5; 0: off; 2017 tried 0.05)."""

    # The machine
    require_gpu: bool = False
    """Stop if there is no GPU, instead of training on the processor."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16", "auto"] = "float32"
    """Number format of the layers' arithmetic; weights are always kept in float32. auto: mixed_bfloat16 where the model
    has convolutions and the device is faster in it, else float32; the run keeps what was picked."""
    seed: int = setting(0, 0, 2**31 - 1)
    """Of the first weights, the batches and dropout (0 to 2147483647): the same seed gives the same run."""

    # What is written, and when
    summary_interval: int = setting(250, 1)
    """Steps between two points of the training curves, each the mean since the point before (1 or more)."""
    eval_interval: int = setting(2000, 1)
    """Steps between two evaluations on all validation pictures (1 or more)."""
    histogram_interval: int = setting(0, 0)
    """Steps between histograms of weights and activations (1 or more; 0: at each evaluation)."""
    checkpoint_interval: int = setting(500, 1)
    """Steps between saves of the resumable state (1 or more); each evaluation saves it too."""
    keep_checkpoints: int = setting(2, 1)
    """How many resumable states are kept, newest first (1 or more)."""

    def __post_init__(self) -> None:
        """Raises UserError for the first value out of its range."""
        for name in ("model_name", "config_name"):
            if not re.fullmatch(NAME, getattr(self, name)):
                raise UserError(f"{name} is {getattr(self, name)!r}; use letters, digits, '_', '-' and '.' alone")
        for name in ("data_dir", "runs_dir", "init_from"):
            if not is_utf8(getattr(self, name)):
                raise UserError(f"{name} is {shown(getattr(self, name))}, which is not UTF-8; rename the folder")
        for item in fields(self):
            if get_origin(item.type) is Literal and getattr(self, item.name) not in get_args(item.type):
                allowed = ", ".join(get_args(item.type))
                raise UserError(f"{item.name} is {getattr(self, item.name)!r}; it must be one of: {allowed}")
            _check_range(item.name, getattr(self, item.name), **item.metadata)
        for name in ("saturation", "resized_crop"):
            if getattr(self, name)[0] > getattr(self, name)[1]:
                raise UserError(f"{name} is {getattr(self, name)}; the first number must not be above the second")
        if self.resized_crop[0] == 0 < self.resized_crop[1]:
            raise UserError(f"resized_crop is {self.resized_crop}; it must be two sides from 1 to 64, or 0 0")
        if self.smoothing != type(self).smoothing and self.loss != "softmax_smooth_ce":
            raise UserError(f"smoothing is {self.smoothing}, but loss is {self.loss}; set --loss softmax_smooth_ce")
        if self.freeze_features and not self.init_from:
            raise UserError("freeze_features keeps the features of a trained run; name it by --init-from RUN")

    @property
    def resizes(self) -> bool:
        """Whether pictures are scaled, instead of cut, to the size that the model sees."""
        return self.resized_crop != (0, 0)

    @property
    def hidden_reg(self) -> float:
        """`reg` as it is for all kernels but the last."""
        return 0.0 if self.reg_last_only else self.reg

    @property
    def model_file(self) -> str:
        """The name of the run's model: of the most accurate weights, or of the last where the schedule is fixed."""
        return "best.keras" if self.schedule == "plateau" else "last.keras"

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return Path(self.runs_dir) / self.model_name / self.config_name


def _check_range(name: str, value: Any, low: float | None = None, high: float | None = None) -> None:
    if low is None:
        return
    for number in value if isinstance(value, tuple | list) else (value,):
        if not low <= number <= (sys.float_info.max if high is None else high):  # infinity and NaN fail too
            allowed = f"{low} or more" if high is None else f"{low} to {high}"
            raise UserError(f"{name} is {value}; it must be {allowed}")


def differences(config: TrainConfig, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configurations differ: name -> (value in config, value in other)."""
    ours, theirs = asdict(config), asdict(other)
    return {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}


def from_dict(values: dict[str, Any], source: str) -> TrainConfig:
    """The inverse of `dataclasses.asdict`, for a configuration read from the JSON file `source`.

    Raises:
        UserError: a setting is unknown, of the wrong type or out of range.
    """
    known = {item.name: item.default for item in fields(TrainConfig)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UserError(f"{source}: unknown setting {', '.join(unknown)}; this version knows: {', '.join(known)}")
    for name, value in values.items():
        if not _is_like(value, known[name]):
            raise UserError(f"{source}: {name} is {value!r}, of a wrong type; the default is {known[name]!r}")
    try:
        return TrainConfig(**{name: type(known[name])(value) for name, value in values.items()})
    except OverflowError as error:
        raise UserError(f"{source}: a number is too large ({error})") from None


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value from a JSON file has the type of the setting's default; a whole number may stand for a float."""
    if default == ():  # any number of whole numbers
        return isinstance(value, list) and all(type(number) is int for number in value)
    if isinstance(default, tuple):
        return isinstance(value, list) and len(value) == len(default) and all(map(_is_like, value, default))
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


BASE = TrainConfig()

ONE_HOUR = replace(
    BASE,
    model_name="resnet_18",
    optimizer="muon",
    batch_size=512,
    num_epochs=8,
    lr=0.1,
    schedule="one_cycle",
    warmup=0.15,
    reg=0.0,
    weight_decay=0.03,
    loss="softmax_smooth_ce",
    crop_size=48,
    picture_sizes=10 * (32,) + 3 * (40,) + 3 * (48,),
    resized_crop=(44, 64),
    saturation=(1.0, 1.0),
    precision="auto",
    summary_interval=40,
    eval_interval=240,
    checkpoint_interval=120,
)

RECIPES: dict[str, TrainConfig] = {
    "default": BASE,
    # The baselines on Tiny ImageNet: larger batches for speed; logistic regression wants a lower rate than 2017's.
    "logistic_regression": replace(
        BASE,
        model_name="logistic_regression",
        batch_size=256,
        lr=0.001,
        num_epochs=12,
        eval_interval=782,
        summary_interval=391,
    ),
    "single_layer_nn": replace(
        BASE, model_name="single_layer_nn", batch_size=256, num_epochs=12, eval_interval=782, summary_interval=391
    ),
    # VGG-16 in bfloat16 where that is faster, with batches that fill the machine and 2017's rate per picture, halved
    "vgg_16_fast": replace(
        BASE, batch_size=256, lr=0.02, precision="auto", summary_interval=62, eval_interval=500, checkpoint_interval=125
    ),
    # ResNet-18 in one hour, and in two, on two cores: small pictures first; tested on whole ones of 48 or 56 pixels
    "resnet_18_one_hour": ONE_HOUR,
    "resnet_18_two_hours": replace(
        ONE_HOUR,
        num_epochs=13,
        crop_size=56,
        picture_sizes=12 * (32,) + 5 * (40,) + 5 * (48,) + 4 * (56,),
        summary_interval=65,
        eval_interval=390,
        checkpoint_interval=195,
    ),
    # 2017's SVM
    "vgg_16_svm": replace(
        BASE, loss="svm", lr=0.001, reg=1.0, reg_last_only=True, hidden_units=(4096, 4096), dropout_layers=1
    ),
    # VGG-16 of today, for a GPU
    "vgg_16_bn": replace(
        BASE,
        model_name="vgg_16_bn",
        batch_size=128,
        num_epochs=60,
        lr=0.05,
        schedule="cosine",
        warmup=0.05,
        loss="softmax_smooth_ce",
        precision="auto",
        summary_interval=156,
        eval_interval=1563,
    ),
    # The models of 2017 on the sample set, in minutes on two cores
    "demo": replace(BASE, data_dir="sample-data", num_epochs=15, width=0.125, summary_interval=50, eval_interval=150),
}
"""Named starting points: `train.py --recipe NAME`, any setting of which can still be changed."""
