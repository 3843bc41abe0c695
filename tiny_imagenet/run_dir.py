"""A run's folder: what it holds, its description, and whether it can be resumed.

    runs/<model_name>/<config_name>/
        config.json          settings, classes, fingerprint of the data, versions, hardware
        source/              the project's sources as they were when the run began
        metrics.jsonl        one line for each point of the curves
        tensorboard/         the same and more for TensorBoard: train/ and validation/
        best.keras           the model with the best validation accuracy; with a schedule of fixed length,
        last.keras           the model as it was last evaluated
        checkpoints/         what resuming needs (checkpoint.py)

Everything is first written under another name, forced to the disk and then renamed: a crash or a full disk leaves the
previous version.
"""

import importlib
import json
import platform
import re
import shutil
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras

from tiny_imagenet import ROOT
from tiny_imagenet.config import TrainConfig, differences, from_dict
from tiny_imagenet.dataset import Dataset
from tiny_imagenet.devices import describe_hardware, is_main_process, main_process_first
from tiny_imagenet.errors import UserError, printable
from tiny_imagenet.file_utils import folder_lock, read_json, remove, write_text

CHANGEABLE = {
    "config_name",  # the folder may have been renamed
    "data_dir",  # the data's fingerprint counts, not its place
    "packed_dir",
    "runs_dir",
    "skip_bad_images",
    "require_gpu",
    "num_epochs",  # with the plateau schedule
    "summary_interval",
    "histogram_interval",
    "checkpoint_interval",
    "keep_checkpoints",
}
"""The settings that may change when a run is resumed: none affects what a step computes."""

HAD_CHECKPOINTS = "saved"  # an empty file in checkpoints/ that tells a run without checkpoints from one that lost them
THEN = "; then "  # between the machines of a run that was resumed on another one


# Begin or resume a run


@contextmanager
def run_folder(config: TrainConfig, data: Dataset, resume: bool):
    """Creates the run's folder, or checks that the existing run can be resumed, and locks it for this process.

    Raises:
        UserError: as `create_run` or, to resume, as `check_resumable`; or another train.py has locked the folder.
    """
    folder = config.run_dir
    with ExitStack() as stack:
        with main_process_first():
            if resume:
                read_config(folder)  # creates nothing for a run that does not exist
            if is_main_process():
                folder.mkdir(parents=True, exist_ok=True)
                refusal = f"{folder} is being trained by another train.py; wait for it to finish, or stop it"
                stack.enter_context(folder_lock(folder, refusal))
                (check_resumable if resume else create_run)(config, data)
        yield folder


def create_run(config: TrainConfig, data: Dataset) -> Path:
    """Creates the folder of a new run; raises UserError if a run of that name exists."""
    folder = config.run_dir
    if (folder / "config.json").exists():
        raise UserError(f"{folder} already exists; add --resume, or give this run another --config-name")
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    if list_checkpoints(folder) or any(folder.glob("*.keras")):
        raise UserError(f"{folder} holds a run without its config.json; give this run another --config-name")
    for path in _sources():
        copy = folder / "source" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    write_config(config, data)  # last: it marks the folder as complete
    return folder


def check_resumable(config: TrainConfig, data: Dataset) -> None:
    """Checks that the run of `config` can be resumed with these settings, data and backend; warns of other differences.

    Raises:
        UserError: something that affects the result differs, or is missing.
    """
    folder = config.run_dir
    before, description = read_config(folder)
    fixed = {"num_epochs"} if config.schedule != "plateau" else set()
    changes = differences(before, config).items()
    refused = [f"{name} was {old}, now {new}" for name, (old, new) in changes if name not in CHANGEABLE - fixed]
    if description["data"].get("fingerprint") != data.fingerprint:
        refused.append(f"the images or labels in {config.data_dir} are not those the run was trained on")
    if description.get("backend") != keras.backend.backend():
        refused.append(f"KERAS_BACKEND was {description.get('backend')}, now {keras.backend.backend()}")
    if refused:
        raise UserError(f"cannot resume {folder}: {'; '.join(refused)}; start a new run with another --config-name")
    had_checkpoints = (folder / "checkpoints" / HAD_CHECKPOINTS).exists()
    if not (folder / "checkpoints").is_dir() or (had_checkpoints and not list_checkpoints(folder)):
        raise UserError(f"the checkpoints of {folder} are gone; start a new run with another --config-name")
    if links := [path for path in folder.rglob("*") if path.is_symlink()]:
        raise UserError(f"{links[0]} is a symbolic link, which no run creates; replace it with the file, or remove it")
    if changes := _environment_changes(folder, description):
        print(f"warning: {folder} is resumed in another environment, so not bit for bit: {changes}", file=sys.stderr)
    for unfinished in folder.rglob(".writing-*"):
        remove(unfinished)


