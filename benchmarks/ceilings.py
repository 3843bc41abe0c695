"""What the machine can do at most, measured in the same run: copying memory, and the matrix product."""

from startup import keras

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from os import sched_getaffinity
from pathlib import Path

import numpy as np

SECONDS = 2.0  # a round


def repeated(work: Callable[[], object], amount: float) -> Callable[[], float]:
    """A round: how much of it (`amount` a call) gets done a second."""
    work()

    def timed_round() -> float:
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            work()
            count += 1
        return count * amount / (time.perf_counter() - start)

    return timed_round


def memory_copy(_data_dir: Path) -> Callable[[], float]:
    """Bytes read plus bytes written a second, in blocks far larger than the caches, on all cores at once."""
    cores, size = len(sched_getaffinity(0)), 2**28
    pairs = [(np.ones(size, np.uint8), np.empty(size, np.uint8)) for _ in range(cores)]
    pool = ThreadPoolExecutor(cores)
    return repeated(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs)), 2 * cores * size)


def matrix_product(dtype: str) -> Callable[[], float]:
    """Floating-point operations a second, two for each multiplication with addition, of 2048 x 2048 matrices."""
    side = 2048
    a, b = (keras.random.normal((side, side), dtype=dtype, seed=seed) for seed in (0, 1))
    return repeated(lambda: float(keras.ops.matmul(a, b)[0, 0]), 2 * side**3)


def product_float32(_data_dir: Path) -> Callable[[], float]:
    """In float32."""
    return matrix_product("float32")


def product_bfloat16(_data_dir: Path) -> Callable[[], float]:
    """In bfloat16."""
    return matrix_product("bfloat16")
