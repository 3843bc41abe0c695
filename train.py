"""Trains the model that `TrainConfig.model_name` names: `python train.py --help`.

The run's folder, `runs/<model_name>/<config_name>/`, then holds the model, the curves and the resumable state.
"""

from startup import START, UserError, command, command_line, interrupted, keras, require_gpu, shell_line

import math
import signal
import sys
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from tqdm import tqdm

import checkpoints
import distribution
from config import BASE, RECIPES, TrainConfig, differences
from dataset import Dataset, open_dataset
from distribution import Share
from input_pipe import eval_batches, eval_shares, train_batches
from losses import loss_by_name
from metrics import accuracy, top_5_accuracy
from models import build_model, freeze_features, import_model, take_weights, with_precision
from optimizers import averaged, optimizer_for
from summaries import HISTOGRAM_PICTURES, Distributions, Log, first_batch, l2_penalties

__all__ = ["TrainConfig", "TrainControl", "main", "train"]


# How the learning rate falls: by the rule of 2017, which also ends the run, or by a fixed schedule


@dataclass
class TrainControl:
    """Cuts the learning rate on a plateau of the validation accuracy, and ends the run after the fourth cut."""

    lr: float
    """The learning rate now."""
    val_accs: list[float] = field(default_factory=list)
    """Validation accuracies so far, 0 to 1."""
    num_cuts: int = 0

    FACTOR = 1 / 5
    CLOSE = 0.002  # an absolute difference of accuracies that counts as none
    MOST_CUTS = 4

    def add_val_acc(self, val_acc: float) -> None:
        """Notes the validation accuracy (0 to 1) of a new evaluation."""
        self.val_accs.append(val_acc)

    def update_lr(self) -> None:
        """Cuts the rate if the newest accuracy, at the earliest the third, is no progress."""
        if len(self.val_accs) < 3:
            return
        before_last, last, now = self.val_accs[-3:]
        if now < max(self.val_accs) or abs(now - (before_last + last) / 2) < self.CLOSE:
            self.lr *= self.FACTOR
            self.num_cuts += 1

    def done(self) -> bool:
        """Whether training has come to its end."""
        return self.num_cuts >= self.MOST_CUTS


class FixedSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """The rate as a function of the step: up from 0 in a straight line, then down to 0.

    Args:
        config: `lr`, `schedule` ("cosine", https://arxiv.org/abs/1608.03983, or "one_cycle",
            https://arxiv.org/abs/1708.07120) and `warmup` are used.
        total_steps: of the whole run.
    """

    def __init__(self, config: TrainConfig, total_steps: int) -> None:
        self.config, self.total_steps = config, total_steps

    def __call__(self, step):
        """The rate of step `step`, counted from 0; a scalar."""
        config, ops = self.config, keras.ops
        done = (ops.cast(step, "float32") + 0.5) / self.total_steps  # the middle of the step
        left = ops.maximum(1 - done, 0) / (1 - config.warmup)  # 1 after the warm-up, 0 at the end
        if config.schedule == "cosine":
            left = 0.5 - 0.5 * ops.cos(math.pi * left)
        rising = done < config.warmup
        return config.lr * ops.where(rising, done / max(config.warmup, 1e-9), left)


