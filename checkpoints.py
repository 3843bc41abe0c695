"""A run's folder: what it holds, saving so that a crash loses nothing, resuming exactly.

    runs/<model_name>/<config_name>/
        config.json          the settings, the classes, the data's fingerprint, the versions
        source/              the project's *.py files as they were
        metrics.jsonl        one line a point of the curves
        tensorboard/         the same and more for TensorBoard: train/ and validation/
        best.keras           the model with the best validation accuracy; or, with a fixed schedule of the rate,
        last.keras           the model as it was last evaluated
        checkpoints/step_00002000/    the resumable state: arrays.npz, progress.json, and that model as it was then

Whatever is written is first written whole under another name, forced to the disk, then renamed: a crash, or a full
disk, leaves what was there before.
"""

from startup import ROOT, UserError, gpu_names, keras

import ast
import importlib
import json
import os
import platform
import re
import shutil
import sys
import zipfile
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import config as config_module
import models
from config import TrainConfig
from dataset import Dataset
from distribution import this_share
from files import advice_on, force_to_disk, locked, remove, shown, write_atomically

CHANGEABLE = {
    "config_name",  # the folder may have been renamed
    "data_dir",  # the fingerprint of the data counts, not its place
    "runs_dir",
    "skip_bad_images",  # likewise
    "require_gpu",
    "num_epochs",
    "summary_interval",
    "histogram_interval",
    "checkpoint_interval",
    "keep_checkpoints",
}
"""The settings that a resumed run may change: none touches the mathematics of a step (num_epochs: on a plateau)."""

THEN = "; then "  # between the machines of a run that went on on another one

ROUNDED_WEIGHTS = "weights.npz"  # of a model that ships (pretrained.py), in the place of its .keras file

SAVED = "saved"  # the empty file in checkpoints/ that tells a run whose states were removed from one that had none yet

MATHEMATICS = ("train", "models", "input_pipe", "losses", "metrics", "optimizers")
"""The files that, with the model's own and what that imports, decide what a step computes."""

NUMERICS = ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "XLA_FLAGS")
"""The variables of the environment by which a sum may be added up in another order."""


# Files of a run's folder


def _discard(checkpoint: Path) -> None:
    """Removes it under another name, so that a kill in between leaves no half of it for a whole one."""
    remove(checkpoint.rename(checkpoint.with_name(f".writing-{checkpoint.name}")))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object; it was not written by train.py")
    return content


# The folder


@contextmanager
def opened_run(config: TrainConfig, data: Dataset, resume: bool):
    """Makes the folder of a run, or takes up the one that is there, and holds it for this process alone.

    Raises:
        UserError: as `create_run` or, to resume, as `reopen_run`; or another train.py holds the folder.
    """
    folder = config.run_dir
    if resume:
        read_config(folder)  # nothing is made for a run that is not there
    folder.mkdir(parents=True, exist_ok=True)
    with locked(
        folder, f"{folder} is being trained by another train.py; wait for it or stop it"
    ):  # first of all: what another train.py is writing must not be taken for left-overs
        begin = reopen_run if resume else create_run
        yield begin(config, data)


def describe_run(config: TrainConfig, data: Dataset) -> dict[str, Any]:
    """What config.json says."""
    return {
        "config": asdict(config),
        "class_ids": list(data.class_ids),
        "class_names": list(data.class_names),
        "data": {"fingerprint": data.fingerprint, "train": len(data.train.labels), "val": len(data.val.labels)},
        "backend": keras.backend.backend(),
        "versions": versions(),
        "hardware": hardware(),
    }


def versions() -> dict[str, str]:
    """Of what computes a step: other versions may round differently."""
    packages = ("keras", "tensorflow", "numpy", *(["jax", "jaxlib"] if keras.backend.backend() == "jax" else []))
    modules = map(importlib.import_module, packages)  # a wheel may have another name: tensorflow-cpu
    return {"python": platform.python_version()} | {module.__name__: module.__version__ for module in modules}


