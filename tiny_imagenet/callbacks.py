"""What happens after a training step: points of the curves, checkpoints, stopping on a signal."""

import math
import os
import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
from keras import ops

from tiny_imagenet.checkpoint import CheckpointManager, TrainState
from tiny_imagenet.cli import interrupted
from tiny_imagenet.config import TrainConfig
from tiny_imagenet.devices import is_main_process, reached_stop, shard
from tiny_imagenet.errors import UserError
from tiny_imagenet.messages import RunLog
from tiny_imagenet.recipes import BASE
from tiny_imagenet.run_dir import find_checkpoint
from tiny_imagenet.schedules import image_size_end
from tiny_imagenet.summaries import HistogramSource, Summaries, l2_penalties

METRICS = ("data_loss", "top_1", "top_5")  # what is logged of Keras's metrics


class StopSignals:
    """Turns Ctrl-C and signals into a request to stop after the current step; a later Ctrl-C stops at once.

    A signal that is ignored, as by nohup, stays so. Of several processes, JAX passes SIGTERM on to all, so that they
    stop after the same step; other signals become SIGTERM.
    """

    # Ctrl-C; kill; a closed terminal; what clusters send before a job's time is over
    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.received: int | None = None
        """The signal's number."""

    def __enter__(self) -> "StopSignals":
        """Installs the handlers."""
        if interrupted():  # during the start, by a Ctrl-C whose exception a library swallowed
            raise KeyboardInterrupt
        left_alone = signal.SIGTERM if shard()[1] > 1 else None  # it is JAX's
        numbers = [n for n in self.SIGNALS if n != left_alone and signal.getsignal(n) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        """Restores the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        if shard()[1] > 1:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if self.received is None:
            self.received = number
            message = "stopping after this step or evaluation to save a checkpoint; Ctrl-C: stop at once"
            print(f"\n{message}", file=sys.stderr)
        elif number == signal.SIGINT:  # others come twice by themselves: from a terminal and its shell, from a cluster
            raise KeyboardInterrupt

    def requested(self, step: int) -> bool:
        """Whether training is to stop after this step."""
        if shard()[1] > 1 and reached_stop(step):
            self.received = signal.SIGTERM
        return self.received is not None


class UnreadLogs(keras.callbacks.CallbackList):
    """Passes on the logs of a step without reading them: Keras's list reads them, so that a GPU waits every step."""

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """After each step."""
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)


@contextmanager
def running_metrics(model: keras.Model):
    """Restores the model's metrics after the block, which may compute others, in an evaluation for example."""
    values = [ops.convert_to_numpy(variable) for variable in model.metrics_variables]
    yield
    for variable, value in zip(model.metrics_variables, values, strict=True):
        variable.assign(value)


