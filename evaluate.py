"""Evaluates trained models on all validation images: `python evaluate.py RUN...`.

Top-1 and top-5 accuracy, single-crop and 10-crop, and the expected calibration error, single-crop.
"""

import tiny_imagenet  # noqa: F401  first: it checks the environment and loads TensorFlow quietly

# isort: split
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import keras
import numpy as np
import tyro
from keras import ops

from input_pipe import CENTER, as_tensor, ten_crops
from metrics import expected_calibration_error, top_k_accuracy
from tiny_imagenet.cli import command
from tiny_imagenet.config import TrainConfig
from tiny_imagenet.dataset import Dataset, Split, open_run_dataset
from tiny_imagenet.errors import UserError, printable
from tiny_imagenet.model_io import Run, check_finite, load_run
from tiny_imagenet.run_dir import read_config, read_seconds
from tiny_imagenet.terminal import progress_bar

BATCH_SIZE = 100  # images; ten times as many crops


@dataclass(frozen=True)
class Scores:
    """Accuracies and the expected calibration error (single-crop), all 0 to 1."""

    single_crop_top_1: float
    single_crop_top_5: float
    ten_crop_top_1: float
    ten_crop_top_5: float
    calibration_error: float


def compute_scores(model: keras.Model, split: Split, config: TrainConfig) -> Scores:
    """Evaluates a model on every image of a split, each counted once.

    Args:
        model: from (B, S, S, 3) uint8 to logits (B, C).
        split: images (N, 64, 64, 3) uint8 and labels (N,) int32.
        config: of the model's run; it decides how images are cropped or scaled.
    """
    images, hits, confidences = as_tensor(split.images), [], []
    with progress_bar(len(split.labels), "evaluating") as bar:
        for start in range(0, len(split.labels), BATCH_SIZE):
            batch, labels = images[start : start + BATCH_SIZE], split.labels[start : start + BATCH_SIZE]
            crops = log_probabilities(model, ten_crops(batch, config))  # (10, B, C)
            both = crops[CENTER], crops.sum(axis=0)
            four = ops.stack([top_k_accuracy(labels, log_p, k) for log_p in both for k in (1, 5)])
            hits.append(ops.convert_to_numpy(four).astype(int))  # (4, B)
            confidences.append(np.exp(crops[CENTER].max(axis=-1)))  # (B,)
            bar.update(len(labels))
    hits, confidences = np.concatenate(hits, axis=1), np.concatenate(confidences)
    accuracies = (int(total) / len(split.labels) for total in hits.sum(axis=1))
    return Scores(*accuracies, expected_calibration_error(confidences, hits[0]))


def log_probabilities(model: keras.Model, crops) -> np.ndarray:
    """The log-probabilities of the classes for each crop.

    Args:
        model: from (B, S, S, 3) uint8 to logits (B, C).
        crops: (K, B, S, S, 3) uint8.

    Returns:
        (K, B, C) float32.
    """
    count, batch_size, *shape = crops.shape
    logits = model.predict_on_batch(np.reshape(crops, (count * batch_size, *shape)))
    check_finite(f"the output of {model.name}", ops.convert_to_numpy(logits))
    log_p = ops.convert_to_numpy(ops.log_softmax(ops.cast(logits, "float32")))
    return log_p.reshape(count, batch_size, -1)


def match_classes(run: Run, data: Dataset) -> Dataset:
    """The dataset with its classes and validation labels in the order of the run's; UserError for other classes."""
    if sorted(run.class_ids) != sorted(data.class_ids):
        raise UserError(
            f"{run.folder} was trained on {len(run.class_ids)} classes, and {data.root} has {len(data.class_ids)} that "
            "are not all the same; name the dataset of its training with --data-dir or, in a notebook, DATA_DIR"
        )
    labels = np.array([run.class_ids.index(class_id) for class_id in data.class_ids], np.int32)[data.val.labels]
    return replace(data, class_ids=run.class_ids, class_names=run.class_names, val=replace(data.val, labels=labels))


