"""What the machine can do at most, measured in the same run: copying memory, and the matrix product."""

import tiny_imagenet  # noqa: F401  first: it loads TensorFlow quietly

# isort: split

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from os import sched_getaffinity
from pathlib import Path

import keras
import numpy as np

SECONDS = 2.0  # of a round


def repeat(work: Callable[[], object], amount: float) -> Callable[[], float]:
    """A round: how much work is done per second, if one call does `amount`."""
    work()

    def run_round() -> float:
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            work()
            count += 1
        return count * amount / (time.perf_counter() - start)

    return run_round


def memory_copy(_data_dir: Path) -> Callable[[], float]:
    """Bytes read and written per second, in blocks far larger than the caches, on all cores at once."""
    cores, size = len(sched_getaffinity(0)), 2**28
    pairs = [(np.ones(size, np.uint8), np.empty(size, np.uint8)) for _ in range(cores)]
    pool = ThreadPoolExecutor(cores)
    return repeat(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs)), 2 * cores * size)


def matrix_product(dtype: str) -> Callable[[], float]:
    """Floating-point operations per second (a multiplication with its addition is two), for 2048 x 2048 matrices."""
    side = 2048
    a, b = (keras.random.normal((side, side), dtype=dtype, seed=seed) for seed in (0, 1))
    return repeat(lambda: float(keras.ops.matmul(a, b)[0, 0]), 2 * side**3)


def product_float32(_data_dir: Path) -> Callable[[], float]:
    """In float32."""
    return matrix_product("float32")


def product_bfloat16(_data_dir: Path) -> Callable[[], float]:
    """In bfloat16."""
    return matrix_product("bfloat16")