def _environment_changes(folder: Path, description: dict[str, Any]) -> str:
    """How sources, versions and hardware differ from those with which the run began."""
    versions_before, now = description.get("versions"), versions()
    before = versions_before if isinstance(versions_before, dict) else now
    changes = [
        f"{name} was {before[name]}, now {now[name]}" for name in now if before.get(name, now[name]) != now[name]
    ]
    hardware = str(description.get("hardware", "unknown")).split(THEN)[0]
    if hardware != describe_hardware():
        changes.append(f"the hardware was {hardware}, now {describe_hardware()}")
    copies = {path: folder / "source" / path.relative_to(ROOT) for path in _sources()}
    changed = [p.name for p, copy in copies.items() if not copy.exists() or copy.read_bytes() != p.read_bytes()]
    if changed:
        changes.append(f"sources changed: {', '.join(changed)}")
    return "; ".join(changes)


def _sources() -> list[Path]:
    return sorted([*ROOT.glob("*.py"), *ROOT.glob("tiny_imagenet/*.py")])


# checkpoints/ (checkpoint.py has their contents)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of the run in `folder`, oldest first."""
    parent = folder / "checkpoints"
    found = parent.iterdir() if parent.exists() else []  # an unreadable folder is an error, not an empty one
    return sorted(path for path in found if re.fullmatch(r"step_\d{8,}", path.name))


def find_checkpoint(folder: Path, name: str | None) -> Path | None:
    """The checkpoint `name`, or the newest; None if the run has none yet. Raises UserError for an unknown name."""
    found = {path.name: path for path in list_checkpoints(folder)}
    if name is None:
        return next(reversed(found.values()), None)
    if name not in found:
        raise UserError(f"{folder} has no checkpoint {name!r}; it has: {', '.join(found) or 'none'}")
    return found[name]


# config.json


def versions() -> dict[str, str]:
    """The versions of everything that computes a step."""
    packages = ["keras", "tensorflow", "numpy", *(["jax", "jaxlib"] if keras.backend.backend() == "jax" else [])]
    return {"python": platform.python_version()} | {
        name: importlib.import_module(name).__version__ for name in packages
    }


def write_config(config: TrainConfig, data: Dataset) -> None:
    """Writes config.json; for a resumed run it adds the machine and what else changed."""
    if not is_main_process():
        return
    path = config.run_dir / "config.json"
    description = {
        "config": asdict(config),
        "class_ids": list(data.class_ids),
        "class_names": list(data.class_names),
        "data": {"fingerprint": data.fingerprint, "train": len(data.train.labels), "val": len(data.val.labels)},
        "backend": keras.backend.backend(),
        "versions": versions(),
        "hardware": describe_hardware(),
    }
    if path.exists():
        before = read_json(path)
        description["versions"] = before.get("versions", description["versions"])
        machines = str(before.get("hardware", "unknown")).split(THEN)
        description["hardware"] = THEN.join(dict.fromkeys([*machines, description["hardware"]]))
        changes = {_environment_changes(config.run_dir, before): None}
        description["resumed"] = [line for line in dict.fromkeys(before.get("resumed", [])) | changes if line]
    write_text(path, json.dumps(description, indent=2, ensure_ascii=False) + "\n")


def read_config(folder: Path) -> tuple[TrainConfig, dict[str, Any]]:
    """The settings of the run in `folder`, and all of its config.json.

    Raises:
        UserError: there is no run, or its config.json is damaged.
    """
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder} is not a run (no config.json); train one with train.py")
    description = read_json(path)
    for key, kind in (("config", dict), ("class_ids", list), ("class_names", list), ("data", dict)):
        if not isinstance(description.get(key), kind):
            raise UserError(f"{path} has no {key!r}; train.py did not write it")
    for key in ("class_ids", "class_names"):
        description[key] = [printable(str(name)) for name in description[key]]
    return from_dict(description["config"], path), description


# metrics.jsonl


def _last_line(folder: Path) -> tuple[str, float]:
    """The last point of a run's curves, or "end" once the run has finished; and the seconds of training until then."""
    path = folder / "metrics.jsonl"
    try:
        *_, line = path.read_text(encoding="utf-8").splitlines() or ['{"split": "start", "seconds": 0}']
        point = json.loads(line)
        return str(point["split"]), float(point["seconds"])
    except FileNotFoundError:
        return "start", 0.0
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error!r}); restore the run's own file") from None


def read_seconds(folder: Path) -> float:
    """How long a run has trained so far, in seconds, over all resumes."""
    return _last_line(folder)[1]


def has_ended(folder: Path) -> bool:
    """Whether a run has finished; False if there is none."""
    return _last_line(folder)[0] == "end"


def check_ended(folder: Path) -> None:
    """Raises UserError for a run that has not finished."""
    if not has_ended(folder):
        raise UserError(f"{folder} has not finished training; continue it with train.py --resume")
