"""Devices: GPUs and what they are good at; several devices, processes and hosts, by JAX's own means.

Under JAX a run uses all devices of all its processes (`keras.distribution.DataParallel`): each device has all weights
and its share of each batch. Process 0 writes the run's folder. Under TensorFlow a run uses one device.
"""

import os
import platform
import re
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf

from tiny_imagenet.errors import UserError

NUMERICS = ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "XLA_FLAGS")
"""Environment variables that can change the order in which a sum is added up."""

ON_JAX = keras.backend.backend() == "jax"
if ON_JAX:
    import jax
    from jax.experimental import multihost_utils


# One machine


def _gpus() -> list[tuple[str, int]]:
    """The name and the compute capability, without its minor number, of each GPU that Keras's backend sees."""
    if not ON_JAX:
        devices = tf.config.list_physical_devices("GPU")
        details = [tf.config.experimental.get_device_details(device) for device in devices]
        return [(found.get("device_name", "GPU"), found.get("compute_capability", (0, 0))[0]) for found in details]
    try:
        devices = jax.local_devices(backend="gpu")
    except RuntimeError:  # JAX's way to say that there are none
        return []
    capabilities = [re.search(r"\d+", str(getattr(device, "compute_capability", 0))) for device in devices]
    return [(device.device_kind, int(found[0])) for device, found in zip(devices, capabilities, strict=True)]


def gpu_names() -> list[str]:
    """The GPUs that Keras's backend sees."""
    return [name for name, _ in _gpus()]


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def bfloat16_unit() -> str:
    """What makes bfloat16 faster than float32 on this machine; "" if nothing does."""
    if gpus := _gpus():
        return "the GPU's tensor cores" if min(capability for _, capability in gpus) >= 8 else ""
    words = [] if ON_JAX else _cpuinfo().split()  # on a CPU, XLA converts bfloat16 to float32
    return next((f"the CPU's {unit}" for unit in ("amx_bf16", "avx512_bf16", "bf16") if unit in words), "")


def check_gpu(required: bool) -> None:
    """Raises UserError if a GPU is required and there is none; says so if TensorFlow leaves GPUs idle."""
    gpus = gpu_names()
    if required and not gpus:
        package = "jax[cuda13]" if ON_JAX else "tensorflow[and-cuda]==2.21.0"
        command = f"{sys.executable} -m pip install '{package}'"
        raise UserError(f"require_gpu is set, but {keras.backend.backend()} finds no GPU; run: {command}")
    if len(gpus) > 1 and not ON_JAX:
        print(f"TensorFlow trains on one of the {len(gpus)} GPUs; to use all of them, set KERAS_BACKEND=jax")


def versions() -> dict[str, str]:
    """The versions of everything that computes a step."""
    packages = ["keras", "tensorflow", "numpy", *["jax", "jaxlib"] * ON_JAX]
    return {"python": platform.python_version()} | {name: sys.modules[name].__version__ for name in packages}


def describe_hardware() -> str:
    """CPU and cores, GPUs, how many devices and processes, and environment variables that change how sums round."""
    model = re.search(r"^model name\s*: (.*)", _cpuinfo(), re.MULTILINE)
    parts = [f"{len(os.sched_getaffinity(0))} cores", model[1].strip() if model else platform.machine()]
    parts += [f"{count} x {name}" if count > 1 else name for name, count in Counter(gpu_names()).items()]
    if device_count() > 1:
        parts.append(f"{device_count()} devices, {shard()[1]} processes")
    return ", ".join([*parts, *(f"{name}={os.environ[name]}" for name in NUMERICS if name in os.environ)])


# Several devices, processes and hosts


@dataclass(frozen=True)
class Processes:
    """How the processes of one run find each other; see `jax.distributed.initialize`."""

    distributed: bool = False
    """Train with several processes, which JAX detects (Slurm, MPI, Kubernetes, cloud TPU). Needs KERAS_BACKEND=jax."""
    coordinator_address: str | None = None
    """Where JAX cannot detect them: HOST:PORT of process 0. All processes need the same RUNS_DIR."""
    num_processes: int | None = None
    """With COORDINATOR_ADDRESS: how many processes there are."""
    process_id: int | None = None
    """With COORDINATOR_ADDRESS: which one this is, from 0."""

    def connect(self, settings: str) -> None:
        """Waits for the other processes, if there are any. Only process 0 prints.

        Args:
            settings: what all processes must have in common.

        Raises:
            UserError: the backend is not JAX, flags are missing, or the processes do not find each other or have
                different settings.
        """
        given = (self.coordinator_address, self.num_processes, self.process_id)
        if not self.distributed and given == (None, None, None):
            return
        if not ON_JAX:
            raise UserError("several processes need JAX; set KERAS_BACKEND=jax")
        host, _, port = (self.coordinator_address or "host:1").rpartition(":")
        if not host or not port.isdecimal() or int(port) >= 2**16:  # JAX would abort
            raise UserError(f"--coordinator-address is {self.coordinator_address!r}; set it to HOST:PORT of process 0")
        detection = None if self.distributed else "deactivate"  # Slurm's would give each process one GPU only
        try:
            jax.distributed.initialize(*given, cluster_detection_method=detection, shutdown_timeout_seconds=10)
            multihost_utils.sync_global_devices(settings)  # at once: the first collective waits only 30 seconds
        except AssertionError:
            raise UserError("the processes have different settings; only --process-id may differ") from None
        except (RuntimeError, ValueError) as error:
            reason = str(error).split("\n")[0]
            flags = "--coordinator-address, --num-processes and --process-id"
            raise UserError(f"the processes did not find each other ({reason}); check {flags}") from None
        if not is_main_process():
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def shard() -> tuple[int, int]:
    """(process_index, process_count): which part of each batch this process makes."""
    return (jax.process_index(), jax.process_count()) if ON_JAX else (0, 1)


def device_count() -> int:
    """How many devices train together, over all processes."""
    return jax.device_count() if ON_JAX else 1


def is_main_process() -> bool:
    """Whether this is the process that writes."""
    return shard()[0] == 0


@contextmanager
def main_process_first():
    """The main process goes through the block before the others do."""
    if not is_main_process():
        _wait_for_all()
    yield
    if is_main_process():
        _wait_for_all()


def _wait_for_all() -> None:
    """Returns when all processes have called it."""
    if shard()[1] > 1:
        multihost_utils.sync_global_devices("tiny_imagenet")


def reached_stop(step: int) -> bool:
    """Whether all processes are to stop after this step, because one of them received SIGTERM."""
    return multihost_utils.reached_preemption_sync_point(step)


@contextmanager
def data_parallel(batch_size: int):
    """Models created within the block are trained on all devices, if there are several.

    Processes leave it together: one that ended while another is still saving would abort both.

    Raises:
        UserError: the batch cannot be divided among the devices.
    """
    if device_count() > 1:
        if batch_size % device_count():
            raise UserError(f"batch_size is {batch_size}; set it to a multiple of the {device_count()} devices")
        keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    try:
        yield
        _wait_for_all()
    except SystemExit:  # all were stopped
        _wait_for_all()
        raise
    finally:
        keras.distribution.set_distribution(None)


@contextmanager
def on_one_device():
    """Models created within the block are on this process's first device only, also in a run on several devices."""
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)
