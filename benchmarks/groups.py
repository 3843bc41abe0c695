"""What `make bench` measures, and the claims that it checks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Contenders that run in interleaved rounds: label -> MODULE.FUNCTION in this folder."""

    contenders: dict[str, str]
    unit: str
    """Of what a round returns. Seconds: less is better."""
    rounds: int = 3
    fresh: bool = False
    """Whether each round runs in a new process."""


OURS, TRAIN = "ours", "ours: train.py --recipe vgg_16_fast"
FAST_STEP, DEFAULT_STEP = "bare step of vgg_16_fast", "bare step of 2017's settings"
ONE_BY_ONE, ONE_BY_ONE_AUTO = "one image per call (2017's way)", "one image per call, precision auto"
PER_FILTER, PER_FILTER_COMPILED = "one gradient per filter (2017's way)", "one gradient per filter, already compiled"
EVALUATION = "VGG-16 evaluation, with histograms and checkpoint"
WHOLE, NARROW = "evaluation of 200 images", "evaluation of 200 images, width 1/8"

GROUPS = {
    "batches": Group(
        {
            OURS: "pipelines.ours",
            "ours, crop and flip": "pipelines.ours_crop_and_flip",
            "tf.data, image by image (2017's way)": "pipelines.per_image",
            "Keras directory, cache, random layers": "pipelines.keras_layers",
            "PyTorch DataLoader, one worker per core, Pillow": "torch_peers.loader",
        },
        "images/s",
    ),
    "first start": Group(
        {
            OURS: "pipelines.our_first_start",
            "each JPEG decoded once": "pipelines.decode_all",
            "Keras directory, cache(file), first pass": "pipelines.keras_first_pass",
            "Keras directory, cache(file), first batch": "pipelines.keras_first_batch",
        },
        "s",
        rounds=2,
    ),
    "second start": Group(
        {OURS: "pipelines.our_second_start", "Keras directory, cache(file)": "pipelines.keras_second_start"},
        "s",
        fresh=True,
    ),
    "VGG-16 training, Keras": Group(  # two groups, because all of them at once would need 30 GB of memory
        {
            TRAIN: "wholes.vgg_16_fast",
            FAST_STEP: "steps.ours_fast",
            DEFAULT_STEP: "steps.ours_default",
            "Keras port, float32, batch 64": "steps.keras_port",
        },
        "images/s",
        rounds=2,
    ),
    "VGG-16 training, PyTorch": Group(
        {
            TRAIN: "wholes.vgg_16_fast",
            "float32, batch 64": "torch_peers.float32_64",
            "bfloat16, batch 64": "torch_peers.bfloat16_64",
            "bfloat16, batch 256": "torch_peers.bfloat16_256",
        },
        "images/s",
        rounds=2,
    ),
    EVALUATION: Group({OURS: "wholes.vgg_16_evaluation"}, "s", rounds=1),
    WHOLE: Group(
        {
            OURS: "looking.ten_crops_in_batches",
            "ours, precision auto": "looking.ten_crops_in_batches_auto",
            ONE_BY_ONE: "looking.ten_crops_one_by_one",
            ONE_BY_ONE_AUTO: "looking.ten_crops_one_by_one_auto",
        },
        "s",
        rounds=1,
    ),
    NARROW: Group(
        {OURS: "looking.ten_crops_in_batches_narrow", ONE_BY_ONE: "looking.ten_crops_one_by_one_narrow"}, "s"
    ),
    "64 filter images of conv2_2": Group(
        {
            OURS: "looking.filters_at_once",
            PER_FILTER: "looking.filters_one_by_one",
            PER_FILTER_COMPILED: "looking.filters_one_by_one_compiled",
        },
        "s",
    ),
    "private memory, single_layer_nn": Group({OURS: "wholes.single_layer_memory"}, "GB", rounds=1),
    "machine limits: memory": Group({"memory copy": "ceilings.memory_copy"}, "bytes/s"),
    "machine limits: arithmetic": Group(
        {"float32 product": "ceilings.product_float32", "bfloat16 product": "ceilings.product_bfloat16"}, "FLOP/s"
    ),
}


@dataclass(frozen=True)
class Claim:
    """A row of the table: `ours` against the best of its peers as a ratio, or, without peers, by itself."""

    what: str
    group: str
    ours: str
    peers: tuple[str, ...]
    goal: float
    at_most: bool = False


def claims() -> list[Claim]:
    """All rows of the table."""
    keras, pytorch, filters = "VGG-16 training, Keras", "VGG-16 training, PyTorch", "64 filter images of conv2_2"
    pipelines = tuple(label for label in GROUPS["batches"].contenders if not label.startswith(OURS))
    torch = tuple(label for label in GROUPS[pytorch].contenders if label != TRAIN)
    return [
        Claim("batches vs. the best peer", "batches", OURS, pipelines, 6),
        Claim("batches, images/s", "batches", OURS, (), 30_000),
        Claim("batches, only crop and flip, images/s", "batches", "ours, crop and flip", (), 60_000),
        Claim("first start vs. decoding once", "first start", OURS, ("each JPEG decoded once",), 1 / 1.2),
        Claim(
            "first start vs. Keras's first pass", "first start", OURS, ("Keras directory, cache(file), first pass",), 1
        ),
        Claim("second start, s", "second start", OURS, (), 1, at_most=True),
        Claim("second start vs. Keras's cache", "second start", OURS, ("Keras directory, cache(file)",), 1),
        Claim("train.py vs. its bare step", keras, TRAIN, (FAST_STEP,), 0.97),
        Claim("vgg_16_fast vs. a Keras port", keras, TRAIN, ("Keras port, float32, batch 64",), 1.8),
        Claim("vgg_16_fast vs. the best PyTorch", pytorch, TRAIN, torch, 1.1),
        Claim("single-crop and 10-crop evaluation", WHOLE, OURS, (ONE_BY_ONE,), 4),
        Claim("the same, precision auto", WHOLE, "ours, precision auto", (ONE_BY_ONE_AUTO,), 4),
        Claim("the same, precision auto vs. float32", WHOLE, "ours, precision auto", (ONE_BY_ONE,), 4),
        Claim("the same, width 1/8", NARROW, OURS, (ONE_BY_ONE,), 4),
        Claim("64 filter images", filters, OURS, (PER_FILTER,), 10),
        Claim("64 filter images vs. compiled peer", filters, OURS, (PER_FILTER_COMPILED,), 1),
        Claim("private memory of single_layer_nn, GB", "private memory, single_layer_nn", OURS, (), 2, at_most=True),
    ]
