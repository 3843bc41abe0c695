"""Draws the images of README.md and docs/inside.md: `python -m tools.figures`.

docs/images/ holds what it reads, photographs in the public domain, which README.md credits, and what it writes.
"""

import tiny_imagenet  # first: it loads TensorFlow quietly

# isort: split

import numpy as np

from predict import PRETRAINED, predict
from tiny_imagenet.file_utils import write_atomically
from tiny_imagenet.filters import filter_images
from tiny_imagenet.images import read_image
from tiny_imagenet.model_io import load_run
from tiny_imagenet.plots import filter_figure, prediction_grid

IMAGES = tiny_imagenet.ROOT / "docs" / "images"
PHOTOGRAPHS = ("coffee.jpg", "cat.jpg", "rocket.jpg")
METHOD, LAYER = "grad_cam", "conv2_1a"
DPI = 160  # sharp on a screen with small pixels


def main() -> None:
    """Draws what the pretrained model predicts for the photographs, and the filters of its second convolution."""
    run = load_run(tiny_imagenet.ROOT / PRETRAINED)
    images, tiles = np.stack([read_image(IMAGES / name) for name in PHOTOGRAPHS]), filter_images(run.model, LAYER)
    predictions = predict(run, images, PHOTOGRAPHS, method=METHOD)
    figures = {
        "predictions.png": prediction_grid(predictions, METHOD),
        "filters.png": filter_figure(tiles, f"{LAYER} of {run.config.model_name}: {len(tiles)} filters"),
    }
    for name, figure in figures.items():
        write_atomically(IMAGES / name, lambda path, figure=figure: figure.savefig(path, dpi=DPI))
        print(f"wrote {IMAGES / name}")


if __name__ == "__main__":
    main()
