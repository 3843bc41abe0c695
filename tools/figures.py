"""Draws the images of README.md and docs/: `python -m tools.figures` writes docs/images/.

The photographs are scikit-image's samples, so it needs one more package: `pip install scikit-image`.
"""

import tiny_imagenet  # first: it loads TensorFlow quietly

# isort: split

from pathlib import Path

import numpy as np
import skimage

from predict import PRETRAINED, predict
from tiny_imagenet.file_utils import write_atomically
from tiny_imagenet.filters import filter_images
from tiny_imagenet.images import read_image
from tiny_imagenet.model_io import load_run
from tiny_imagenet.plots import filter_figure, prediction_grid

IMAGES = tiny_imagenet.ROOT / "docs" / "images"
PHOTOGRAPHS = ("coffee.png", "chelsea.png", "rocket.jpg")  # in the public domain; README.md credits them
METHOD, LAYER = "grad_cam", "conv2_1a"
DPI = 160  # sharp at the width of a page on a screen with small pixels


def main() -> None:
    """Draws what the pretrained model predicts for the photographs, and the filters of its second convolution."""
    run, folder = load_run(tiny_imagenet.ROOT / PRETRAINED), Path(skimage.__file__).parent / "data"
    images = np.stack([read_image(folder / name) for name in PHOTOGRAPHS])
    tiles = filter_images(run.model, LAYER)
    title = f"{run.config.model_name}, {LAYER}: what its {len(tiles)} filters respond to"
    figures = {
        "predictions.png": prediction_grid(predict(run, images, PHOTOGRAPHS, method=METHOD), METHOD),
        "filters.png": filter_figure(tiles, title),
    }
    IMAGES.mkdir(exist_ok=True)
    for name, figure in figures.items():
        write_atomically(IMAGES / name, lambda path, figure=figure: figure.savefig(path, dpi=DPI))
        print(f"wrote {IMAGES / name}")


if __name__ == "__main__":
    main()
