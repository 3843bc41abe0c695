"""PyTorch on the CPU: a DataLoader with the augmentation of 2017, and training steps of the same VGG-16."""

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import nn

SIZE, CROP, NUM_CLASSES = 64, 56, 200
WORKERS = len(os.sched_getaffinity(0))
SECONDS = 3.0  # per round of the loader
STEPS = {64: 10, 256: 5}  # batch size -> steps per round


class Images(torch.utils.data.Dataset):
    """JPEG files to augmented images (3, 56, 56) uint8 and labels."""

    def __init__(self, data_dir: Path) -> None:
        folders = sorted(path for path in (data_dir / "train").iterdir() if path.is_dir())
        self.files = [(str(file), label) for label, path in enumerate(folders) for file in path.rglob("*.JPEG")]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        name, label = self.files[index]
        with Image.open(name) as opened:
            image = opened.convert("RGB")
        left, top = random.randint(0, SIZE - CROP), random.randint(0, SIZE - CROP)
        image = image.crop((left, top, left + CROP, top + CROP))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = ImageEnhance.Color(image).enhance(random.uniform(0.5, 2.0))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), label


def loader(data_dir: Path) -> Callable[[], float]:
    """`DataLoader` with one worker per core and Pillow, shuffled, batches of 64."""
    batches = torch.utils.data.DataLoader(
        Images(data_dir), 64, shuffle=True, num_workers=WORKERS, persistent_workers=True, prefetch_factor=4
    )

    def endless() -> Iterator:
        while True:
            yield from batches

    iterator = endless()
    for _ in range(20):
        next(iterator)

    def run_round() -> float:
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            for _ in range(5):
                next(iterator)
            count += 5
        return count * 64 / (time.perf_counter() - start)

    return run_round


def vgg_16() -> nn.Module:
    """The same network: ten 3x3 convolutions, three dense layers, dropout on two."""
    network, channels = [], 3
    for number, block in enumerate(((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))):
        network += [nn.MaxPool2d(2)] if number else []
        for filters in block:
            network += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(inplace=True)]
            channels = filters
    network.append(nn.Flatten())
    for inputs, units in ((512 * 7 * 7, 4096), (4096, 2048)):
        network += [nn.Linear(inputs, units), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    return nn.Sequential(*network, nn.Linear(2048, NUM_CLASSES))


def steps(batch_size: int, bfloat16: bool) -> Callable[[], float]:
    """A round: training steps on one fixed batch, channels last, on all cores."""
    torch.manual_seed(0)
    model = vgg_16().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images = torch.randint(0, 256, (batch_size, 3, CROP, CROP), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, NUM_CLASSES, (batch_size,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = nn.functional.cross_entropy(model((images.float() - 128) / 128), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    for _ in range(2):
        step()

    def run_round() -> float:
        start = time.perf_counter()
        for _ in range(STEPS[batch_size]):
            step()
        return STEPS[batch_size] * batch_size / (time.perf_counter() - start)

    return run_round


def float32_64(_data_dir: Path) -> Callable[[], float]:
    """float32, batches of 64."""
    return steps(64, bfloat16=False)


def bfloat16_64(_data_dir: Path) -> Callable[[], float]:
    """Autocast to bfloat16, batches of 64."""
    return steps(64, bfloat16=True)


def bfloat16_256(_data_dir: Path) -> Callable[[], float]:
    """Autocast to bfloat16, batches of 256."""
    return steps(256, bfloat16=True)
