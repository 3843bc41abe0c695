"""Checkpoints: saving everything that training needs to continue, without stopping it, and restoring it exactly.

checkpoints/step_00002000/
    arrays.npz           every variable: weights, seeds of dropout, slots of the optimizer, running metrics
    state.json           the `TrainState`, and how long the log files were
    best.keras           the run's model as it was then (or last.keras)
"""

import json
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tiny_imagenet.config import TrainConfig
from tiny_imagenet.devices import is_main_process
from tiny_imagenet.errors import UserError
from tiny_imagenet.file_utils import disk_errors, fsync, remove, write_atomically
from tiny_imagenet.readers import check_archive, convert, read_json
from tiny_imagenet.run_dir import HAD_CHECKPOINTS, find_checkpoint, list_checkpoints, read_seconds
from tiny_imagenet.schedules import TrainControl
from tiny_imagenet.summaries import cut_logs, log_files


@dataclass
class TrainState:
    """How far a run is; with the model's variables, everything that resuming needs."""

    control: TrainControl
    step: int = 0
    """Steps done."""
    best_val_acc: float = -1.0
    """The highest validation accuracy so far; -1 before the first evaluation."""
    seconds: float = 0.0
    """How long the run has trained, over all resumes."""

    def done(self, total_steps: int) -> bool:
        """Whether training has ended."""
        return self.step >= total_steps or self.control.done()

    def count_step(self) -> int:
        """Counts one more step; returns how many are done."""
        self.step += 1
        return self.step

    def record_seconds(self, seconds: float) -> None:
        """Notes how long the run has trained."""
        self.seconds = seconds

    def record_evaluation(self, val_acc: float, cut_on_plateau: bool) -> None:
        """Notes a validation accuracy, 0 to 1, and cuts the learning rate on a plateau if asked to."""
        self.best_val_acc = max(self.best_val_acc, val_acc)
        self.control.add_val_acc(val_acc)
        if cut_on_plateau:
            self.control.update_lr()


def variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Everything that a step reads and changes, by name: weights, seeds, slots of the optimizer, running metrics."""
    every = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return {f"{number:04d} {variable.path}": variable for number, variable in enumerate(every)}


class CheckpointManager:
    """Saves and restores the checkpoints of a run; VGG-16's are a gigabyte, which takes a disk seconds to write.

    Variables are copied at once, then written by a thread, one checkpoint at a time. Only the main process writes.

    Args:
        config: the run's; `keep_checkpoints` are kept, newest first.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config, self._folder = config, config.run_dir
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._saving: Future | None = None

    def busy(self) -> bool:
        """Whether the previous checkpoint is still being written."""
        return self._saving is not None and not self._saving.done()

    def save(self, model: keras.Model, state: TrainState) -> None:
        """Starts saving checkpoints/step_<step>, once the previous checkpoint is on disk.

        Raises:
            FloatingPointError: a variable is not finite; the message is its name. Nothing is saved.
            UserError: the previous checkpoint could not be written; older ones are kept.
        """
        self.wait()
        path = self._folder / "checkpoints" / f"step_{state.step:08d}"
        if path.exists() or not is_main_process():  # the state is a function of the step
            return
        arrays = {name: np.array(keras.ops.convert_to_numpy(value)) for name, value in variables(model).items()}
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise FloatingPointError(name.partition(" ")[2])
        log_sizes = {str(file.relative_to(self._folder)): file.stat().st_size for file in log_files(self._folder)}
        self._saving = self._thread.submit(self._write, path, arrays, asdict(state) | {"log_sizes": log_sizes})

    def _write(self, path: Path, arrays: dict[str, np.ndarray], values: dict[str, Any]) -> None:
        kept_model = self._folder / self._config.model_file

        def write(temporary: Path) -> None:
            for file in log_files(self._folder):
                fsync(file)  # the log sizes must hold after a power failure, too
            temporary.mkdir()
            if kept_model.exists():
                try:
                    (temporary / kept_model.name).hardlink_to(kept_model)  # costs nothing
                except OSError:  # a disk without hard links
                    shutil.copyfile(kept_model, temporary / kept_model.name)
            np.savez(temporary / "arrays.npz", **arrays)
            (temporary / "state.json").write_text(json.dumps(values))

        write_atomically(path, write)
        with disk_errors(path.parent):
            (path.parent / HAD_CHECKPOINTS).touch()
            for old in list_checkpoints(self._folder)[: -self._config.keep_checkpoints]:
                _discard(old)

    def wait(self) -> None:
        """Returns when the last checkpoint is on disk; raises UserError if it could not be written."""
        if self._saving:
            self._saving.result()

    def close(self) -> None:
        """Ends the thread, after the last checkpoint is written."""
        self._thread.shutdown()

    def restore(self, model: keras.Model, name: str | None, total_steps: int) -> TrainState:
        """Sets the model and the run's folder back to a checkpoint.

        Args:
            model: compiled, with its optimizer and metrics built.
            name: of the checkpoint; None: the newest, or the start of the run if it has none.
            total_steps: of the whole run.

        Raises:
            UserError: the checkpoint does not exist, is damaged, or does not fit the model or the settings.
        """
        path = find_checkpoint(self._folder, name)
        state, log_sizes = TrainState(TrainControl(self._config.lr)), {}
        if path:
            arrays, state, log_sizes = read_checkpoint(path)
            check_length(path, state, self._config, total_steps)
            restore_variables(model, arrays, path)
        if is_main_process():
            with suppress(UserError):  # a damaged log: the checkpoint's own time counts
                state.record_seconds(max(state.seconds, read_seconds(self._folder)))
            self._rewind(path, log_sizes, evaluated=state.best_val_acc >= 0)
        return state

    def _rewind(self, checkpoint: Path | None, log_sizes: dict[str, int], evaluated: bool) -> None:
        """Sets the folder back to what it was at the checkpoint, so that no step is logged twice."""
        if checkpoint:  # first: after a kill in between, this checkpoint is the newest, and its log sizes count
            for other in list_checkpoints(self._folder):
                if other.name > checkpoint.name:
                    _discard(other)
        cut_logs(self._folder, log_sizes)
        kept_model = self._folder / self._config.model_file
        if not evaluated:
            kept_model.unlink(missing_ok=True)
        elif checkpoint and (then := checkpoint / kept_model.name).exists():
            write_atomically(kept_model, lambda temporary: shutil.copyfile(then, temporary))