def hardware() -> str:
    """The processor and how many of its cores this process may use, GPUs, and settings that change how sums round."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = f"{len(os.sched_getaffinity(0))} cores, {names[0] if names else platform.machine()}"
    settings = [f"{name}={os.environ[name]}" for name in NUMERICS if name in os.environ]
    gpus = [f"{count} x {name}" if count > 1 else name for name, count in Counter(gpu_names()).items()]
    share = this_share()
    return ", ".join([processor, *gpus, *[str(share)] * (share.devices > 1), *settings])


def code(model_name: str) -> str:
    """Packages and sources that a step depends on, as a text to compare."""
    return "\n".join([str(versions()), *(_syntax(ROOT / f"{name}.py") for name in _sources(model_name))])


def create_run(config: TrainConfig, data: Dataset) -> Path:
    """Makes the folder of a new run.

    Raises:
        UserError: a run of that name exists.
    """
    folder = config.run_dir
    if (folder / "config.json").exists():
        raise UserError(f"{folder} exists; go on with it by --resume, or give this run another --config-name")
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    if checkpoints(folder) or any(folder.glob("*.keras")):
        raise UserError(f"{folder} holds a run that has lost its config.json; give this run another --config-name")
    (folder / "source").mkdir(exist_ok=True)
    for path in ROOT.glob("*.py"):
        shutil.copy2(path, folder / "source")
    write_description(config, data)  # last: its presence says that the folder is complete
    return folder


def write_description(config: TrainConfig, data: Dataset) -> None:
    """Writes config.json; of a run that goes on elsewhere, with all machines."""
    description, path = describe_run(config, data), config.run_dir / "config.json"
    before = _read_json(path).get("hardware") if path.exists() else None
    if isinstance(before, str) and before.split(THEN)[-1] != description["hardware"]:
        description["hardware"] = f"{before}{THEN}{description['hardware']}"
    text = json.dumps(description, indent=2, ensure_ascii=False)
    write_atomically(config.run_dir / "config.json", lambda path: path.write_text(text + "\n", encoding="utf-8"))


def read_config(folder: Path) -> tuple[TrainConfig, dict[str, Any]]:
    """The settings of the run in `folder`, and all that its config.json says.

    Raises:
        UserError: there is no run, or its config.json is broken.
    """
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder} holds no run (no config.json); train one first with train.py")
    description = _read_json(path)
    for key, kind in (("config", dict), ("class_ids", list), ("class_names", list), ("data", dict)):
        if not isinstance(description.get(key), kind):
            raise UserError(f"{path} lacks {key!r}; it was not written by train.py")
    for key in ("class_ids", "class_names"):
        description[key] = [shown(str(name)) for name in description[key]]
    return config_module.from_dict(description["config"], str(path)), description


def reopen_run(config: TrainConfig, data: Dataset) -> Path:
    """Checks that the run of `config` may go on with these settings, data, versions and sources.

    Raises:
        UserError: something that the result depends on differs from the run's own, or is gone.
    """
    folder = config.run_dir
    before, description = read_config(folder)
    changed = config_module.differences(before, config)
    changeable = CHANGEABLE - (set() if config.schedule == "plateau" else {"num_epochs"})
    refused = [f"{name} was {old}, now {new}" for name, (old, new) in changed.items() if name not in changeable]
    if description["data"].get("fingerprint") != data.fingerprint:
        refused.append(f"the pictures or labels in {config.data_dir} are not those that the run began with")
    if description.get("backend") != keras.backend.backend():
        refused.append(f"KERAS_BACKEND was {description.get('backend')}, now {keras.backend.backend()}")
    before_packages = description.get("versions")
    if isinstance(before_packages, dict):
        for name, version in versions().items():
            if before_packages.get(name, version) != version:
                refused.append(f"{name} was {before_packages[name]}, now {version}")
    refused += _changed_sources(config, folder)
    if refused:
        raise UserError(f"{folder} cannot be resumed so: {'; '.join(refused)}; start it anew by another --config-name")
    _check_left_whole(folder)
    machine = str(description.get("hardware", hardware())).split(THEN)[-1]
    if machine != hardware():
        message = f"{folder} was trained on {machine}, and goes on on {hardware()}: it will not be the same bit for bit"
        print(f"warning: {message}", file=sys.stderr)
    for unfinished in folder.rglob(".writing-*"):
        remove(unfinished)
    return folder


def _changed_sources(config: TrainConfig, folder: Path) -> list[str]:
    """What differs, but for comments, docstrings and layout, between the run's copies of the sources and today's."""
    changed = []
    for name in _sources(config.model_name):
        copy = folder / "source" / f"{name}.py"
        if not copy.exists():
            changed.append(f"{copy} is missing")
        elif _syntax(copy) != _syntax(ROOT / copy.name):
            changed.append(f"{copy.name} is not what it was; the run's own copy is {copy}")
    return changed


def _sources(model_name: str) -> list[str]:
    return [*MATHEMATICS, *_model_sources(model_name)]


def _model_sources(name: str) -> list[str]:
    """The model's file and those of the root that it imports, over all steps; startup and config are none of them."""
    names = [name]
    for file in names:  # which grows
        nodes = list(ast.walk(ast.parse((ROOT / f"{file}.py").read_text(encoding="utf-8"))))
        found = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        found |= {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
        found = {module for module in found - {"startup", "config", *names} if module}
        names += sorted(module for module in found if (ROOT / f"{module}.py").exists())
    return names


def _syntax(path: Path) -> str:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(getattr(node, "body", None), list):
                node.body = [statement for statement in node.body if not _is_docstring(statement)]
        return ast.dump(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""


def _is_docstring(statement: ast.stmt) -> bool:
    """Whether it is a string that stands alone, of a function or of a setting."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _check_left_whole(folder: Path) -> None:
    """Raises UserError if the folder has lost its states, or holds a link, by which other files would be written."""
    if (folder / "checkpoints" / SAVED).exists() and not checkpoints(folder):
        raise UserError(f"the states in {folder / 'checkpoints'} are gone; start it anew by another --config-name")
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"{folder / 'checkpoints'} is gone; start it anew by another --config-name")
    links = [path for path in folder.rglob("*") if path.is_symlink()]
    if links:
        raise UserError(f"{links[0]} is a link, which no run makes; put the file itself there, or remove it")


# The model to keep


def save_model(model: keras.Model, config: TrainConfig) -> None:
    """Writes the model, without the optimizer's state, as best.keras or last.keras; it takes pictures of crop_size."""
    kept = keras.Model(model.inputs[0], model.outputs[0], name=model.name)  # without the optimizer
    if None in kept.input_shape[1:]:
        pictures = keras.Input((config.crop_size, config.crop_size, 3), dtype="uint8", name="pictures")
        kept = keras.models.clone_model(kept, input_tensors=pictures, clone_function=lambda layer: layer)
    write_atomically(config.run_dir / config.model_file, kept.save)


@dataclass(frozen=True)
class Run:
    """A finished or running run, opened for use."""

    folder: Path
    config: TrainConfig
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    model: keras.Model
    """From pictures (B, S, S, 3) uint8, S = config.crop_size, to logits (B, C) float32."""


def load_run(folder: str | Path) -> Run:
    """Opens the model that a run kept. Nothing that the folder brings along is executed: Keras's safe mode stays on.

    Raises:
        UserError: there is no run, no model yet, or one that is broken or of other classes.
    """
    folder = Path(folder)
    config, description = read_config(folder)
    models.import_model(config.model_name)
    path = folder / ROUNDED_WEIGHTS
    if not path.exists():
        path = folder / config.model_file
    if not path.exists():
        raise UserError(f"{path} is not there: the run has not been evaluated yet; go on with train.py --resume")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is damaged or no {path.suffix} file; train it, or get it, again")
    try:
        if path.name == ROUNDED_WEIGHTS:
            model = _with_weights(path, config, len(description["class_ids"]))
        else:
            model = keras.saving.load_model(path, compile=False)
        pictures, logits = tuple(model.input_shape), tuple(model.output_shape)
    except Exception as error:  # Keras raises many kinds for a broken file
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path} cannot be loaded ({reason}); train it, or get it, again") from None
    counts = {len(description["class_ids"]), len(description["class_names"])}
    if pictures[:1] + pictures[3:] != (None, 3) or len(logits) != 2:
        raise UserError(
            f"{path} makes {logits} of {pictures}, but pictures (None, S, S, 3) must become logits (None, C)"
        )
    if counts != {logits[1]}:
        raise UserError(
            f"{path} has {logits[1]} classes, but config.json names {' or '.join(map(str, sorted(counts)))}"
        )
    if set(pictures[1:3]) - {config.crop_size, None}:
        raise UserError(f"{path} takes pictures of {pictures[1]} pixels, but config.json says {config.crop_size}")
    return Run(folder, config, tuple(description["class_ids"]), tuple(description["class_names"]), model)


def _with_weights(path: Path, config: TrainConfig, num_classes: int) -> keras.Model:
    """The model of these settings, with the weights of a .npz file, by their paths."""
    model = models.build_model(replace(config, picture_sizes=()), num_classes)
    with np.load(path, allow_pickle=False) as arrays:
        for weight in model.weights:
            weight.assign(arrays[weight.path].astype(weight.dtype))
    return model


def _newest_point(folder: Path) -> tuple[str, float]:
    """Of a run's curves: "train", "validation" or, once the run has ended, "end"; the running time by then."""
    path = folder / "metrics.jsonl"
    try:
        *_, line = path.read_text(encoding="utf-8").splitlines() or ['{"split": "start", "seconds": 0}']
        point = json.loads(line)
        return str(point["split"]), float(point["seconds"])
    except FileNotFoundError:
        return "start", 0.0
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); put the run's own file there") from None


