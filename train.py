"""Trains the model that `TrainConfig.model_name` names: `python train.py --help`.

The run's folder, `runs/<model_name>/<config_name>/`, then holds the model, the curves and the checkpoints.
"""

import tiny_imagenet  # first: it checks the environment and loads TensorFlow quietly

# isort: split

import sys
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import keras
import tyro

from input_pipe import eval_batches, train_batches
from losses import loss_by_name
from metrics import accuracy, top_5_accuracy
from tiny_imagenet import devices, schedules
from tiny_imagenet.callbacks import StepCallback, StopSignals, UnreadLogs, running_metrics, select_metrics
from tiny_imagenet.checkpoint import CheckpointManager
from tiny_imagenet.cli import command, ignore_write_errors
from tiny_imagenet.config import TrainConfig
from tiny_imagenet.dataset import Dataset, open_run_dataset
from tiny_imagenet.errors import UserError
from tiny_imagenet.messages import RunLog, describe_recipes
from tiny_imagenet.model_io import find_run, read_initial_weights, save_model
from tiny_imagenet.models import create_model, import_model, initialize_from, resolve_precision, retrace
from tiny_imagenet.optimizers import create_optimizer, ema_weights, set_learning_rate
from tiny_imagenet.recipes import BASE, RECIPES
from tiny_imagenet.run_dir import check_new, read_config, run_folder, write_config
from tiny_imagenet.schedules import FixedLengthSchedule, TrainControl
from tiny_imagenet.summaries import HISTOGRAM_IMAGES, HistogramSource, Summaries
from tiny_imagenet.terminal import progress_bar

__all__ = ["TrainConfig", "TrainControl", "main", "train"]


def train(
    config: TrainConfig,
    resume: bool = False,
    resume_from: str | None = None,
    start_time: float | None = None,
    data_is_named: bool = True,
) -> Path:
    """Trains to the last epoch, or until validation accuracy stops improving.

    Args:
        config: all settings.
        resume: continue the run of that name from its newest checkpoint (from the start if it has none yet).
        resume_from: continue from the checkpoint of this name, for example "step_00002000"; later ones are removed.
        start_time: from when the run's time counts, by `time.perf_counter`; None: now.
        data_is_named: by the user, rather than by a run's config.json: images may be packed in its folder.

    Returns:
        The run's folder.

    Raises:
        UserError: the settings or the data cannot be used, the run exists or cannot be resumed, the loss is not
            finite, or the disk is full.
        SystemExit: Ctrl-C or another signal, after a checkpoint was saved.
    """
    start_time = time.perf_counter() if start_time is None else start_time
    resuming = resume or resume_from is not None
    check_settings(config, resuming)

    # Data: packed once, then a batch is a function of (seed, step)
    named = (config.data_dir, config.packed_dir) if data_is_named else ()
    data = open_run_dataset(config, *named)
    config = schedules.resolve_eval_interval(resolve_precision(config, len(data.class_ids)), data)
    total_steps = schedules.count_steps(config, data)
    images, labels = next(train_batches(data.train, config, shard=devices.shard()).take(1).as_numpy_iterator())

    with ExitStack() as stack:
        # Model: random weights or those of init_from, on all devices
        initial_weights = read_initial_weights(config, resuming)
        stack.enter_context(devices.data_parallel(config.batch_size))
        model = create_model(config, len(data.class_ids))
        initialize_from(model, config, data.class_ids, initial_weights)
        compile_model(model, config, total_steps)
        folder = stack.enter_context(run_folder(config, data, resuming))
        stop = stack.enter_context(StopSignals())
        model.test_on_batch(images, labels)  # builds the metrics, which a checkpoint restores
        model.reset_metrics()

        # Restore: the newest checkpoint, the one that was asked for, or the start
        checkpoints = stack.enter_context(closing(CheckpointManager(config)))
        state = checkpoints.restore(model, resume_from, total_steps)
        write_config(config, data)  # with the settings that a resumed run may change
        log = stack.enter_context(RunLog(config, total_steps, state))
        log.print_run(model, data, state)

        # Loop: train, evaluate, save
        summaries = stack.enter_context(closing(Summaries(folder)))
        histograms = HistogramSource(model, images[:HISTOGRAM_IMAGES])
        if not state.step:
            summaries.start(config, model, images, labels, data.class_names)
        callback = StepCallback(config, total_steps, state, summaries, checkpoints, log, histograms, stop, start_time)
        size, had_ended = None, state.done(total_steps)
        while not state.done(total_steps):
            # Train until the next evaluation, or until the images get larger
            previous_size, size = size, schedules.image_size(config, state.step, total_steps)
            if size != previous_size:
                retrace(model)
            model.fit(
                train_batches(data.train, config, state.step, size, devices.shard()),
                steps_per_epoch=callback.interval_end() - state.step,
                callbacks=UnreadLogs([callback], add_history=True, model=model),  # `fit` returns the history
                shuffle=False,  # train_batches has shuffled them
                verbose=0,
            )

            if callback.evaluation_due():
                # Evaluate; keep the best model or, with a schedule of fixed length, the last
                with ema_weights(model), running_metrics(model):
                    metrics = evaluate(model, data, config, schedules.eval_image_size(config, state.step, total_steps))
                    callback.check_finite("the validation loss", metrics["data_loss"], state.step)
                    if config.schedule != "plateau" or metrics["top_1"] > state.best_val_acc:
                        checkpoints.wait()  # a checkpoint that is being written holds the model before this one
                        save_model(model, config)
                callback.log_evaluation(metrics)

                # Cut the learning rate if there is no progress; save a checkpoint
                state.record_evaluation(metrics["top_1"], cut_on_plateau=config.schedule == "plateau")
                if config.schedule == "plateau":
                    set_learning_rate(model, state.control.lr)
                callback.save(model)
                log.print_evaluation(state.step, callback.training, metrics, callback.learning_rate(model))
                log.warn_of_wrong_labels(callback.training["top_1"], metrics["top_1"], data)

            if stop.received and not state.done(total_steps):
                callback.save(model)
                checkpoints.wait()
                log.print_stop(state)
                sys.exit(128 + stop.received)

        checkpoints.wait()
        if not had_ended:  # resuming a finished run adds no time to it
            state.record_seconds(callback.seconds())
        summaries.end(state.step, state.seconds)
        log.print_end(state)
        if stop.received:  # during the last evaluation: nothing was left to stop, but the exit code says so
            sys.exit(128 + stop.received)
    return folder


