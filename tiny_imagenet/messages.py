"""What train.py prints, and log.txt keeps."""

import math
import os
import sys
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import keras
from tqdm import tqdm

from tiny_imagenet.checkpoint import TrainState
from tiny_imagenet.cli import shell_command
from tiny_imagenet.config import TrainConfig, differences
from tiny_imagenet.dataset import Dataset
from tiny_imagenet.devices import describe_hardware, gpu_names, is_main_process
from tiny_imagenet.recipes import BASE, RECIPES


class RunLog(AbstractContextManager):
    """Prints how a run proceeds: a bar on a terminal, else a line per point of the curves; log.txt keeps all lines.

    A resumed run adds its lines to log.txt. Nothing is cut, so that it shows every start and stop.

    Args:
        config: the run's.
        total_steps: of the whole run.
        state: how far it is.
    """

    def __init__(self, config: TrainConfig, total_steps: int, state: TrainState) -> None:
        self._config, self._total_steps = config, total_steps
        self._path = config.run_dir / "log.txt" if is_main_process() else Path(os.devnull)
        self._first_step, self._start = state.step, time.perf_counter()
        options = {"disable": None if is_main_process() else True}  # None: hidden unless this is a terminal
        options |= {"unit": "step", "dynamic_ncols": True, "smoothing": 0}  # 0: the time left includes evaluations
        self._bar = tqdm(total=total_steps, initial=state.step, **options)
        self._bar_is_seen = sys.stdout.isatty() and sys.stderr.isatty()

    def __exit__(self, _, error: BaseException | None, __) -> None:
        """Ends the bar; notes in log.txt what ended the run."""
        self._bar.close()
        if isinstance(error, Exception):
            self._keep(f"error: {error}")

    def print(self, line: str, stream=None) -> None:
        """Keeps a line and prints it above the bar, to standard output unless a stream is given."""
        self._keep(line)
        tqdm.write(line, stream or sys.stdout)

    def _keep(self, line: str) -> None:
        with suppress(OSError), self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line + "\n")

    def update_bar(self, step: int, metrics: dict[str, float]) -> None:
        """Moves the bar by one step; `metrics` is empty while they are not known."""
        if metrics:
            text = f"{self._epoch(step)}, loss {metrics['data_loss']:.3f}, top-1 {metrics['top_1']:.1%}"
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()

    def _epoch(self, step: int) -> str:
        return f"epoch {step / self._total_steps * self._config.num_epochs:.1f} of {self._config.num_epochs}"

    def print_run(self, model: keras.Model, data: Dataset, state: TrainState) -> None:
        """Says what is about to be trained, on which device, and which settings are not the defaults."""
        config = self._config
        self.print(
            f"{config.run_dir}: {model.count_params():,} parameters, {len(data.class_ids)} classes, "
            f"{len(data.train.labels):,} training and {len(data.val.labels):,} validation images, "
            f"{self._total_steps:,} steps of {config.batch_size} images"
        )
        self.print(f"on the {'GPU' if gpu_names() else 'CPU'}: {describe_hardware()}; {config.precision}")
        changed = [
            f"{name} {ours} (default {'none' if theirs in ('', ()) else theirs})"
            for name, (ours, theirs) in differences(config, BASE).items()
        ]
        self.print(f"settings that differ from the defaults: {', '.join(changed) or 'none'}")
        if state.step:
            self.print(f"resumed at step {state.step:,}")

    def print_point(self, step: int, training: dict[str, float]) -> None:
        """One line per point of the training curves; on a terminal, the bar shows the same."""
        left = (time.perf_counter() - self._start) / (step - self._first_step) * (self._total_steps - step)
        at_most = "at most " * (self._config.schedule == "plateau")
        line = f"{_training_text(step, training)}; {training['images_per_second']:,.0f} images/s; "
        line += f"{self._epoch(step)}, {at_most}{tqdm.format_interval(left)} left"
        (self._keep if self._bar_is_seen else self.print)(line)

    def print_evaluation(
        self, step: int, training: dict[str, float], validation: dict[str, float], learning_rate: float
    ) -> None:
        """One line per evaluation; the training metrics are those since the last point of the curves."""
        self.print(
            f"{_training_text(step, training)}; validation loss {validation['data_loss']:.3f}, "
            f"top-1 {validation['top_1']:.2%}, top-5 {validation['top_5']:.2%}; learning rate {learning_rate:.3g}; "
            f"{training['images_per_second']:,.0f} images/s"
        )

    def warn_of_wrong_labels(self, train_acc: float, val_acc: float, data: Dataset) -> None:
        """Warns if the validation labels cannot belong to the images: accuracy at chance while training learns.

        At chance: less than three standard deviations above 1/C, if there are images enough for that to be below 2/C.
        Learning: at least 2/C, and five points above chance.
        """
        chance = 1 / len(data.class_ids)
        limit = chance + 3 * math.sqrt(chance * (1 - chance) / len(data.val.labels))
        if val_acc < limit < 2 * chance and train_acc > max(2 * chance, chance + 0.05):
            message = f"top-1 is {train_acc:.1%} in training but {val_acc:.1%} in validation, no better than chance"
            self.print(f"warning: {message}: check that the labels in {data.root / 'val'} are right", sys.stderr)

    def print_stop(self, state: TrainState) -> None:
        """How a run that was stopped can be continued."""
        config = self._config
        words = ["--model-name", config.model_name, "--config-name", config.config_name]
        words += ["--runs-dir", config.runs_dir] if config.runs_dir != BASE.runs_dir else []
        command = shell_command("python", "train.py", *words, "--resume")
        self.print(f"stopped at step {state.step:,}, checkpoint saved; to continue: {command}")

    def print_end(self, state: TrainState) -> None:
        """Why the run has ended, and what it reached."""
        config, last = self._config, state.control.val_accs[-1]
        reason = "no progress after the fourth cut of the learning rate" if state.control.done() else "all epochs done"
        kept, top_1 = ("best", state.best_val_acc) if config.schedule == "plateau" else ("last", last)
        self.print(
            f"finished at step {state.step:,} ({reason}) after {state.seconds:,.0f} s: "
            f"{kept} validation top-1 {top_1:.2%}, in {config.run_dir / config.model_file}"
        )


def _training_text(step: int, metrics: dict[str, float]) -> str:
    return f"step {step:,}: training loss {metrics['data_loss']:.3f}, top-1 {metrics['top_1']:.2%}"


def describe_recipes() -> str:
    """The beginning of --help."""
    lines = []
    for name, recipe in RECIPES.items():
        changes = ", ".join(f"{key} {value}" for key, (value, _) in differences(recipe, BASE).items())
        lines.append(f"  {name}: {changes or 'the settings of 2017'}")
    return "Trains a model.\n\nRecipes (--recipe NAME):\n" + "\n".join(lines)
