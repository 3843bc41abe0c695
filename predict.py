"""Says what a trained model sees in any photo: `python predict.py PICTURE... [--run RUN] [--output grid.png]`.

A photo becomes what the model was trained on: turned upright as its EXIF data says, its central square scaled down to
64x64 pixels. Of these the model sees the middle or, if it was trained on scaled squares, all, scaled.
"""

from startup import ROOT, UserError, command, command_line, keras

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from checkpoints import Run, load_run, read_config
from config import PICTURE_SIZE
from dataset import Dataset
from files import shown, write_atomically
from input_pipe import eval_preprocessing
from visualize import SALIENCY, Prediction, prediction_grid

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # Pillow knows more, some of which start programs
BATCH_SIZE = 32  # pictures read, and given to the model, at a time
SHIPPED = ROOT / "pretrained" / "resnet_18"  # the run that is asked where none is named
NO_PICTURE = "no picture is given; name one or more, or - for a list on standard input"
MOST_SHOWN = 100  # pictures in one figure, the first ones: a taller one is of no use


@dataclass(frozen=True)
class Arguments:
    """Says what a trained model sees in pictures: its most probable classes, and with --output where it looked."""

    pictures: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE...")]
    """JPEG, PNG, WebP, GIF, BMP, TIFF or PPM files of any size; - reads a list of them, one a line, from standard
    input."""
    run: str | None = None
    """The folder of the run whose model is asked, such as runs/vgg_16/default; without it, the net that ships."""
    output: str | None = None
    """Also draw the pictures, their classes as bars and their saliency maps into this file (.png, .pdf, .svg, .jpg)."""
    top: int = 5
    """How many classes to name (1 or more)."""
    saliency: Literal[tuple(SALIENCY)] | None = None
    """How --output finds the pixels that the answer hangs on; without it, by gradient."""


# Pictures


