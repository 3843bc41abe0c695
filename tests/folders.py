"""Draws small dataset folders for the tests."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

CLASS_IDS = ("n03", "n01", "n02")  # not sorted: the label is the place in wnids.txt


def picture(seed: int, size=(64, 64), mode: str = "RGB", form: str = "JPEG", **options) -> bytes:
    """An encoded picture: smooth noise from a seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR).convert(mode).save(out, form, **options)
    return out.getvalue()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def make_folder(root: Path, class_ids=CLASS_IDS, per_class: int = 3, num_val: int = 4) -> Path:
    """A dataset in Tiny ImageNet's layout; the first training picture of each class is grey."""
    write(root / "wnids.txt", "".join(f"{class_id}\n" for class_id in class_ids))
    write(root / "words.txt", "".join(f"{class_id}\tname of {class_id}, other name\n" for class_id in class_ids))
    for label, class_id in enumerate(class_ids):
        write(root / f"train/{class_id}/{class_id}_boxes.txt", "not read")
        for i in range(per_class):
            data = picture(10 * label + i, mode="RGB" if i else "L")
            write(root / f"train/{class_id}/images/{class_id}_{i}.JPEG", data)
    lines = []
    for i in range(num_val):
        write(root / f"val/images/val_{i}.JPEG", picture(100 + i))
        lines.append(f"val_{i}.JPEG\t{class_ids[i % len(class_ids)]}\t0\t0\t63\t63\n")
    write(root / "val/val_annotations.txt", "".join(lines))
    return root
