"""What train.py prints."""

import math
import sys

import keras
from tqdm import tqdm

from tiny_imagenet.checkpoint import TrainState
from tiny_imagenet.cli import shell_command
from tiny_imagenet.config import TrainConfig, differences
from tiny_imagenet.dataset import Dataset
from tiny_imagenet.devices import device_count
from tiny_imagenet.recipes import BASE, RECIPES


def warn_of_wrong_labels(train_acc: float, val_acc: float, data: Dataset) -> None:
    """Warns if the validation labels cannot belong to the images: accuracy at chance while training learns.

    At chance: less than three standard deviations above 1/C, if there are images enough for that to be below 2/C.
    Learning: at least 2/C, and five points above chance.
    """
    chance = 1 / len(data.class_ids)
    limit = chance + 3 * math.sqrt(chance * (1 - chance) / len(data.val.labels))
    if val_acc < limit < 2 * chance and train_acc > max(2 * chance, chance + 0.05):
        message = f"top-1 is {train_acc:.1%} in training but {val_acc:.1%} in validation, no better than chance"
        tqdm.write(f"warning: {message}: check that the labels in {data.root / 'val'} are right", file=sys.stderr)


def print_run(config: TrainConfig, model: keras.Model, data: Dataset, total_steps: int, state: TrainState) -> None:
    """Says what is about to be trained, and which settings are not the defaults."""
    print(
        f"{config.run_dir}: {model.count_params():,} parameters, {len(data.class_ids)} classes, "
        f"{len(data.train.labels):,} training and {len(data.val.labels):,} validation images, "
        f"{total_steps:,} steps of {config.batch_size} images"
    )
    if device_count() > 1:
        print(f"on {device_count()} devices, {config.batch_size // device_count()} images each")
    changed = [
        f"{name} {ours} (default {'none' if theirs in ('', ()) else theirs})"
        for name, (ours, theirs) in differences(config, BASE).items()
    ]
    print(f"settings that differ from the defaults: {', '.join(changed) or 'none'}")
    if state.step:
        print(f"resumed at step {state.step:,}")


def print_evaluation(step: int, training: dict[str, float], validation: dict[str, float], learning_rate: float) -> None:
    """One line per evaluation; the training metrics are those of the last point of the curves."""
    tqdm.write(
        f"step {step:,}: training loss {training['data_loss']:.3f}, top-1 {training['top_1']:.2%}; "
        f"validation loss {validation['data_loss']:.3f}, top-1 {validation['top_1']:.2%}, "
        f"top-5 {validation['top_5']:.2%}; learning rate {learning_rate:.3g}; "
        f"{training['images_per_second']:,.0f} images/s",
        file=sys.stdout,
    )


def print_stop(config: TrainConfig, state: TrainState) -> None:
    """How a run that was stopped can be continued."""
    print(f"stopped at step {state.step:,}, checkpoint saved; to continue: {resume_command(config)}")


def print_end(config: TrainConfig, state: TrainState) -> None:
    """Why the run has ended, and what it reached."""
    reason = "no progress after the fourth cut of the learning rate" if state.control.done() else "all epochs done"
    last = state.control.val_accs[-1]
    kept, top_1 = ("best", state.best_val_acc) if config.schedule == "plateau" else ("last", last)
    print(
        f"finished at step {state.step:,} ({reason}) after {state.seconds:,.0f} s: "
        f"{kept} validation top-1 {top_1:.2%}, in {config.run_dir / config.model_file}"
    )


def resume_command(config: TrainConfig) -> str:
    """The command that continues a run from its newest checkpoint, with its own settings."""
    words = ["--model-name", config.model_name, "--config-name", config.config_name]
    words += ["--runs-dir", config.runs_dir] if config.runs_dir != BASE.runs_dir else []
    return shell_command("python", "train.py", *words, "--resume")


def describe_recipes() -> str:
    """The beginning of --help."""
    lines = []
    for name, recipe in RECIPES.items():
        changes = ", ".join(f"{key} {value}" for key, (value, _) in differences(recipe, BASE).items())
        lines.append(f"  {name}: {changes or 'the settings of 2017'}")
    return "Trains a model.\n\nRecipes (--recipe NAME):\n" + "\n".join(lines)