def picture_size(config: TrainConfig, step: int, total_steps: int) -> int:
    """Side of the pictures of step `step`, counted from 0."""
    sizes = config.picture_sizes or (config.crop_size,)
    return sizes[min(step, total_steps - 1) * len(sizes) // total_steps]


def same_size_until(config: TrainConfig, step: int, total_steps: int) -> int:
    """The first step after `step` whose pictures have another side, or the end."""
    size, later = picture_size(config, step, total_steps), range(step + 1, total_steps)
    return next((other for other in later if picture_size(config, other, total_steps) != size), total_steps)


def eval_size(config: TrainConfig, step: int, total_steps: int) -> int:
    """Side of the pictures for an evaluation after `step` steps: it is to crop_size as training's is to its last."""
    last = picture_size(config, total_steps - 1, total_steps)
    return round(config.crop_size * picture_size(config, step - 1, total_steps) / last)


# A run


@dataclass
class Progress:
    """How far a run has come: with the model's variables, all that resuming needs."""

    control: TrainControl
    step: int = 0
    """Steps done."""
    best_val_acc: float = -1.0
    """The highest so far; -1 before the first evaluation."""
    seconds: float = 0.0
    """Running time of the program, over all resumes: up to this save, and what was lost by kills, each up to its last
    point of the curves."""

    def ended(self, total_steps: int) -> bool:
        """Whether nothing is left to be trained."""
        return self.step >= total_steps or self.control.done()

    def evaluated_early(self, config: TrainConfig) -> bool:
        """Whether the last evaluation was the end of the run and not the end of a whole interval."""
        return len(self.control.val_accs) > self.step // config.eval_interval

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Progress":
        """The inverse of `dataclasses.asdict`; other keys are left alone.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: something is missing, or of the wrong type.
        """
        control = values["control"]
        accuracies = [float(accuracy) for accuracy in control["val_accs"]]
        progress = cls(
            TrainControl(float(control["lr"]), accuracies, int(control["num_cuts"])),
            int(values["step"]),
            float(values["best_val_acc"]),
            float(values["seconds"]),
        )
        ours = asdict(progress)
        if (
            ours != {name: values[name] for name in ours} or progress.step < 0
        ):  # "62", 20.5: converted, but not the same
            raise ValueError(f"step {values['step']!r}")
        return progress


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a note to stop after the step; a second one stops at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        if interrupted():  # during the start, by a Ctrl-C whose exception some library has swallowed
            raise KeyboardInterrupt
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        print("\nstopping after this step or evaluation, to save; again: at once, without", file=sys.stderr)


class UnreadLogs(keras.callbacks.CallbackList):
    """Hands a step's figures on unread: Keras's own list reads them, so that a GPU would idle after each step."""

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """After each step."""
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)


