"""Makes a run small enough to ship: `python -m tools.export_pretrained runs/resnet_18/default`.

It writes pretrained/MODEL, which every command that takes a run opens like one: config.json, and the weights in float16
instead of a .keras file. The model card, README.md, has the accuracy of these rounded weights.
"""

import tiny_imagenet  # noqa: F401  first: it loads TensorFlow quietly

# isort: split

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import keras
import numpy as np
import tyro

from evaluate import evaluate
from tiny_imagenet import ROOT
from tiny_imagenet.cli import command
from tiny_imagenet.errors import UserError
from tiny_imagenet.file_utils import write_atomically
from tiny_imagenet.model_io import ROUNDED_WEIGHTS, load_run
from tiny_imagenet.run_dir import check_ended, read_config
from tools.report import portable_config, train_command, view

PRETRAINED = ROOT / "pretrained"
NUM_CLASSES = 200  # of Tiny ImageNet; the card describes no other dataset

CARD = """# {model} on Tiny ImageNet

{model} with {parameters:,} parameters in float16, {megabytes:.0f} MB, for the {classes} classes of Tiny ImageNet. Every
command that takes a run takes this folder: `python predict.py IMAGE... --run {place}`.

- **Data**: the {train:,} training images of [Tiny ImageNet](http://cs231n.stanford.edu/tiny-imagenet-200.zip), 64x64
  pixels.
- **Training**: `{command}`, one run of {minutes:.0f} minutes on {hardware} ({versions}). Then
  `python -m tools.export_pretrained RUN{chosen}` rounded the weights.
- **Accuracy** of the rounded weights, in float32, on {images:,} validation images: single-crop ({view})
  {single_crop_top_1:.2%} top-1 and {single_crop_top_5:.2%} top-5; 10-crop {ten_crop_top_1:.2%} top-1 and
  {ten_crop_top_5:.2%} top-5; expected calibration error {calibration_error:.2%}. {selection}{note}
  To reproduce: `python evaluate.py {place}{chosen}`.
- **License**: the weights are under the license of this repository. The images that they were trained on are
  ImageNet's, whose [terms of access](https://www.image-net.org/download.php) are for non-commercial research and
  education. If you use the weights for anything else, check what that means for you.
- **Intended use**: learning, teaching, looking inside a model. It only knows these classes and names one of them for
  any image. Photos are cropped to the central square and scaled to 64x64. It has ImageNet's biases; do not use it for
  decisions that matter to people.
"""
SELECTED = "These images selected the checkpoint, so the accuracy is slightly too high."
NOT_SELECTED = "These images did not select the checkpoint, but the settings were tuned on them."


def round_weights(model: keras.Model) -> dict[str, np.ndarray]:
    """The model's weights in float16, by path; raises UserError if one is too large for float16."""
    arrays = {}
    for weight in model.weights:
        value = keras.ops.convert_to_numpy(weight)
        if np.abs(value).max() > np.finfo("float16").max:
            raise UserError(f"{weight.path} has values up to {np.abs(value).max():.3g}, too large for float16")
        arrays[weight.path] = value.astype("float16")
    return arrays


def export(run: Path, data_dir: str | None = None, images: Path | None = None, note: str = "") -> Path:
    """Writes pretrained/MODEL from a run, with the accuracy of the rounded weights on its card.

    Args:
        run: the run's folder.
        data_dir: the dataset's folder; None: the one that the run was trained on.
        images: a file that lists the validation images to evaluate on; None: all.
        note: a sentence for the card, about the accuracy.

    Returns:
        The folder; its previous contents are replaced at the end, once everything is complete.

    Raises:
        UserError: the run has not finished, is not one of Tiny ImageNet, or has weights too large for float16.
    """
    config, description = read_config(run)
    check_ended(run)
    if (classes := len(description.class_ids)) != NUM_CLASSES:
        raise UserError(f"{run} has {classes} classes, not Tiny ImageNet's {NUM_CLASSES}; choose another run")
    arrays = round_weights(load_run(run).model)
    shipped = replace(config, precision="float32")  # which every machine supports
    folder = PRETRAINED / config.model_name
    with TemporaryDirectory() as temporary:
        made = Path(temporary)
        (made / "config.json").write_text(portable_config(shipped, description), encoding="utf-8")
        np.savez_compressed(made / ROUNDED_WEIGHTS, **arrays)
        shutil.copyfile(run / "metrics.jsonl", made / "metrics.jsonl")
        row = evaluate(made, data_dir or config.data_dir, images)
        card = CARD.format(
            **row,
            classes=classes,
            place=folder.relative_to(ROOT),
            train=description.data.train,
            command=train_command(config, description.backend),
            minutes=row["seconds"] / 60,
            hardware=description.hardware,
            selection=SELECTED if config.schedule == "plateau" else NOT_SELECTED,
            note=f" {note}" * bool(note),
            view=view(config),
            megabytes=(made / ROUNDED_WEIGHTS).stat().st_size / 1e6,
            versions=", ".join(f"{name} {version}" for name, version in description.versions.items()),
            chosen=f" --images {images}" if images else "",
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
    """The dataset's folder. Default: the one that the run was trained on."""
    images: Path | None = None
    """A text file with the names of the validation images to evaluate on, one per line. Default: all of them."""
    note: str = ""
    """A sentence to add to the accuracy on the card, for example about other images."""


@command
def main() -> None:
    """Runs the command."""
    arguments = tyro.cli(Arguments)
    print(export(arguments.run, arguments.data_dir, arguments.images, arguments.note))


if __name__ == "__main__":
    main()