def read_picture(path: str | Path) -> np.ndarray:
    """A picture file as the model's data are: upright, its central square scaled to 64x64.

    Args:
        path: of any size; grey, CMYK, 16-bit and palette pictures become RGB, what is transparent becomes white; of an
            animation, the first picture.

    Returns:
        (64, 64, 3) uint8.

    Raises:
        UserError: it is a folder, is not there or is not a picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of large pictures and odd EXIF data
            with Image.open(path, formats=FORMATS) as image:
                return np.asarray(_square(_rgb(ImageOps.exif_transpose(image))))
    except IsADirectoryError:
        raise UserError(f"{shown(path)} is a folder; give the pictures in it") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"{shown(path)} is not a picture that can be read ({', '.join(FORMATS)})") from None
    except Exception as error:  # Pillow raises many kinds on damaged data
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__
        raise UserError(f"{shown(path)} cannot be read ({reason})") from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits a pixel, which convert() would cut off at 255
        levels = np.nan_to_num(np.asarray(image, "float64"))
        scales = [1.0] * (image.mode == "F") + [255, 65535, levels.max()]  # which one is meant, the levels must tell
        white = next(scale for scale in scales if levels.max() <= scale)
        image = Image.fromarray(np.rint(255 * (levels / max(white, 1)).clip(0, 1)).astype("uint8"))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _square(image: Image.Image) -> Image.Image:
    """The central square, scaled by a filter that averages all the pixels that fall into one."""
    return ImageOps.fit(image, (PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.LANCZOS)


# The model


def open_run(folder: str | Path | None) -> Run:
    """The run in `folder`; where none is named, the net that ships with the repository, which is said."""
    if not folder:
        print("no run is named: the net that ships is asked")
    run = load_run(folder or SHIPPED)
    place = run.folder.relative_to(ROOT) if run.folder.is_relative_to(ROOT) else run.folder
    print(f"{place}: {run.config.model_name}, {len(run.class_names)} classes")
    if run.config.loss == "svm":
        print("it was trained as an SVM: its per cents put the classes in order, but are no probabilities")
    return run


def runs_on(data: Dataset, runs_dir: str | Path) -> Iterator[Run]:
    """Opens, one after the other, the runs that were trained on exactly these data; says which it cannot open, and why.

    Args:
        data: the dataset.
        runs_dir: holds the runs as <model_name>/<config_name>/.
    """
    for path in sorted(Path(runs_dir).glob("*/*/config.json")):
        try:
            if read_config(path.parent)[1]["data"].get("fingerprint") == data.fingerprint:
                yield load_run(path.parent)
        except UserError as error:
            print(f"left out: {error}")


def predict(
    run: Run,
    pictures: np.ndarray,
    titles: Sequence[str],
    top: int = 5,
    method: str | None = None,
    labels: Sequence[int] | None = None,
) -> list[Prediction]:
    """What a run's model says of pictures.

    Args:
        run: as `load_run` gives it.
        pictures: (B, 64, 64, 3) uint8; the model sees their central crop, or all of them, scaled, as in its training.
        titles: B, to tell them apart.
        top: classes to name; all where there are fewer.
        method: a name in SALIENCY; None leaves the maps out.
        labels: B, the true classes, where they are known.

    Returns:
        B predictions.

    Raises:
        UserError: the method does not fit the model.
    """
    crops = np.asarray(eval_preprocessing(pictures, run.config))
    logits = run.model.predict(crops, verbose=0)  # (B, C) float32
    probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
    best = np.argsort(-logits, axis=1, kind="stable")[:, :top]  # (B, top)
    maps = SALIENCY[method](run.model, crops, best[:, 0]) if method else [None] * len(crops)
    return [
        Prediction(
            title=titles[i],
            picture=crops[i],
            names=tuple(run.class_names[label] for label in best[i]),
            probabilities=tuple(float(p) for p in probabilities[i, best[i]]),
            saliency=maps[i],
            true_name=None if labels is None else run.class_names[labels[i]],
        )
        for i in range(len(crops))
    ]


# The command


@command
def main() -> int:
    """Runs the command; returns 1 where a picture could not be read."""
    arguments = command_line(Arguments)
    _check(arguments)
    run = open_run(arguments.run)
    method = (arguments.saliency or "gradient") if arguments.output else None
    paths, kept, given, failed = _paths(arguments.pictures), [], 0, 0
    while batch := list(islice(paths, BATCH_SIZE)):
        readable = _readable(batch)
        given, failed = given + len(batch), failed + len(batch) - len(readable)
        if readable:
            names, pictures = zip(*readable, strict=True)
            found = predict(run, np.stack(pictures), names, arguments.top, method if len(kept) < MOST_SHOWN else None)
            print(*map(_table, found), sep="\n")
            short = [replace(prediction, title=Path(prediction.title).name) for prediction in found]
            kept += short[: MOST_SHOWN - len(kept)] if method else []
    if not given:
        raise UserError(NO_PICTURE)
    if kept:
        _draw(prediction_grid(kept, method), Path(arguments.output))
        first = "the first " * (given - failed > len(kept))
        print(f"wrote {arguments.output}: {first}{len(kept)} picture{'s'[: len(kept) != 1]}")
    return 1 if failed else 0


def _check(arguments: Arguments) -> None:
    """What can be found wrong before anything slow begins."""
    if not arguments.pictures:
        raise UserError(NO_PICTURE)
    if arguments.top < 1:
        raise UserError(f"top is {arguments.top}; it must be 1 or more")
    if arguments.output is None:
        if arguments.saliency:
            raise UserError("--saliency draws into --output; give one, such as --output grid.png")
        return
    output = Path(arguments.output)
    known = Figure().canvas.get_supported_filetypes()
    if output.suffix.lower().removeprefix(".") not in known:
        raise UserError(f"{shown(output)} has no ending of a picture; use .png, or one of: {', '.join(known)}")
    if not output.parent.is_dir():
        raise UserError(f"{shown(output.parent)} is not a folder; make it first, or choose another --output")
    if output.is_dir():
        raise UserError(f"{shown(output)} is a folder; choose another --output")
    if output.exists() and any(Path(path).exists() and output.samefile(path) for path in arguments.pictures):
        raise UserError(f"{shown(output)} is one of the pictures, and would be lost; choose another --output")


def _paths(pictures: Iterable[str]) -> Iterator[str]:
    """The arguments, with the lines of standard input in the place of `-`."""
    for picture in pictures:
        if picture == "-":
            with suppress(AttributeError):  # of a test's own stream
                sys.stdin.reconfigure(errors="surrogateescape")  # a name may have any bytes
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        else:
            yield picture


def _readable(paths: Iterable[str]) -> list[tuple[str, np.ndarray]]:
    """Path and picture (64, 64, 3) of those that can be read; each of the others gets its line on standard error."""
    pictures = []
    for path in paths:
        try:
            pictures.append((path, read_picture(path)))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
    return pictures


def _table(prediction: Prediction) -> str:
    lines = [f"  {100 * p:5.1f} %  {name}" for name, p in zip(prediction.names, prediction.probabilities, strict=True)]
    return "\n".join([shown(prediction.title), *lines])


def _draw(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box
        write_atomically(path, lambda temporary: figure.savefig(temporary))


if __name__ == "__main__":
    main()
