"""A run's folder: what it holds, its description, and whether it can be resumed.

    runs/<model_name>/<config_name>/
        config.json          settings, classes, fingerprint of the data, versions, hardware
        source/              the project's sources as they were when the run began
        metrics.jsonl        one line for each point of the curves
        tensorboard/         the same and more for TensorBoard: train/ and validation/
        log.txt              what train.py printed; a resumed run adds to it
        best.keras           the most accurate model; with a schedule of fixed length last.keras, the last one
        checkpoints/         what resuming needs (checkpoint.py)

Models, checkpoints and config.json are written under another name, forced to the disk and then renamed.
"""

import filecmp
import json
import re
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import keras

from tiny_imagenet import ROOT
from tiny_imagenet.config import TrainConfig, fixed_changes, from_dict
from tiny_imagenet.dataset import Dataset
from tiny_imagenet.devices import describe_hardware, is_main_process, main_process_first, versions
from tiny_imagenet.errors import UserError
from tiny_imagenet.file_utils import disk_errors, folder_lock, remove, write_text
from tiny_imagenet.readers import parse_json, read_file, read_json


@dataclass(frozen=True)
class DataSummary:
    """The data of a run: their fingerprint, and how many training and validation images there are."""

    fingerprint: str
    train: int
    val: int


@dataclass(frozen=True)
class Description:
    """What config.json holds."""

    config: dict
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    data: DataSummary
    backend: str = "tensorflow"
    versions: dict[str, str] = field(default_factory=dict)  # with which the run began
    hardware: str = "unknown"
    resumed: tuple[str, ...] = ()  # what had changed whenever the run was resumed


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


def check_new(config: TrainConfig) -> None:
    """Raises UserError if a run of that name exists, or something in its folder that no run creates."""
    folder = config.run_dir
    if not is_main_process():  # the main process may have created it
        return
    if (folder / "config.json").exists():
        raise UserError(f"{folder} already exists; add --resume, or give this run another --config-name")
    if list_checkpoints(folder) or any(folder.glob("*.keras")):
        raise UserError(f"{folder} holds a run without its config.json; give this run another --config-name")
    _check_files(folder)


def create_run(config: TrainConfig, data: Dataset) -> Path:
    """Creates the folder of a new run; raises UserError as `check_new`."""
    check_new(config)
    folder = config.run_dir
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    for path in (*ROOT.glob("*.py"), *ROOT.glob("tiny_imagenet/*.py")):
        copy = folder / "source" / path.relative_to(ROOT)
        with disk_errors(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    write_config(config, data)  # last: it marks the folder as complete
    return folder


def check_resumable(config: TrainConfig, data: Dataset) -> None:
    """Checks that the run of `config` can be resumed with these settings, data and backend; warns of other differences.

    Raises:
        UserError: something that affects the result differs, or is missing.
    """
    folder = config.run_dir
    before, description = read_config(folder)
    _check_files(folder)
    refused = fixed_changes(before, config)
    if description.data.fingerprint != data.fingerprint:
        refused.append(f"the images or labels in {config.data_dir} are not those the run was trained on")
    if description.backend != keras.backend.backend():
        refused.append(f"KERAS_BACKEND was {description.backend}, now {keras.backend.backend()}")
    if refused:
        advice = "start a new run with another --config-name"
        advice += f", from this run's parameters with --init-from {folder}" * (folder / before.model_file).exists()
        raise UserError(f"cannot resume {folder}: {'; '.join(refused)}; {advice}")
    had_checkpoints = (folder / "checkpoints" / HAD_CHECKPOINTS).exists()
    if not (folder / "checkpoints").is_dir() or (had_checkpoints and not list_checkpoints(folder)):
        raise UserError(f"the checkpoints of {folder} are gone; start a new run with another --config-name")
    for unfinished in folder.rglob(".writing-*"):
        remove(unfinished)


def _check_files(folder: Path) -> None:
    """Raises UserError for what no run creates: links lead out of the folder, pipes and devices never end."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UserError(f"{path} is a link, a pipe or a device, which no run creates; remove it")


def _environment_changes(folder: Path, before: Description, now: Description) -> list[str]:
    """How versions, hardware and sources differ from those with which the run began."""
    changes = {name: (before.versions.get(name), version) for name, version in now.versions.items()}
    changes["hardware"] = before.hardware.split(THEN)[0], now.hardware
    lines = [f"{name} was {old}, now {new}" for name, (old, new) in changes.items() if old not in (None, new)]
    source = folder / "source"
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*.py"))
    _, differ, missing = filecmp.cmpfiles(source, ROOT, names, shallow=False)
    if differ or missing:
        lines.append(f"sources changed: {', '.join(differ + missing)}")
    return lines


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


def write_config(config: TrainConfig, data: Dataset) -> None:
    """Writes config.json; for a resumed run it adds the machine and what else changed, of which it warns."""
    if not is_main_process():
        return
    folder, path = config.run_dir, config.run_dir / "config.json"
    summary = DataSummary(data.fingerprint, len(data.train.labels), len(data.val.labels))
    backend, hardware = keras.backend.backend(), describe_hardware()
    now = Description(asdict(config), data.class_ids, data.class_names, summary, backend, versions(), hardware)
    if path.exists():
        _, before = read_config(folder)
        machines, resumed = dict.fromkeys([*before.hardware.split(THEN), hardware]), before.resumed
        if changes := "; ".join(_environment_changes(folder, before, now)):
            text = f"{folder} is resumed in another environment, so perhaps not bit for bit: {changes}"
            print(f"warning: {text}", file=sys.stderr)
            resumed = tuple(dict.fromkeys([*resumed, changes]))
        now = replace(now, versions=before.versions or now.versions, hardware=THEN.join(machines), resumed=resumed)
    write_text(path, config_text(now))


def config_text(description: Description) -> str:
    """The text of a config.json."""
    return json.dumps(asdict(description), indent=2, ensure_ascii=False) + "\n"


def read_config(folder: Path) -> tuple[TrainConfig, Description]:
    """The settings of the run in `folder`, and all of its config.json.

    Raises:
        UserError: there is no run, or its config.json is damaged.
    """
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder} is not a run (no config.json); train one with train.py")
    description = read_json(path, Description)
    return from_dict(description.config, path), description


@dataclass(frozen=True)
class Point:
    """A line of metrics.jsonl: a point of the curves, or the end of the run, which has no metrics."""

    split: Literal["train", "validation", "end"]
    seconds: float  # how long the run had trained, over all resumes
    step: int = 0
    data_loss: float | None = None
    top_1: float | None = None
    top_5: float | None = None


def _last_point(folder: Path) -> Point:
    path = folder / "metrics.jsonl"
    *_, line = (read_file(path) if path.exists() else b"").splitlines() or [b'{"split": "train", "seconds": 0}']
    return parse_json(line, Point, path)


def read_seconds(folder: Path) -> float:
    """How long a run has trained so far, in seconds, over all resumes."""
    return _last_point(folder).seconds


def has_ended(folder: Path) -> bool:
    """Whether a run has finished; False if there is none."""
    return _last_point(folder).split == "end"


def check_ended(folder: Path) -> None:
    """Raises UserError for a run that has not finished."""
    if not has_ended(folder):
        raise UserError(f"{folder} has not finished training; continue it with train.py --resume")