# Parts of the above


def check_settings(config: TrainConfig, resuming: bool) -> None:
    """Raises UserError for what can be found wrong before the dataset is downloaded."""
    devices.check_gpu(config.require_gpu)
    import_model(config.model_name)
    if not resuming:
        if config.init_from:
            read_config(find_run(config.init_from))
        check_new(config)


def compile_model(model: keras.Model, config: TrainConfig, total_steps: int) -> None:
    """Gives the model its optimizer, its loss and the metrics that are logged (`data_loss`: the loss without L2)."""
    if config.image_sizes and None not in model.input_shape[1:]:
        raise UserError(f"{config.model_name} needs images of one size; remove image_sizes")
    learning_rate = config.lr if config.schedule == "plateau" else FixedLengthSchedule(config, total_steps)
    loss = loss_by_name(config.loss, config.smoothing)
    metrics = {"data_loss": loss, "top_1": accuracy, "top_5": top_5_accuracy}
    model.compile(
        optimizer=create_optimizer(config, learning_rate, model),
        loss=loss,
        weighted_metrics=[keras.metrics.MeanMetricWrapper(metric, name=name) for name, metric in metrics.items()],
    )
    model.optimizer.build(model.trainable_variables)


def evaluate(model: keras.Model, data: Dataset, config: TrainConfig, size: int) -> dict[str, float]:
    """The metrics over all validation images, scaled or cropped to `size` pixels."""
    batches = eval_batches(data.val, config, size, num_devices=devices.device_count(), shard=devices.shard())
    with progress_bar(len(batches), "evaluating", "batches") as bar:
        count = keras.callbacks.LambdaCallback(on_test_batch_end=lambda *_, **__: bar.update())
        logs = model.evaluate(batches, callbacks=[count], return_dict=True, verbose=0)
    return select_metrics(logs)


# The command


@dataclass(frozen=True)
class Start:
    """Which settings the other arguments change: those of a recipe, or those of the run that is resumed."""

    recipe: Literal[tuple(RECIPES)] = "default"
    """The settings to start from; any of them can still be changed."""
    resume: bool = False
    """Continue the run of this name from its newest checkpoint, with its own settings."""
    resume_from: str | None = None
    """Continue from the checkpoint of this name, for example step_00002000."""


@dataclass(frozen=True)
class RunName(Start):
    """`Start`, and where the run and its data are."""

    model_name: str | None = None
    config_name: str | None = None
    runs_dir: str | None = None
    data_dir: str | None = None


@dataclass(frozen=True)
class Arguments(Start):
    """Trains a model."""

    config: Annotated[TrainConfig, tyro.conf.OmitArgPrefixes] = BASE
    processes: Annotated[devices.Processes, tyro.conf.OmitArgPrefixes] = devices.Processes()
    data_is_named: tyro.conf.Suppress[bool] = True


def parse(argv: list[str] | None = None) -> Arguments:
    """Reads the command line: first which recipe or run, then the settings that differ from it."""
    start, _ = tyro.cli(RunName, args=argv, return_unknown_args=True, add_help=False)
    if start.resume and start.resume_from:
        raise UserError("--resume uses the newest checkpoint, --resume-from the one it names; give only one of them")
    base, resuming = RECIPES[start.recipe], bool(start.resume or start.resume_from)
    if resuming:
        # A recipe may name the model; apart from that the run's own settings count, wherever its folder is now
        names = ("model_name", "config_name", "runs_dir")
        named = {name: getattr(start, name) or getattr(base, name) for name in names}
        base = replace(read_config(replace(base, **named).run_dir)[0], **named)
    default = Arguments(config=base, data_is_named=not resuming or start.data_dir is not None)
    return tyro.cli(Arguments, args=argv, default=default, description=describe_recipes())


@command
def main() -> None:
    """Runs the command; it trains even if no one can read what it prints."""
    ignore_write_errors("stdout")
    arguments = parse()
    arguments.processes.connect(settings=repr(replace(arguments, processes=devices.Processes())))
    resume = arguments.resume, arguments.resume_from
    folder = train(arguments.config, *resume, tiny_imagenet.START_TIME, arguments.data_is_named)
    print(f"next: python evaluate.py {folder}, or: tensorboard --logdir {arguments.config.runs_dir}")


if __name__ == "__main__":
    main()