class Steps(keras.callbacks.Callback):
    """What happens after a step, between two evaluations.

    `self.model` is touched only when something is due: under JAX every touch copies the state of the step.
    """

    def __init__(
        self,
        config: TrainConfig,
        log: Log,
        states: checkpoints.StateSaver,
        progress: Progress,
        stop: StopRequest,
        started: float,  # by time.perf_counter, in seconds
        share: Share,
    ) -> None:
        super().__init__()
        self.share = share
        self.config, self.log, self.states, self.progress, self.stop_request = config, log, states, progress, stop
        self.started = started - progress.seconds
        self.running_means: list[np.ndarray] = []  # since the last point of the curves, at the last step
        self.bar: tqdm | None = None
        self.last_step = self.total_steps = 0  # of this call of `fit`; of the run
        self.last_point = {}  # of the training curves; before the first, the means so far
        self.distributions: Distributions | None = None
        self._unread: dict[str, Any] | None = None  # figures of the step before
        self._window_steps, self._window_seconds = 0, 0.0  # since the last point of the curves, without evaluations

    def seconds(self) -> float:
        """Running time over all resumes."""
        return time.perf_counter() - self.started

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Restores the running means, which `fit` has just set back to zero."""
        self.restore_means(self.model)
        self._since = time.perf_counter()

    def restore_means(self, model: keras.Model) -> None:
        """Sets the metrics to what they were after the last training step."""
        if self.running_means:
            for variable, value in zip(model.metrics_variables, self.running_means, strict=True):
                variable.assign(value)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any]) -> None:
        """`logs`: means since the last point of the curves, on the device; to read them waits for the step."""
        self.progress.step += 1
        self._window_steps += 1
        step, at_end, stop = self.progress.step, self.progress.step == self.last_step, self.to_stop()
        point, save = step % self.config.summary_interval == 0, step % self.config.checkpoint_interval == 0
        due = point or save or at_end or stop  # for all hosts alike
        self.bar.update()
        self.read(self._unread, step - 1)  # meanwhile the device goes on with this step
        self._unread = None if due else logs
        values = self.read(logs, step) if due else {}
        if point:
            self.write_point(values)
        if self.config.histogram_interval and step % self.config.histogram_interval == 0 and self.share.writes:
            self.log.histograms(step, self.distributions(self.model))
        if at_end:
            self.end_interval(values)
        if stop:
            self.model.stop_training = True
        elif save and not self.evaluated_next() and not self.states.busy():
            self.save()  # not if the evaluation will save; not if the disk is slower than the steps

    def read(self, logs: dict[str, Any] | None, step: int) -> dict[str, float]:
        """The figures of a step as numbers, which are shown; raises UserError if its loss is none."""
        values = {name: float(keras.ops.convert_to_numpy(value)) for name, value in (logs or {}).items()}
        if values:
            if not math.isfinite(values["loss"]):
                raise self.not_finite("the loss", values["loss"], step)
            self.bar.set_postfix_str(f"loss {values['data_loss']:.3f}, top-1 {values['top_1']:.1%}", refresh=False)
        return values

    def to_stop(self) -> bool:
        """Whether a signal has come; of several hosts, which agree on it every few steps, to any."""
        alone, asked = self.share.hosts == 1, self.stop_request.signal is not None
        due = alone or self.progress.step % distribution.AGREE_STEPS == 0
        return due and distribution.anyone(self.share, asked)

    def evaluated_next(self) -> bool:
        """Whether an evaluation follows this step."""
        step = self.progress.step
        return step % self.config.eval_interval == 0 or step == self.total_steps

    def end_interval(self, logs: dict[str, float]) -> None:
        """Keeps the running means, which an evaluation and the next `fit` begin anew."""
        self.running_means = [keras.ops.convert_to_numpy(value) for value in self.model.metrics_variables]
        self._window_seconds += time.perf_counter() - self._since
        self._since = time.perf_counter()
        if "learning_rate" not in self.last_point:  # no point yet
            self.last_point = figures(logs) | {"images_per_second": self.images_per_second()}

    def images_per_second(self) -> float:
        """Since the last point of the curves; evaluations do not count."""
        return self._window_steps * self.config.batch_size / self._window_seconds

    def not_finite(self, what: str, value: float, step: int) -> UserError:
        """The error that says what is no number any more, what is left, and what to try."""
        self.states.wait()
        saved = checkpoints.find_checkpoint(self.config.run_dir, None)
        state = f"the state of {saved.name} is kept" if saved else "nothing was saved yet"
        advice = f"another --config-name with a lower --lr (now {self.progress.control.lr:g})"
        if self.config.reg > BASE.reg:
            advice += f" or --reg (now {self.config.reg:g})"
        if self.config.weight_decay:
            advice += f" or --weight-decay (now {self.config.weight_decay:g})"
        if self.config.precision == "mixed_float16":
            advice += " or --precision mixed_bfloat16"
        return UserError(f"{what} is {value} at step {step:,}; {state}; try {advice}")

    def write_point(self, logs: dict[str, float]) -> None:
        """Adds a point to the training curves, means over the last `summary_interval` steps, and starts new means."""
        now = time.perf_counter()
        self._window_seconds += now - self._since
        values = figures(logs) | l2_penalties(self.model) | {"learning_rate": self.learning_rate()}
        speed = {"images_per_second": self.images_per_second()}
        self.log.curves("train", self.progress.step, values, speed | {"seconds": self.seconds()})
        self.model.reset_metrics()
        self.last_point = values | speed
        self._window_steps, self._window_seconds, self._since = 0, 0.0, now

    def learning_rate(self) -> float:
        """The rate of the next step."""
        if self.config.schedule == "plateau":
            return self.progress.control.lr
        return float(self.model.optimizer.learning_rate)

    def save(self) -> None:
        """Begins to save the resumable state."""
        self.progress.seconds = self.seconds()
        try:
            self.states.save(self.model, asdict(self.progress))
        except FloatingPointError as error:
            raise self.not_finite(f"the weight {error}", math.nan, self.progress.step) from None


def figures(logs: dict[str, float]) -> dict[str, float]:
    """What is shown of Keras's logs."""
    return {name: logs[name] for name in ("data_loss", "top_1", "top_5")}


