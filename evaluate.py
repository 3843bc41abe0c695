"""How good the models are that runs kept, over all of validation: `python evaluate.py RUN...`.

Top-1 and top-5 accuracy by the centre crop and by 10 crops, and the expected calibration error of the centre crop.
"""

from startup import UserError, command, command_line, keras

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from keras import ops
from tqdm import tqdm

from checkpoints import Run, load_run, read_seconds
from config import TrainConfig
from dataset import Dataset, Split, open_dataset
from files import shown
from input_pipe import CENTER, as_tensor, ten_crops
from metrics import expected_calibration_error, top_k_accuracy

BATCH_SIZE = 100  # pictures; ten times as many crops


@dataclass(frozen=True)
class Scores:
    """Shares of the validation pictures, 0 to 1; and the expected calibration error, 0 to 1, by the centre crop."""

    center_top_1: float
    center_top_5: float
    ten_crops_top_1: float
    ten_crops_top_5: float
    center_ece: float


def scores(model: keras.Model, split: Split, config: TrainConfig) -> Scores:
    """Evaluates on every picture of the split, each counted once.

    Args:
        model: from (B, S, S, 3) uint8 to logits (B, C).
        split: pictures (N, 64, 64, 3) uint8 and labels (N,) int32.
        config: of the model's run; says how pictures become crops.

    Returns:
        The accuracies, and how far the probabilities are from them.
    """
    pictures, hits, confidences = as_tensor(split.images), [], []
    for start in tqdm(range(0, len(split.labels), BATCH_SIZE), desc="evaluating", leave=False, disable=None):
        batch, labels = pictures[start : start + BATCH_SIZE], split.labels[start : start + BATCH_SIZE]
        crops = log_probabilities(model, ten_crops(batch, config))  # (10, B, C)
        both = crops[CENTER], crops.sum(axis=0)
        four = ops.stack([top_k_accuracy(labels, log_p, k) for log_p in both for k in (1, 5)])
        hits.append(ops.convert_to_numpy(four).astype(int))  # (4, B)
        confidences.append(np.exp(crops[CENTER].max(axis=-1)))  # (B,)
    hits, confidences = np.concatenate(hits, axis=1), np.concatenate(confidences)
    shares = (int(total) / len(split.labels) for total in hits.sum(axis=1))
    return Scores(*shares, expected_calibration_error(confidences, hits[0]))


def log_probabilities(model: keras.Model, crops) -> np.ndarray:
    """Log-probabilities of the classes.

    Args:
        model: from (B, S, S, 3) uint8 to logits (B, C).
        crops: (K, B, S, S, 3) uint8.

    Returns:
        (K, B, C) float32.
    """
    count, batch_size, *shape = crops.shape
    logits = model.predict_on_batch(np.reshape(crops, (count * batch_size, *shape)))
    log_p = ops.convert_to_numpy(ops.log_softmax(ops.cast(logits, "float32")))
    return log_p.reshape(count, batch_size, -1)


def check_same_classes(run: Run, data: Dataset) -> None:
    """Raises UserError if the run's labels are not the dataset's."""
    if run.class_ids != data.class_ids:
        raise UserError(
            f"{run.folder} was trained on other classes ({len(run.class_ids)}) than {data.root} has "
            f"({len(data.class_ids)}); give the dataset of its training by --data-dir"
        )


def listed(split: Split, names: Path) -> Split:
    """The pictures of a split that a text file names.

    Args:
        split: of a dataset.
        names: the file; a picture's file name a line, without folders.

    Raises:
        UserError: the file names none, or one that the split does not have; or names do not tell pictures apart.
    """
    place_of_name = {filename.rpartition("/")[2]: place for place, filename in enumerate(split.filenames)}
    if len(place_of_name) < len(split.filenames):
        raise UserError(f"{shown(names)} cannot tell validation pictures of one name in several folders apart")
    wanted = sorted({line.strip() for line in names.read_text(encoding="utf-8", errors="replace").splitlines()} - {""})
    if not wanted:
        raise UserError(f"{shown(names)} is empty; it must name pictures, one a line")
    if unknown := [name for name in wanted if name not in place_of_name]:
        raise UserError(f"{shown(names)}: the dataset has no validation picture {shown(unknown[0])}; take it out")
    places = sorted(place_of_name[name] for name in wanted)
    filenames = [split.filenames[place] for place in places]
    return replace(split, images=split.images[places], labels=split.labels[places], filenames=filenames)


def evaluate(folder: Path, data_dir: str | None, pictures: Path | None = None) -> dict:
    """The row of one run: its name, its number of weights, its scores and its training time in seconds.

    Args:
        folder: the run's folder.
        data_dir: the dataset's folder; None: the one that the run was trained on.
        pictures: a file that names the validation pictures to evaluate on; None: all.
    """
    run = load_run(folder)
    data = open_dataset(data_dir or run.config.data_dir, skip_bad_images=run.config.skip_bad_images)
    check_same_classes(run, data)
    split = listed(data.val, pictures) if pictures else data.val
    row = {"run": str(folder), "model": run.config.model_name, "weights": run.model.count_params()}
    row |= asdict(scores(run.model, split, run.config))
    return row | {"pictures": len(split.labels), "seconds": read_seconds(folder)}


def table(rows: list[dict]) -> str:
    """The rows for people: per cent (ECE: expected calibration error), and seconds of training."""
    lines = [f"{'':<32}{'':>12}  {'centre crop':>23}  {'10 crops':>15}{'':>10}"]
    heads = (("top-1", 9), ("top-5", 8), ("ECE", 8), ("top-1", 9), ("top-5", 8), ("seconds", 10))
    lines.append(f"{'model':<32}{'weights':>12}" + "".join(f"{head:>{width}}" for head, width in heads))
    for row in rows:
        names = ("center_top_1", "center_top_5", "center_ece", "ten_crops_top_1", "ten_crops_top_5")
        cells = [f"{100 * row[name]:.2f}" for name in names] + [f"{row['seconds']:,.0f}"]
        line = "".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, heads, strict=True))
        lines.append(f"{row['run'].removeprefix('runs/'):<32}{row['weights']:>12,}{line}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Arguments:
    """Evaluates runs on every validation picture, or on those that a file names."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The runs' folders, for example runs/vgg_16/default."""
    data_dir: str | None = None
    """The dataset's folder; by default the one that the run was trained on."""
    pictures: Path | None = None
    """A text file with the names of the validation pictures to evaluate on, one a line; by default all of them."""
    json: bool = False
    """Print JSON, a line a run, with shares from 0 to 1, instead of a table in per cent."""


@command
def main() -> None:
    """Runs the command."""
    arguments = command_line(Arguments)
    if not arguments.runs:
        raise UserError("which run? For example: python evaluate.py runs/vgg_16/default")
    rows = [evaluate(folder, arguments.data_dir, arguments.pictures) for folder in arguments.runs]
    print("\n".join(json.dumps(row) for row in rows) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