class StepCallback(keras.callbacks.Callback):
    """Logs and saves between two evaluations.

    `self.model` is touched only when something is due: under JAX, touching it copies the state of the step.

    Args:
        config: the run's.
        total_steps: of the whole run.
        state: how far the run is; it is updated.
        summaries, checkpoints, log: what is written to.
        histograms: the arrays whose distributions are logged.
        stop: whether a signal was received.
        start_time: of the program, by `time.perf_counter`.
    """

    def __init__(
        self,
        config: TrainConfig,
        total_steps: int,
        state: TrainState,
        summaries: Summaries,
        checkpoints: CheckpointManager,
        log: RunLog,
        histograms: HistogramSource,
        stop: StopSignals,
        start_time: float,
    ) -> None:
        super().__init__()
        self._config, self._total_steps, self._state, self._stop = config, total_steps, state, stop
        self._summaries, self._checkpoints, self._log, self._histograms = summaries, checkpoints, log, histograms
        self._start_time = start_time - state.seconds
        self._unread: dict[str, Any] | None = None  # logs of the step before
        self._since = 0, 0.0  # the step and the time from which speed is measured
        self.training: dict[str, float] = {}
        """At an evaluation, the training metrics since the last point of the curves."""

    def seconds(self) -> float:
        """How long the run has trained, over all resumes."""
        return time.perf_counter() - self._start_time

    def interval_end(self) -> int:
        """The step of the next evaluation or, if sooner, of the next change of image size or the end."""
        step, interval = self._state.step, self._config.eval_interval
        return min((step // interval + 1) * interval, image_size_end(self._config, step, self._total_steps))

    def evaluation_due(self) -> bool:
        """Whether an evaluation follows this step."""
        step = self._state.step
        return step % self._config.eval_interval == 0 or step == self._total_steps

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Keeps the metrics, which `fit` is about to reset."""
        self._kept = ExitStack()
        self._kept.enter_context(running_metrics(self.model))

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Restores the metrics."""
        self._kept.close()
        self._since = self._state.step, time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any]) -> None:
        """`logs`: means since the last point, on the device; reading them waits for the step."""
        end = self.interval_end()
        step = self._state.count_step()
        stop = self._stop.requested(step)
        point, save = step % self._config.summary_interval == 0, step % self._config.checkpoint_interval == 0
        due = point or save or stop or step == end
        values = self._read(self._unread, step - 1)  # while the device computes this step
        self._unread = None if due else logs
        values = self._read(logs, step) if due else values
        self._log.update_bar(step, values)
        if due:
            first_step, start = self._since
            speed = (step - first_step) * self._config.batch_size / (time.perf_counter() - start)
            self.training = select_metrics(values) | {"images_per_second": speed}
        if point:
            self._write_point()
        interval = self._config.histogram_interval
        if is_main_process() and (step % interval == 0 if interval else self.evaluation_due()):
            self._summaries.histograms(step, self._histograms.arrays(self.model))
        if stop:
            self.model.stop_training = True
        elif save and not self.evaluation_due() and not self._checkpoints.busy():
            self.save(self.model)  # not if the evaluation saves anyway, nor if the disk is slower than training

    def _read(self, logs: dict[str, Any] | None, step: int) -> dict[str, float]:
        values = {name: float(ops.convert_to_numpy(value)) for name, value in (logs or {}).items()}
        if values:
            self.check_finite("the loss", values["loss"], step)
        return values

    def _write_point(self) -> None:
        """Adds a point to the training curves: means over the last `summary_interval` steps; resets the means."""
        values = self.training | l2_penalties(self.model) | {"learning_rate": self.learning_rate(self.model)}
        self._summaries.scalars("train", self._state.step, values | {"seconds": self.seconds()})
        self._log.print_point(self._state.step, self.training)
        self.model.reset_metrics()
        self._since = self._state.step, time.perf_counter()

    def log_evaluation(self, metrics: dict[str, float]) -> None:
        """Adds a point to the validation curves."""
        self._summaries.scalars("validation", self._state.step, metrics | {"seconds": self.seconds()})

    def learning_rate(self, model: keras.Model) -> float:
        """The learning rate of the next step."""
        return self._state.control.lr if self._config.schedule == "plateau" else float(model.optimizer.learning_rate)

    def save(self, model: keras.Model) -> None:
        """Starts saving a checkpoint."""
        self._state.record_seconds(self.seconds())
        try:
            self._checkpoints.save(model, self._state)
        except FloatingPointError as error:
            self.check_finite(f"the weight {error}", math.nan, self._state.step)

    def check_finite(self, what: str, value: float, step: int) -> None:
        """Raises UserError, which says what is saved and what to try, if a value is NaN or infinite."""
        if math.isfinite(value):
            return
        self._checkpoints.wait()
        saved, config = find_checkpoint(self._config.run_dir, None), self._config
        advice = f"another --config-name and a lower --lr (now {self._state.control.lr:g})"
        advice += f" or --reg (now {config.reg:g})" * (config.reg > BASE.reg)
        advice += f" or --weight-decay (now {config.weight_decay:g})" * (config.weight_decay > 0)
        advice += " or --precision mixed_bfloat16" * (config.precision == "mixed_float16")
        kept = f"checkpoint {saved.name} is kept" if saved else "there is no checkpoint yet"
        raise UserError(f"{what} is {value} at step {step:,}; {kept}; try {advice}")


def select_metrics(logs: dict[str, float]) -> dict[str, float]:
    """What is logged of Keras's logs."""
    return {name: logs[name] for name in METRICS}
