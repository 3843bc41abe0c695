"""Predicts what is in any photo: `python predict.py IMAGE... [--run RUN] [--output grid.png]`.

A photo is turned upright as its EXIF data says, and its central square is scaled to 64x64 pixels like the images that
the model was trained on. The model sees their center or, if it was trained on scaled images, all of them, scaled.
"""

import tiny_imagenet  # noqa: F401  first: it checks the environment and loads TensorFlow quietly

# isort: split
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import keras
import numpy as np
import tyro
from matplotlib.figure import Figure

from input_pipe import eval_preprocessing
from tiny_imagenet.cli import command
from tiny_imagenet.errors import UserError, printable
from tiny_imagenet.file_utils import write_atomically
from tiny_imagenet.images import read_image
from tiny_imagenet.model_io import Run, check_finite, find_run, load_run
from tiny_imagenet.plots import Prediction, prediction_grid
from tiny_imagenet.saliency import SALIENCY, conv_layer_names

BATCH_SIZE = 32  # images that are read and predicted at a time
PRETRAINED = "pretrained/resnet_18"  # the run that is used without --run
MAX_DRAWN = 50  # images in one figure; more would make it too tall to look at
NO_IMAGES = "no images given; name one or more, or use - to read their names from standard input"


@dataclass(frozen=True)
class Arguments:
    """Predicts what is in images: the most probable classes and, with --output, where the model looks."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")]
    """JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF and other image files of any size; - reads their names from standard input,
    one per line."""
    run: str | None = None
    """The run whose model is used, such as runs/vgg_16/default. None: pretrained/resnet_18."""
    output: Path | None = None
    """Also draw the images, their classes as bars and their saliency maps into this file (.png, .pdf, .svg, .jpg)."""
    top: int = 5
    """How many classes to name per image (1 or more)."""
    saliency: Literal[tuple(SALIENCY)] | None = None
    """The method for the saliency maps in --output; gradient is that of 2017. None: grad_cam or, for a model without
    convolutions, gradient."""


def predict(
    run: Run, images: np.ndarray, titles: Sequence[str], top: int = 5, method: str | None = None, labels=None
) -> list[Prediction]:
    """Predicts the classes of images, and computes the saliency maps of their best classes.

    Args:
        run: from `load_run`.
        images: (B, 64, 64, 3) uint8; they are cropped or scaled as in the run's own evaluation.
        titles: B, to tell the images apart.
        top: how many classes to name; all if there are fewer.
        method: a name in SALIENCY; None: no maps.
        labels: B, the true classes, if they are known.

    Returns:
        B predictions.

    Raises:
        UserError: the method does not work with this model.
    """
    crops = np.asarray(eval_preprocessing(images, run.config))
    logits = run.model.predict(crops, verbose=0)  # (B, C) float32
    check_finite(f"the output of {run.config.model_name}", logits)
    probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
    best = np.argsort(-logits, axis=1, kind="stable")[:, :top]  # (B, top)
    maps = SALIENCY[method](run.model, crops, best[:, 0]) if method else [None] * len(crops)
    names = [tuple(run.class_names[label] for label in row) for row in best]
    shares = [tuple(map(float, p[row])) for p, row in zip(probabilities, best, strict=True)]
    true_names = [None] * len(crops) if labels is None else [run.class_names[label] for label in labels]
    return [Prediction(*fields) for fields in zip(titles, crops, names, shares, maps, true_names, strict=True)]


@command
def main() -> int:
    """Runs the command; returns 1 if an image could not be read."""
    arguments = tyro.cli(Arguments)
    _check(arguments)
    output, run = arguments.output, _open_run(arguments.run)
    method = arguments.saliency or ("grad_cam" if conv_layer_names(run.model) else "gradient")
    files, drawn, count, failed = _read_images(_list_names(arguments.images), output), [], 0, 0
    while batch := list(islice(files, BATCH_SIZE)):
        readable = [(title, image) for title, image in batch if image is not None]
        count, failed = count + len(batch), failed + len(batch) - len(readable)
        if readable:
            titles, images = zip(*readable, strict=True)
            with_maps = output and len(drawn) < MAX_DRAWN
            predictions = predict(run, np.stack(images), titles, arguments.top, method if with_maps else None)
            print(*map(_format, predictions), sep="\n")
            drawn += predictions[: MAX_DRAWN - len(drawn)]
    if not count:
        raise UserError(NO_IMAGES)
    if output and drawn:
        figure = prediction_grid([replace(item, title=printable(Path(item.title).name)) for item in drawn], method)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box
            write_atomically(output, lambda temporary: figure.savefig(temporary))
        print(f"wrote {printable(output)}: {len(drawn)} of {count - failed} images")
    return 1 if failed else 0


def _check(arguments: Arguments) -> None:
    """Checks everything that can be checked before the slow part begins."""
    output = arguments.output
    if not arguments.images:
        raise UserError(NO_IMAGES)
    if arguments.top < 1:
        raise UserError(f"--top is {arguments.top}; it must be 1 or more")
    if output is None:
        if arguments.saliency:
            raise UserError("--saliency needs a file to draw into; add --output, for example --output grid.png")
        return
    known = Figure().canvas.get_supported_filetypes()
    if output.suffix.lower().removeprefix(".") not in known:
        raise UserError(f"--output is {output}; its name must end in .png, or one of: {', '.join(known)}")
    if not output.parent.is_dir() or output.is_dir():
        raise UserError(f"--output is {output}; it must be a file in a folder that exists")


def _open_run(folder: str | None) -> Run:
    run = load_run(find_run(folder or PRETRAINED))
    if folder:
        print(f"{printable(folder)}: {run.config.model_name}, {len(run.class_names)} classes")
    else:
        print(f"no --run given: using {PRETRAINED} ({len(run.class_names)} Tiny ImageNet classes)")
    if run.config.loss == "svm":
        print("it was trained as an SVM: the percentages rank the classes, but they are not probabilities")
    return run


def _list_names(arguments: Iterable[str]) -> Iterator[str]:
    """The arguments, with the lines of standard input in place of `-`."""
    for argument in arguments:
        if argument == "-":
            sys.stdin.reconfigure(errors="surrogateescape")  # file names may hold any bytes
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        else:
            yield argument


def _read_images(names: Iterable[str], output: Path | None) -> Iterator[tuple[str, np.ndarray | None]]:
    """The title and image (64, 64, 3) of each file; for one that cannot be read, None, and an error on stderr."""
    for name in names:
        with suppress(OSError, ValueError):  # a file that cannot be found is reported when it is read
            if output and output.samefile(name):
                raise UserError(f"--output is {output}, one of the images; choose another, or it would be lost")
        try:
            yield name, read_image(name)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            yield name, None


def _format(prediction: Prediction) -> str:
    lines = [f"  {100 * p:5.1f} %  {name}" for name, p in zip(prediction.names, prediction.probabilities, strict=True)]
    return "\n".join([printable(prediction.title), *lines])


if __name__ == "__main__":
    main()