def compile_model(model: keras.Model, config: TrainConfig, total_steps: int) -> None:
    """Gives the model its optimizer, its loss, and the figures that are logged: all but the loss without L2."""
    rate = config.lr if config.schedule == "plateau" else FixedSchedule(config, total_steps)
    loss = loss_by_name(config.loss, config.smoothing)
    figures = {"data_loss": loss, "top_1": accuracy, "top_5": top_5_accuracy}
    if config.picture_sizes and None not in model.input_shape[1:]:
        raise UserError(f"{config.model_name} takes pictures of one size alone; leave picture_sizes out")
    model.compile(
        optimizer=optimizer_for(config, rate, model),
        loss=loss,
        weighted_metrics=[keras.metrics.MeanMetricWrapper(figure, name=name) for name, figure in figures.items()],
    )
    model.optimizer.build(model.trainable_variables)


def train(
    config: TrainConfig, resume: bool = False, resume_from: str | None = None, started: float | None = None
) -> Path:
    """Trains to the end of the epochs or of all progress, evaluating every `eval_interval` steps.

    Args:
        config: all settings.
        resume: go on with the run of that name, from its newest checkpoint (from the start if it has none yet).
        resume_from: go on from the checkpoint of this name, for example "step_00002000"; later ones are dropped.
        started: the time by `time.perf_counter()` from which the running time counts; None: now.

    Returns:
        The run's folder.

    Raises:
        UserError: the settings or the data cannot be used, the run exists or cannot be resumed, the loss is not
            finite, or the disk is full.
        SystemExit: Ctrl-C or SIGTERM, after the state was saved.
    """
    started = time.perf_counter() if started is None else started
    if config.require_gpu:
        require_gpu()
    import_model(config.model_name)  # an unknown name is answered at once, not after an hour of download
    resuming, share = resume or resume_from is not None, distribution.this_share()
    if config.init_from and not resuming:
        checkpoints.read_config(Path(config.init_from))  # likewise
    distribution.warn_of_idle_gpus()
    distribution.check_divides(share, config.batch_size, resuming)
    data = distribution.first_then_others(
        share, lambda: open_dataset(config.data_dir, skip_bad_images=config.skip_bad_images)
    )
    with distribution.all_or_none(share):
        config = with_precision(config, len(data.class_ids))
        total_steps = count_steps(config, data)
        first_weights = read_first_weights(config, resuming)
    check_same_run(share, config, data, first_weights)
    with distribution.spread(share):
        model = first_model(config, len(data.class_ids), first_weights)
        compile_model(model, config, total_steps)
        with opened_run(config, data, resuming, share) as folder, StopRequest() as stop:
            model.test_on_batch(*first_batch(data, config, share))  # builds the metrics, which a checkpoint restores
            progress = take_up(config, model, resume_from, total_steps, share)
            if share.writes:
                checkpoints.write_description(config, data)  # the settings that a resumed run may change
            with closing(Log(folder, share.writes)) as log:
                announce(config, model, data, total_steps, progress, share)
                states = checkpoints.StateSaver(config, share.writes)
                steps = Steps(config, log, states, progress, stop, started, share)
                if progress.step:
                    steps.running_means = [keras.ops.convert_to_numpy(value) for value in model.metrics_variables]
                with closing(states):
                    run_intervals(steps, model, data, total_steps)
    return folder


def read_first_weights(config: TrainConfig, resuming: bool) -> dict[str, np.ndarray]:
    """The weights of `init_from`'s model by path; none where a state replaces them."""
    if not config.init_from or (resuming and checkpoints.find_checkpoint(config.run_dir, None)):
        return {}
    model = checkpoints.load_run(config.init_from).model
    return {weight.path: np.array(keras.ops.convert_to_numpy(weight)) for weight in model.weights}


def check_same_run(share: Share, config: TrainConfig, data: Dataset, first_weights: dict[str, np.ndarray]) -> None:
    """Raises UserError if another host trains with other settings, but for its folders, pictures, code or packages."""
    settings = asdict(config) | {"data_dir": "", "runs_dir": "", "init_from": ""}
    distribution.check_same(share, "settings", str(settings))
    distribution.check_same(share, "packages and sources", checkpoints.code(config.model_name))
    distribution.check_same(share, "pictures", data.fingerprint)
    distribution.check_same(share, "first weights (init_from)", "", first_weights.values())


