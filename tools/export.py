"""Exports a run's model for use elsewhere: `python -m tools.export RUN --format onnx`.

The exported model computes in float32, from images (B, S, S, 3) uint8 to logits (B, C). The class names, one per line
in the order of the logits, are written next to it.
"""

import tiny_imagenet  # noqa: F401  first: it checks the environment and loads TensorFlow quietly

# isort: split

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import keras
import tyro

from tiny_imagenet.cli import command
from tiny_imagenet.errors import UserError, printable
from tiny_imagenet.file_utils import write_atomically, write_text
from tiny_imagenet.layers import copy_model
from tiny_imagenet.model_io import Run, load_run
from tiny_imagenet.terminal import quiet_stderr

SUFFIXES = {"keras": ".keras", "saved_model": "_saved_model", "onnx": ".onnx", "litert": ".tflite"}


@dataclass(frozen=True)
class Arguments:
    """Exports the model of a run."""

    run: Annotated[str, tyro.conf.Positional]
    """The run's folder, for example runs/vgg_16/default or pretrained/resnet_18."""
    format: Literal[tuple(SUFFIXES)] = "keras"
    """keras: for any program with Keras; saved_model: for TensorFlow and TensorFlow Serving; onnx: for ONNX Runtime
    (needs the package tf2onnx); litert: for phones (formerly TensorFlow Lite)."""
    output: Path | None = None
    """The file, or folder for saved_model. None: named after the model, in the current folder."""


def export(run: Run, form: str, output: Path) -> None:
    """Writes the model of a run to `output`, and its class names next to it.

    Raises:
        UserError: there is something at `output`, it has another suffix, the disk is full, or a package is missing.
    """
    names = output.with_name(f"{output.name}.classes.txt")
    for path in (output, names):
        if path.exists() or not path.parent.is_dir():
            problem = "already exists" if path.exists() else "is in a folder that does not exist"
            raise UserError(f"{printable(path)} {problem}; choose another --output")
    if form not in ("saved_model", "keras") and keras.backend.backend() != "tensorflow":
        raise UserError(f"{form} is exported by TensorFlow; leave out KERAS_BACKEND={keras.backend.backend()}")
    if form == "onnx" and importlib.util.find_spec("tf2onnx") is None:
        raise UserError(f"--format onnx needs a package; run: {sys.executable} -m pip install tf2onnx")
    if form != "saved_model" and output.suffix != SUFFIXES[form]:
        raise UserError(f"--output is {printable(output)}; its name must end in {SUFFIXES[form]}")
    model = copy_model(run.model, keras.layers.BatchNormalization, dtype="float32")
    with quiet_stderr():
        if form == "keras":
            write_atomically(output, model.save)
        else:
            options = {"format": "tf_saved_model" if form == "saved_model" else form, "verbose": False}
            options["input_signature"] = [keras.InputSpec("uint8", model.input_shape, name="images")]
            write_atomically(output, lambda path: model.export(path, **options))
    write_text(names, "".join(f"{name}\n" for name in run.class_names))


@command
def main() -> None:
    """Runs the command."""
    arguments = tyro.cli(Arguments)
    run = load_run(arguments.run)
    output = arguments.output or Path(run.config.model_name + SUFFIXES[arguments.format])
    export(run, arguments.format, output)
    size = run.config.crop_size
    print(f"wrote {printable(output)}: (B, {size}, {size}, 3) uint8 to logits (B, {len(run.class_names)}) float32")
    print(f"wrote {printable(output)}.classes.txt: the class names, in the order of the logits")


if __name__ == "__main__":
    main()
