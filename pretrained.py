"""Makes a run small enough to ship: `python pretrained.py runs/resnet_18/default` fills pretrained/resnet_18.

The result is opened like a run by every command that takes one: config.json with the settings and the classes, and the
weights in float16 instead of a .keras file. Its card, README.md, has the accuracy of these rounded weights.
"""

from startup import ROOT, UserError, command, command_line, keras

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import tyro

from checkpoints import ROUNDED_WEIGHTS, check_ended, load_run, read_config
from evaluate import evaluate
from files import write_atomically
from report import train_command, view, without_places

PRETRAINED = ROOT / "pretrained"
CLASSES = 200  # of Tiny ImageNet, which alone the card speaks of

CARD = """# {title}

{model}, {weights:,} weights in float16, {megabytes:.0f} MB, for the {classes} classes of Tiny ImageNet. Every command
that takes a run takes this folder: `python predict.py PICTURE... --run {place}`.

- **Data**: the {train:,} training pictures of [Tiny ImageNet](http://cs231n.stanford.edu/tiny-imagenet-200.zip),
  64x64 pixels.
- **Made by**: `{command}`, once, in {minutes:.0f} minutes on {hardware} ({versions}); then
  `python pretrained.py RUN{chosen}`, which rounds the weights.
- **Accuracy** of the rounded weights, in float32: {center_top_1:.2%} top-1 and {center_top_5:.2%} top-5 by {view};
  {ten_crops_top_1:.2%} and {ten_crops_top_5:.2%} by 10 crops; expected calibration error {center_ece:.2%}; on
  {pictures:,} validation pictures, {role}.
  Again: `python evaluate.py {place}{chosen}`.
- **Licence**: the weights come under this repository's. The pictures that they were learnt from are ImageNet's, whose
  [terms of access](https://www.image-net.org/download.php) are for non-commercial research and education: who uses the
  weights for anything else must judge what follows from that.
- **Meant for**: learning, teaching, looking inside. It knows these classes and nothing else: whatever it is shown, it
  names one of them. Photos are cut to their central square and scaled to 64x64. It has ImageNet's biases; nothing that
  matters to people may hang on it.
"""
BY_PLATEAU = "which chose the weights, so that the figures are a little too good"
BY_SCHEDULE = "which chose nothing within the run, though its settings were tuned with their help"


def rounded(model: keras.Model) -> dict[str, np.ndarray]:
    """The model's weights in float16, by their paths.

    Raises:
        UserError: one is too large for float16.
    """
    arrays = {}
    for weight in model.weights:
        value = keras.ops.convert_to_numpy(weight)
        if np.abs(value).max() > np.finfo("float16").max:
            raise UserError(f"{weight.path} has values up to {np.abs(value).max():.3g}, too large for float16")
        arrays[weight.path] = value.astype("float16")
    return arrays


def ship(run: Path, data_dir: str | None = None, pictures: Path | None = None) -> Path:
    """Writes pretrained/<model_name> of a run, with the accuracy of the rounded weights on its card.

    Args:
        run: the run's folder.
        data_dir: the dataset's folder; by default the one that the run was trained on.
        pictures: a file that names the validation pictures to evaluate on; None: all.

    Returns:
        The folder; what it held before is replaced at the end, when all is made.

    Raises:
        UserError: the run has not come to its end, is not one of Tiny ImageNet, or has weights too large for float16.
    """
    config, description = read_config(run)
    check_ended(run)
    if (count := len(description["class_ids"])) != CLASSES:
        raise UserError(f"{run} has {count} classes, Tiny ImageNet has {CLASSES}; it does not ship")
    arrays = rounded(load_run(run).model)
    description["config"]["precision"] = "float32"  # which every machine has; the weights were rounded already
    folder = PRETRAINED / config.model_name
    place = folder.relative_to(ROOT)
    with TemporaryDirectory() as name:
        made = Path(name)
        (made / "config.json").write_text(without_places(description), encoding="utf-8")
        np.savez_compressed(made / ROUNDED_WEIGHTS, **arrays)
        shutil.copyfile(run / "metrics.jsonl", made / "metrics.jsonl")
        row = evaluate(made, data_dir or config.data_dir, pictures)
        card = CARD.format(
            **row,
            title=f"{config.model_name} on Tiny ImageNet",
            classes=len(description["class_ids"]),
            place=place,
            train=description["data"]["train"],
            command=train_command(config, description.get("backend", "tensorflow")),
            minutes=row["seconds"] / 60,
            hardware=description["hardware"],
            role=BY_PLATEAU if config.schedule == "plateau" else BY_SCHEDULE,
            view=f"the {view(config)}",
            megabytes=(made / ROUNDED_WEIGHTS).stat().st_size / 1e6,
            versions=", ".join(f"{name} {version}" for name, version in description["versions"].items()),
            chosen=f" --pictures {pictures}" if pictures else "",
        )
        (made / "README.md").write_text(card, encoding="utf-8")
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(made.iterdir()):
            write_atomically(folder / file.name, partial(shutil.copyfile, file))
    return folder


@dataclass(frozen=True)
class Arguments:
    """Makes a run of Tiny ImageNet small enough to ship."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder, for example runs/resnet_18/default."""
    data_dir: str | None = None
    """The dataset's folder; by default the one that the run was trained on."""
    pictures: Path | None = None
    """A text file with the names of the validation pictures to evaluate on, one a line; by default all of them."""


@command
def main() -> None:
    """Runs the command."""
    arguments = command_line(Arguments)
    print(ship(arguments.run, arguments.data_dir, arguments.pictures))


if __name__ == "__main__":
    main()