@contextmanager
def opened_run(config: TrainConfig, data: Dataset, resuming: bool, share: Share):
    """The run's folder, made or taken up by the host that writes before any other host looks into it."""
    with ExitStack() as held:
        with distribution.all_or_none(share):
            if share.writes:
                held.enter_context(checkpoints.opened_run(config, data, resuming))
        yield config.run_dir


def first_model(config: TrainConfig, num_classes: int, first_weights: dict[str, np.ndarray]) -> keras.Model:
    """The model as a run begins with it. (`first_weights` is empty where a saved state will replace the weights.)

    Raises:
        UserError: `init_from` has nothing, or not all, to give.
    """
    model = build_model(config, num_classes)
    frozen = freeze_features(model) if config.freeze_features else []
    if not first_weights:
        return model
    left = take_weights(model, first_weights)
    kernels = [weight.path for weight in model.weights if len(weight.shape) > 1]
    needed = frozen or (kernels[:-1] or kernels)[:1]  # at least its first kernel, which is not the last layer's
    missing = [path for path in needed if path in left]
    if missing:
        raise UserError(
            f"init_from: {config.init_from} has no {missing[0]} of the shape that is needed; name a run of "
            f"{config.model_name} with the same settings of the model, such as --width"
        )
    anew = f"; at random: {', '.join(left[:4])}{' ...' * (len(left) > 4)}" if left else ""
    print(f"first weights from {config.init_from}: {len(model.weights) - len(left)} of {len(model.weights)}{anew}")
    return model


def count_steps(config: TrainConfig, data: Dataset) -> int:
    """The steps of the whole run.

    Raises:
        UserError: the settings do not fit each other or the data.
    """
    num_pictures = len(data.train.labels)
    if config.schedule == "plateau" and (config.picture_sizes or config.warmup):
        raise UserError("picture_sizes and warmup need a fixed schedule; set --schedule to cosine or one_cycle")
    if len(data.class_ids) < 2:
        raise UserError(f"{data.root} has one class alone, of which nothing can be learnt; give it two or more")
    if config.batch_size > num_pictures:
        raise UserError(f"batch_size is {config.batch_size}, but there are {num_pictures} training pictures; lower it")
    total_steps = config.num_epochs * num_pictures // config.batch_size
    if config.picture_sizes and not config.resizes:
        raise UserError("picture_sizes needs pictures that are scaled; set --resized-crop, for example to 44 64")
    if config.ema_momentum and 1 / (1 - config.ema_momentum) > total_steps:
        longest = math.floor(1e5 * (1 - 1 / total_steps)) / 1e5
        raise UserError(
            f"ema_momentum is {config.ema_momentum}, an average over more than the {total_steps} steps of the run; "
            f"set --ema-momentum to {longest:g} or less"
        )
    if len(config.picture_sizes) > total_steps:
        raise UserError(f"there are {len(config.picture_sizes)} picture_sizes for {total_steps} steps; name fewer")
    if config.eval_interval > total_steps:
        raise UserError(
            f"eval_interval is {config.eval_interval}, but the run has only {total_steps} steps; "
            f"set --eval-interval to {total_steps} or less"
        )
    return total_steps


def take_up(config: TrainConfig, model: keras.Model, name: str | None, total_steps: int, share: Share) -> Progress:
    """Sets the model to where the run begins, and its folder back to that: a new start, or a checkpoint."""
    with distribution.all_or_none(share):
        checkpoint = checkpoints.find_checkpoint(config.run_dir, name)
        arrays, progress, log_sizes = {}, Progress(TrainControl(config.lr)), {}
        if checkpoint:
            arrays, values = checkpoints.read_state(checkpoint)
            progress, log_sizes = read_progress(config, checkpoint, values, total_steps)
    distribution.check_same(share, "saved states (do they all see one runs_dir?)", str(progress), arrays.values())
    if checkpoint:
        checkpoints.restore_variables(model, arrays, checkpoint)  # refuses another model's before anything is cut
    if share.writes:
        take_back(config, progress, checkpoint, log_sizes)
    return progress