def read_seconds(folder: Path) -> float:
    """The running time of a run's training so far, in seconds, over all resumes: by its newest point of the curves."""
    return _newest_point(folder)[1]


def has_ended(folder: Path) -> bool:
    """Whether a run has come to its end; False, too, if there is none."""
    return _newest_point(folder)[0] == "end"


def check_ended(folder: Path) -> None:
    """Raises UserError for a run that has not come to its end: its weights are not yet what its settings make."""
    if not has_ended(folder):
        raise UserError(f"{folder} has not come to its end; go on with it by train.py --resume")


# The resumable state


def variables(model: keras.Model) -> dict[str, keras.Variable]:
    """All that a step reads and changes, by name: weights, dropout's seeds, optimizer slots, running means."""
    every = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return {f"{number:04d} {variable.path}": variable for number, variable in enumerate(every)}


class StateSaver:
    """Saves resumable states while training goes on: VGG-16's is a gigabyte, which takes a disk seconds to write.

    The variables are copied at once, then written by a thread of their own, one state at a time.

    Args:
        config: the run's; `keep_checkpoints` stay, newest first.
        writes: if not, nothing is saved: of several hosts, one writes.
    """

    def __init__(self, config: TrainConfig, writes: bool = True) -> None:
        self._folder, self._keep, self._model_file = config.run_dir, config.keep_checkpoints, config.model_file
        self._writes = writes
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._saving: Future | None = None

    def busy(self) -> bool:
        """Whether the state before is still being written."""
        return self._saving is not None and not self._saving.done()

    def save(self, model: keras.Model, progress: dict[str, Any]) -> None:
        """Begins to save all variables and `progress` as checkpoints/step_<step>, once the state before is on disk.

        Args:
            model: compiled, its optimizer and metrics built.
            progress: what JSON can hold; `progress["step"]` names the checkpoint.

        Raises:
            FloatingPointError: a variable is not finite, so nothing is saved; the message is its name.
            UserError: the state before could not be written; those before that are kept.
        """
        self.wait()
        path = self._folder / "checkpoints" / f"step_{progress['step']:08d}"
        if path.exists() or not self._writes:  # the state is a function of the step
            return
        arrays = {name: np.array(keras.ops.convert_to_numpy(value)) for name, value in variables(model).items()}
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise FloatingPointError(name.partition(" ")[2])
        sizes = {str(file.relative_to(self._folder)): file.stat().st_size for file in log_files(self._folder)}
        self._saving = self._thread.submit(self._write, path, arrays, progress | {"log_sizes": sizes})

    def _write(self, path: Path, arrays: dict[str, np.ndarray], progress: dict[str, Any]) -> None:
        def write(temporary: Path) -> None:
            for file in log_files(self._folder):
                force_to_disk(file)  # the sizes in `progress` must hold after a loss of power, too
            temporary.mkdir()
            with suppress(OSError):  # there is none yet, or the disk has no hard links
                (temporary / self._model_file).hardlink_to(self._folder / self._model_file)  # costs nothing
            np.savez(temporary / "arrays.npz", **arrays)
            (temporary / "progress.json").write_text(json.dumps(progress))

        write_atomically(path, write)
        try:
            (path.parent / SAVED).touch()
            for old in checkpoints(self._folder)[: -self._keep]:
                _discard(old)
        except OSError as error:
            raise UserError(f"{path.parent}: {error.strerror or error}; {advice_on(error)}") from None

    def wait(self) -> None:
        """Returns when the last state is on disk; raises UserError if it could not be written."""
        saving, self._saving = self._saving, None
        if saving:
            saving.result()

    def close(self) -> None:
        """Lets the last state come to its end, and the thread with it."""
        self._thread.shutdown()