def _discard(checkpoint: Path) -> None:
    """Renames before it removes, so that half a checkpoint is never taken for a whole one."""
    remove(checkpoint.rename(checkpoint.with_name(f".writing-{checkpoint.name}")))


def _alternative_to(path: Path) -> str:
    older = [other.name for other in list_checkpoints(path.parent.parent) if other.name < path.name]
    return f"try --resume-from {older[-1]}" if older else "there is no older one; start the run again"


def read_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], TrainState, dict[str, int]]:
    """The arrays, the state and the log sizes of a checkpoint; raises UserError if it is damaged."""
    try:
        check_archive(path / "arrays.npz")
        with np.load(path / "arrays.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}  # the zip's checksums are verified here
        return arrays, *parse_state(read_json(path / "state.json"), path.name)
    except Exception as error:  # a damaged zip, header or text raises many kinds
        raise UserError(f"{path} is damaged ({str(error) or repr(error)}); {_alternative_to(path)}") from None


def parse_state(values: dict[str, Any], name: str) -> tuple[TrainState, dict[str, int]]:
    """What the state.json of checkpoint `name` says; raises ValueError if that is not all of a state."""
    state = convert(TrainState, values, "state.json")
    log_sizes = convert(dict[str, int], values.get("log_sizes"), "log_sizes")
    negative = min(log_sizes.values(), default=0) < 0
    if negative or name != f"step_{state.step:08d}" or values != asdict(state) | {"log_sizes": log_sizes}:
        raise ValueError("state.json is not as it was written")
    return state, log_sizes


def check_length(path: Path, state: TrainState, config: TrainConfig, total_steps: int) -> None:
    """Raises UserError if num_epochs has changed so that a run of this length would not have been evaluated as here."""
    evaluations, rest = divmod(state.step, config.eval_interval)
    evaluations += state.step == total_steps and rest > 0  # at the end, after a shorter interval
    if state.step > total_steps or len(state.control.val_accs) != evaluations:
        what = f"{path} is not of a run of {total_steps:,} steps (num_epochs {config.num_epochs})"
        raise UserError(f"{what}; use the --num-epochs it was saved with, or an older checkpoint with --resume-from")


def restore_variables(model: keras.Model, arrays: dict[str, np.ndarray], path: Path) -> None:
    """Assigns a checkpoint's arrays to the model, its optimizer and its metrics.

    Raises:
        UserError: the checkpoint is of another model or another number of classes.
    """
    targets = {_stable(name): variable for name, variable in variables(model).items()}
    saved = {_stable(name): array for name, array in arrays.items()}
    for name in sorted(targets.keys() | saved.keys()):
        here, there = (tuple(part[name].shape) if name in part else None for part in (targets, saved))
        if here != there:
            what = f"{path} is of another model: {name!r} has shape {there}, not {here}"
            raise UserError(f"{what}; {_alternative_to(path)}")
    for name, variable in targets.items():
        variable.assign(saved[name])


def _stable(name: str) -> str:
    """The name without the counters that Keras adds when a process builds a second model."""
    return re.sub(r"_\d+(?=[/_]|$)", "", name)