def read_progress(
    config: TrainConfig, checkpoint: Path, values: dict[str, Any], total_steps: int
) -> tuple[Progress, dict[str, int]]:
    """How far the run was at a checkpoint, and the sizes of its logs then.

    Args:
        config: the settings with which it is to go on.
        checkpoint: its folder.
        values: what its progress.json says.
        total_steps: of the whole run.

    Raises:
        UserError: the run cannot go on from there.
    """
    try:
        progress = Progress.from_dict(values)
        log_sizes = {str(name): int(size) for name, size in values["log_sizes"].items()}
        if f"step_{progress.step:08d}" != checkpoint.name or min(log_sizes.values(), default=0) < 0:
            raise ValueError(f"step {progress.step} in {checkpoint.name}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{checkpoint / 'progress.json'} was not written by this version ({error!r})") from None
    evaluated = progress.step % config.eval_interval == 0 or progress.evaluated_early(config)
    if progress.step > total_steps or (progress.step == total_steps and not evaluated):
        raise UserError(
            f"num_epochs is {config.num_epochs}, which is {total_steps:,} steps, but {checkpoint} is further, or not "
            f"evaluated there yet; raise --num-epochs, or go on from an earlier one by --resume-from"
        )
    if progress.step < total_steps and progress.evaluated_early(config):
        raise UserError(
            f"{checkpoint} is the end of a run whose last interval was shorter than eval_interval, which a longer run "
            f"would not have had; go on from an earlier one by --resume-from, or with the same --num-epochs"
        )
    return progress, log_sizes


def take_back(config: TrainConfig, progress: Progress, checkpoint: Path | None, log_sizes: dict[str, int]) -> None:
    """Makes the run's folder what it was at that checkpoint, where it goes on; only the clock does not go back."""
    folder = config.run_dir
    with suppress(UserError):  # a damaged point: the checkpoint's own time counts
        progress.seconds = max(progress.seconds, checkpoints.read_seconds(folder))
    if checkpoint:  # first: after a kill in between, this checkpoint is the one whose logs are cut
        checkpoints.drop_after(checkpoint)
    checkpoints.cut_logs(folder, log_sizes)
    if progress.best_val_acc < 0:
        (folder / config.model_file).unlink(missing_ok=True)
    elif checkpoint:
        checkpoints.restore_model(checkpoint, config.model_file)