def find_runs(data: Dataset, runs_dir: str | Path) -> Iterator[Run]:
    """Opens, one by one, the runs in RUNS_DIR/MODEL_NAME/CONFIG_NAME that were trained on exactly this dataset.

    Runs that cannot be opened are skipped with a message.
    """
    for path in sorted(Path(runs_dir).glob("*/*/config.json")):
        try:
            if read_config(path.parent)[1].data.fingerprint == data.fingerprint:
                yield load_run(path.parent)
        except UserError as error:
            print(f"skipped: {error}")


def select_images(split: Split, list_file: Path) -> Split:
    """The images of a split whose names are listed in a text file, one per line, with or without their folders.

    Raises:
        UserError: the file is empty, or lists a name that the split does not have or that is not unique in it.
    """
    index = {filename.rpartition("/")[2]: i for i, filename in enumerate(split.filenames)}
    if len(index) < len(split.filenames):
        raise UserError(f"{list_file}: several validation images have the same name in different folders")
    lines = list_file.read_text(encoding="utf-8", errors="replace").splitlines()
    names = sorted({line.strip().rpartition("/")[2] for line in lines} - {""})
    if not names:
        raise UserError(f"{list_file} is empty; list the names of images, one per line")
    if unknown := [name for name in names if name not in index]:
        raise UserError(f"{list_file}: there is no validation image {unknown[0]}; remove this line")
    chosen = sorted(index[name] for name in names)
    return split.select(chosen)


def evaluate(
    folder: Path, data_dir: str | None = None, images: Path | None = None, packed_dir: str | None = None
) -> dict:
    """Evaluates one run.

    Args:
        folder: the run's folder.
        data_dir: the dataset's folder; None: that of the run's training.
        images: a text file that lists the validation images to use; None: all.
        packed_dir: the folder for the packed images; None: packed/ in `data_dir`, or that of the run's training.

    Returns:
        run, model, parameters, the fields of `Scores`, images (how many) and seconds (of training).
    """
    run = load_run(folder)
    data = match_classes(run, open_run_dataset(run.config, data_dir or "", packed_dir or ""))
    split = select_images(data.val, images) if images else data.val
    row = {"run": str(folder), "model": run.config.model_name, "parameters": run.model.count_params()}
    row |= asdict(compute_scores(run.model, split, run.config))
    return row | {"images": len(split.labels), "seconds": read_seconds(folder)}


def format_table(rows: list[dict]) -> str:
    """Formats rows of `evaluate` as a table, with accuracies and calibration errors (ECE) in %."""
    columns = {"single_crop_top_1": "top-1", "single_crop_top_5": "top-5", "calibration_error": "ECE"}
    columns |= {"ten_crop_top_1": "top-1", "ten_crop_top_5": "top-5"}
    lines = [f"{'in %':<44}{'single-crop':>27}{'10-crop':>18}"]
    lines.append(f"{'run':<32}{'parameters':>12}{''.join(f'{head:>9}' for head in columns.values())}{'seconds':>10}")
    for row in rows:
        name, cells = (
            printable(row["run"].removeprefix("runs/")),
            "".join(f"{100 * row[column]:>9.2f}" for column in columns),
        )
        lines.append(f"{name:<32}{row['parameters']:>12,}{cells}{row['seconds']:>10,.0f}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Arguments:
    """Evaluates runs on all validation images, or on those that a file lists."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The runs' folders, for example runs/vgg_16/default."""
    data_dir: str | None = None
    """The dataset's folder. None: that of the run's training."""
    packed_dir: str | None = None
    """The folder for the packed images. None: packed/ in --data-dir, or that of the run's training."""
    images: Path | None = None
    """A text file with the names of the validation images to use, one per line. None: all."""
    json: bool = False
    """Print one line of JSON per run, with accuracies from 0 to 1, instead of a table in %."""


@command
def main() -> None:
    """Runs the command."""
    arguments = tyro.cli(Arguments)
    if not arguments.runs:
        raise UserError("no run given; for example: python evaluate.py runs/vgg_16/default")
    rows = [evaluate(folder, arguments.data_dir, arguments.images, arguments.packed_dir) for folder in arguments.runs]
    print("\n".join(json.dumps(row) for row in rows) if arguments.json else format_table(rows))


if __name__ == "__main__":
    main()