def checkpoints(folder: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    parent = folder / "checkpoints"
    found = parent.iterdir() if parent.exists() else []  # an unreadable folder is an error, not an empty one
    return sorted(path for path in found if re.fullmatch(r"step_\d{8,}", path.name))


def find_checkpoint(folder: Path, name: str | None) -> Path | None:
    """The checkpoint `name`, or the newest; None where the run has none yet.

    Raises:
        UserError: there is none of that name; the message lists those that there are.
    """
    found = {path.name: path for path in checkpoints(folder)}
    if name is None:
        return next(reversed(found.values()), None)
    if name not in found:
        raise UserError(f"{folder} has no checkpoint {name!r}; it has: {', '.join(found) or 'none'}")
    return found[name]


def drop_after(checkpoint: Path) -> None:
    """Removes the checkpoints that are newer than this one, from which the run now goes on."""
    for other in checkpoints(checkpoint.parent.parent):
        if other.name > checkpoint.name:
            _discard(other)


def restore_model(checkpoint: Path, name: str) -> None:
    """Makes best.keras (or last.keras) what it was at a checkpoint: a later one is not of the run as it goes on."""
    then, now = checkpoint / name, checkpoint.parent.parent / name
    if then.exists() and not (now.exists() and then.samefile(now)):
        write_atomically(now, lambda path: shutil.copyfile(then, path))


def _advice_instead_of(path: Path) -> str:
    others = [other.name for other in checkpoints(path.parent.parent) if other.name < path.name]
    return f"try --resume-from {others[-1]}" if others else "there is none before it; start the run anew"


def read_state(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the progress of a checkpoint, whole and checked.

    Raises:
        UserError: a part is missing or damaged; the message names the checkpoint before it.
    """
    try:
        with np.load(path / "arrays.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}  # the zip's checksums are verified here
        return arrays, _read_json(path / "progress.json")
    except Exception as error:  # what a damaged zip, header or text leads to has many kinds
        raise UserError(
            f"{path} is damaged ({str(error) or type(error).__name__}); {_advice_instead_of(path)}"
        ) from None


def restore_variables(model: keras.Model, arrays: dict[str, np.ndarray], path: Path) -> None:
    """Puts a checkpoint's arrays into the model, its optimizer and its metrics.

    Raises:
        UserError: the checkpoint is another model's, or another number of classes'.
    """
    targets = {_lasting(name): (name, variable) for name, variable in variables(model).items()}
    saved = {_lasting(name): (name, array) for name, array in arrays.items()}
    for key in sorted(targets.keys() | saved.keys()):
        name, variable = targets.get(key, (None, None))
        saved_name, array = saved.get(key, (None, None))
        here, there = (None if item is None else tuple(item.shape) for item in (variable, array))
        if here != there:
            raise UserError(
                f"{path} is another model's: {(name or saved_name)!r} has shape {there} there and {here} here; "
                f"{_advice_instead_of(path)}"
            )
    for key, (_, variable) in targets.items():
        variable.assign(saved[key][1])


def _lasting(name: str) -> str:
    """The name without the counters that Keras adds when a process, a notebook say, builds a second model."""
    return re.sub(r"_\d+(?=[/_]|$)", "", name)


def log_files(folder: Path) -> list[Path]:
    """metrics.jsonl and TensorBoard's files."""
    return [path for path in (folder / "metrics.jsonl", *folder.glob("tensorboard/*/*")) if path.is_file()]


def cut_logs(folder: Path, sizes: dict[str, int]) -> None:
    """Takes the logs back to the sizes that they had at a checkpoint, so that no step is in them twice.

    One that is shorter, or gone, is left as it is, with a warning: its curves have a gap then, but the state is whole.
    """
    logs = {str(path.relative_to(folder)): path for path in log_files(folder)}
    for name in logs.keys() - sizes.keys():
        logs[name].unlink()
    for name, size in sizes.items():
        path = logs.get(name)  # of the run's own logs alone, whatever the checkpoint names
        if path and path.stat().st_size >= size:
            os.truncate(path, size)
        else:
            print(f"warning: {shown(folder / name)} has lost points since the checkpoint was saved", file=sys.stderr)