def run_intervals(steps: Steps, model: keras.Model, data: Dataset, total_steps: int) -> None:
    """Trains from one evaluation to the next until the end; the last interval may be shorter."""
    config, progress, share, steps.total_steps = steps.config, steps.progress, steps.share, total_steps
    steps.distributions = Distributions(model, first_batch(data, config)[0][:HISTOGRAM_PICTURES])
    if not progress.step and share.writes:
        steps.log.start(config, model, data)
    shown = {"unit": "step", "dynamic_ncols": True, "disable": None if share.writes else True}
    bar, size, ended = tqdm(total=total_steps, initial=progress.step, **shown), None, progress.ended(total_steps)
    with closing(bar) as steps.bar:
        while not progress.ended(total_steps):
            size_before, size = size, picture_size(config, progress.step, total_steps)
            if size != size_before:
                trace_anew(model)
            until = (progress.step // config.eval_interval + 1) * config.eval_interval
            steps.last_step = min(until, same_size_until(config, progress.step, total_steps))
            model.fit(
                train_batches(data.train, config, progress.step, size, share),
                steps_per_epoch=steps.last_step - progress.step,
                callbacks=UnreadLogs([steps], add_history=True, model=model),  # `fit` returns the history
                shuffle=False,  # they are shuffled
                verbose=0,
            )
            if progress.step == steps.last_step and steps.evaluated_next():
                evaluate_and_save(steps, model, data, total_steps)
            if not progress.ended(total_steps):
                stop_if_asked(steps)
    with distribution.all_or_none(share):  # no host leaves before the last state is on disk
        steps.states.wait()
    if not ended:  # a run that had ended before takes no longer for having been looked at
        progress.seconds = steps.seconds()
    steps.log.end(progress.step, progress.seconds)
    reason = "no progress after four cuts of the rate" if progress.control.done() else "all epochs done"
    plateau = config.schedule == "plateau"
    kept, top_1 = ("best", progress.best_val_acc) if plateau else ("last", progress.control.val_accs[-1])
    result = f"{kept} validation top-1 {top_1:.2%}, in {config.run_dir / config.model_file}"
    print(f"end at step {progress.step:,} ({reason}) after {progress.seconds:,.0f} s: {result}")
    if steps.stop_request.signal:  # it came during the last evaluation: nothing is left to go on with, but it is obeyed
        sys.exit(128 + steps.stop_request.signal)


def trace_anew(model: keras.Model) -> None:
    """Has the model's steps traced for the pictures that come next.

    TensorFlow would make the second size a step for any size, which is slower and rounds in other ways than the step
    for this size alone, with which a resumed run begins.
    """
    model.make_train_function(force=True)
    model.make_test_function(force=True)


def evaluate_and_save(steps: Steps, model: keras.Model, data: Dataset, total_steps: int) -> None:
    """Evaluates on every validation picture, logs, keeps the model, sets the rate, and saves the state."""
    config, progress, log = steps.config, steps.progress, steps.log
    size = eval_size(config, progress.step, total_steps)
    if steps.share.devices > 1:
        batches = eval_shares(data.val, config, steps.share, size)
    else:
        batches = eval_batches(data.val, config, size)
    with averaged(model):
        values = model.evaluate(batches, return_dict=True, verbose=0)
        steps.restore_means(model)  # which are saved
        if not math.isfinite(values["data_loss"]):
            raise steps.not_finite("the validation loss", values["data_loss"], progress.step)
        if config.schedule != "plateau" or values["top_1"] > progress.best_val_acc:
            steps.states.wait()  # a state that is being saved holds the model before this one
            if steps.share.writes:
                checkpoints.save_model(model, config)
    values = figures(values)
    log.curves("validation", progress.step, values, {"seconds": steps.seconds()})
    if not config.histogram_interval and steps.share.writes:
        log.histograms(progress.step, steps.distributions(model))
    progress.best_val_acc = max(progress.best_val_acc, values["top_1"])
    warn_of_wrong_labels(steps, values["top_1"], data)
    progress.control.add_val_acc(values["top_1"])
    if config.schedule == "plateau":
        progress.control.update_lr()
        model.optimizer.learning_rate = progress.control.lr
    report(steps, values)
    steps.save()


def warn_of_wrong_labels(steps: Steps, val_acc: float, data: Dataset) -> None:
    """Says so if the validation labels cannot belong to the pictures: accuracy at chance while training learns.

    At chance: not above 1/C by three standard deviations, if there are pictures enough for that to be below 2/C.
    Learning: at least 2/C, and five points above chance.
    """
    chance = 1 / len(data.class_ids)
    most = chance + 3 * math.sqrt(chance * (1 - chance) / len(data.val.labels))
    if val_acc < most < 2 * chance and steps.last_point["top_1"] > max(2 * chance, chance + 0.05):
        tqdm.write(
            f"warning: top-1 is {steps.last_point['top_1']:.1%} in training but {val_acc:.1%} in validation, which is "
            f"chance: most likely the labels do not match the pictures; check that {data.root / 'val'} (its "
            f"val_annotations.txt, or class folders) and wnids.txt belong to one dataset",
            file=sys.stderr,
        )


def stop_if_asked(steps: Steps) -> None:
    """After Ctrl-C or SIGTERM: saves, says how to go on, and ends the program as that signal does (128 + number)."""
    if not distribution.anyone(steps.share, steps.stop_request.signal is not None):
        return
    steps.save()
    with distribution.all_or_none(steps.share):
        steps.states.wait()
    steps.bar.close()
    command = resume_command(steps.config) + " and, on each host, its --coordinator ..." * (steps.share.hosts > 1)
    print(f"stopped at step {steps.progress.step:,}, state saved; to go on: {command}")
    sys.exit(128 + (steps.stop_request.signal or signal.SIGTERM))  # SIGTERM: another host was asked


def resume_command(config: TrainConfig) -> str:
    """The command that goes on with a run, from its newest state, with its own settings."""
    words = ["--model-name", config.model_name, "--config-name", config.config_name]
    if config.runs_dir != BASE.runs_dir:
        words += ["--runs-dir", config.runs_dir]
    return shell_line("python", "train.py", *words, "--resume")


# What is printed


def announce(
    config: TrainConfig, model: keras.Model, data: Dataset, total_steps: int, progress: Progress, share: Share
) -> None:
    """Says what is about to be trained, and which settings are not 2017's."""
    print(
        f"{config.run_dir}: {model.count_params():,} weights, {len(data.class_ids)} classes, "
        f"{len(data.train.labels):,} training and {len(data.val.labels):,} validation pictures, "
        f"{total_steps:,} steps of {config.batch_size}"
    )
    if share.devices > 1:
        print(f"on {share}, each with {config.batch_size // share.devices} pictures of a batch")
    changed = [f"{name} {ours} (default {theirs})" for name, (ours, theirs) in differences(config, BASE).items()]
    print(f"settings that differ from the defaults: {', '.join(changed) or 'none'}")
    if progress.step:
        print(f"resumed at step {progress.step:,}")


def report(steps: Steps, validation: dict[str, float]) -> None:
    """One line an evaluation; the training figures are those of the last point of the curves."""
    training = steps.last_point
    tqdm.write(
        f"step {steps.progress.step:,}: training loss {training['data_loss']:.3f}, top-1 {training['top_1']:.2%}; "
        f"validation loss {validation['data_loss']:.3f}, top-1 {validation['top_1']:.2%}, "
        f"top-5 {validation['top_5']:.2%}; "
        f"next rate {steps.learning_rate():.3g}; {training['images_per_second']:,.0f} pictures/s",
        file=sys.stdout,
    )


# The command


@dataclass(frozen=True)
class Arguments:
    """What the command line takes: how to begin, and every field of TrainConfig."""

    config: Annotated[TrainConfig, tyro.conf.OmitArgPrefixes] = BASE
    recipe: Literal[tuple(RECIPES)] = "default"
    """The settings to start from; any of them can still be changed."""
    resume: bool = False
    """Go on with the run of this name from its newest checkpoint, with its own settings."""
    resume_from: str | None = None
    """Go on from the checkpoint of this name, for example step_00002000."""
    coordinator: str | None = None
    """For several hosts, under JAX: address and a free port of host 0, HOST:PORT. All must see the same runs_dir."""
    num_hosts: int = 1
    """How many hosts train together."""
    host_id: int = 0
    """Which of them this one is, from 0."""


def parse(argv: list[str] | None = None) -> Arguments:
    """The command line: first which recipe or which run, then what changes of its settings."""
    arguments = command_line(Arguments, args=argv, description=help_text())
    if arguments.resume and arguments.resume_from:
        raise UserError("--resume goes on from the newest state, --resume-from from the one it names; give one of them")
    if not arguments.coordinator and (arguments.num_hosts, arguments.host_id) != (1, 0):
        raise UserError("several hosts meet at the first one's address; name it, on each, by --coordinator HOST:PORT")
    base = RECIPES[arguments.recipe]
    if arguments.resume or arguments.resume_from:
        # a recipe may name the model; else the run's own settings count, in a folder that may have been renamed since
        asked = command_line(Arguments, args=argv, default=Arguments(config=base)).config
        base, _ = checkpoints.read_config(asked.run_dir)
        base = replace(base, model_name=asked.model_name, config_name=asked.config_name, runs_dir=asked.runs_dir)
    return command_line(Arguments, args=argv, default=Arguments(config=base))


def help_text() -> str:
    """What --help begins with."""
    recipes = []
    for name, recipe in RECIPES.items():
        changes = ", ".join(f"{key} {value}" for key, (value, _) in differences(recipe, BASE).items())
        recipes.append(f"  {name}: {changes or 'the settings of 2017'}")
    return "Trains a model.\n\nRecipes (--recipe NAME):\n" + "\n".join(recipes)


@command
def main() -> None:
    """Runs the command."""
    arguments = parse()
    with distribution.joined(arguments.coordinator, arguments.num_hosts, arguments.host_id):
        folder = train(arguments.config, arguments.resume, arguments.resume_from, START)
        print(f"now: python evaluate.py {folder}, or: tensorboard --logdir {arguments.config.runs_dir}")


if __name__ == "__main__":
    main()
