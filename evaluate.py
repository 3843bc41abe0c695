"""Top-1 and top-5 accuracy of the models that runs kept, by the centre crop and by 10 crops, over all of validation."""

from startup import UserError, command, command_line, keras

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from keras import ops
from tqdm import tqdm

from checkpoints import Run, load_run, read_seconds
from config import TrainConfig
from dataset import Dataset, Split, open_dataset
from input_pipe import CENTER, as_tensor, ten_crops
from metrics import top_k_accuracy

BATCH_SIZE = 100  # pictures; ten times as many crops


@dataclass(frozen=True)
class Scores:
    """Shares of the validation pictures, 0 to 1."""

    center_top_1: float
    center_top_5: float
    ten_crops_top_1: float
    ten_crops_top_5: float


def scores(model: keras.Model, split: Split, config: TrainConfig) -> Scores:
    """Evaluates on every picture of the split, each counted once.

    Args:
        model: from (B, S, S, 3) uint8 to logits (B, C).
        split: pictures (N, 64, 64, 3) uint8 and labels (N,) int32.
        config: of the model's run; says how pictures become crops.

    Returns:
        The accuracies.
    """
    pictures, hits = as_tensor(split.images), []
    for start in tqdm(range(0, len(split.labels), BATCH_SIZE), desc="evaluating", leave=False, disable=None):
        batch, labels = pictures[start : start + BATCH_SIZE], split.labels[start : start + BATCH_SIZE]
        crops = log_probabilities(model, ten_crops(batch, config))  # (10, B, C)
        both = crops[CENTER], crops.sum(axis=0)
        hits.append([top_k_accuracy(labels, log_p, k) for log_p in both for k in (1, 5)])  # 4 of (B,)
    totals = sum(ops.convert_to_numpy(ops.stack(four)).astype(int).sum(axis=1) for four in hits)
    return Scores(*(int(total) / len(split.labels) for total in totals))


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


def evaluate(folder: Path, data_dir: str | None) -> dict:
    """The row of one run: its name, its number of weights, its scores and its training time in seconds."""
    run = load_run(folder)
    data = open_dataset(data_dir or run.config.data_dir, skip_bad_images=run.config.skip_bad_images)
    check_same_classes(run, data)
    row = {"run": str(folder), "model": run.config.model_name, "weights": run.model.count_params()}
    row |= asdict(scores(run.model, data.val, run.config))
    return row | {"pictures": len(data.val.labels), "seconds": read_seconds(folder)}


def table(rows: list[dict]) -> str:
    """The rows for people: per cent, and seconds of training."""
    lines = [f"{'':<32}{'':>12}  {'centre crop':>15}  {'10 crops':>15}{'':>10}"]
    lines.append(f"{'model':<32}{'weights':>12}{'top-1':>9}{'top-5':>8}{'top-1':>9}{'top-5':>8}{'seconds':>10}")
    for row in rows:
        percents = [f"{100 * row[name]:.2f}" for name in Scores.__dataclass_fields__]
        seconds = f"{row['seconds']:,.0f}"
        name = row["run"].removeprefix("runs/")
        lines.append(
            f"{name:<32}{row['weights']:>12,}{percents[0]:>9}{percents[1]:>8}{percents[2]:>9}{percents[3]:>8}{seconds:>10}"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class Arguments:
    """Evaluates runs on every validation picture."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The runs' folders, for example runs/vgg_16/default."""
    data_dir: str | None = None
    """The dataset's folder; by default the one that the run was trained on."""
    json: bool = False
    """Print JSON, a line a run, with shares from 0 to 1, instead of a table in per cent."""


@command
def main() -> None:
    """Runs the command."""
    arguments = command_line(Arguments)
    if not arguments.runs:
        raise UserError("which run? For example: python evaluate.py runs/vgg_16/default")
    rows = [evaluate(folder, arguments.data_dir) for folder in arguments.runs]
    print("\n".join(json.dumps(row) for row in rows) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
