"""One run on all devices of a machine, or of several: each makes and trains its share of each batch.

The engine is JAX's, by `keras.distribution.DataParallel`: every device holds all weights, and the gradients are
averaged over all of them within each step, so that a step is the same as on one device but for the order of its sums.
One host, the first, writes; all must see its runs folder to resume. Under TensorFlow, or with one device, nothing of
this happens.

With several hosts every variable that is made or changed is a meeting of all of them: what one host alone may fail in
(files, settings) comes before, within `all_or_none`.
"""

from startup import UserError, ending, gpu_names, keras

import os
import signal
import socket
import sys
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

T = TypeVar("T")

START_SECONDS = 300  # how long hosts wait for one another at the start
LOST_SECONDS = 60  # without a sign of life, after which a host counts as lost
AGREE_STEPS = 10  # steps between two agreements of several hosts on whether to stop
SIGNS_OF_LOSS = ("gloo", "Gloo", "NCCL", "Connection", "UNAVAILABLE", "heartbeat")  # in JAX's messages
UNLIKE = "is not the same on each process"  # in JAX's message about values that each host has computed by itself


@dataclass(frozen=True)
class Share:
    """Which part of each batch a host makes: the `host`-th of `hosts` equal ones."""

    host: int = 0
    hosts: int = 1
    devices: int = 1
    """Of all hosts together."""

    def __str__(self) -> str:
        """How many train together."""
        return f"{self.devices} devices on {self.hosts} host{'s'[: self.hosts > 1]}"

    @property
    def writes(self) -> bool:
        """Whether this host is the one that writes the run's folder."""
        return self.host == 0


WHOLE = Share()


# Several hosts


@contextmanager
def joined(coordinator: str | None, num_hosts: int, host_id: int) -> Iterator[None]:
    """Within the block this process is one of the hosts of a run; without a coordinator, the only one.

    Of several hosts only the first prints, and one that fails in the block ends the program at once: JAX would have it
    wait for the others, which wait for it in the middle of a step.

    Args:
        coordinator: HOST:PORT of host 0, which waits there for the others.
        num_hosts: how many there are.
        host_id: which this one is, from 0.

    Raises:
        UserError: the numbers do not fit, the backend is not JAX, or nobody is at the coordinator's address. (If the
            others do not come, JAX ends host 0 by an abort.)
    """
    if coordinator is None:
        yield
        return
    _meet(coordinator, num_hosts, host_id)
    try:
        anyone(Share(host_id, num_hosts), False)  # at once: the first meeting, and no other, waits but 30 seconds
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere if host_id else sys.stdout):
            yield
    except SystemExit:  # all were stopped
        raise
    except BaseException as error:
        _leave(error, host_id)


def _meet(coordinator: str, num_hosts: int, host_id: int) -> None:
    if keras.backend.backend() != "jax":
        raise UserError("several hosts train under JAX alone; set KERAS_BACKEND=jax")
    if num_hosts < 2 or not 0 <= host_id < num_hosts:
        raise UserError(
            f"num_hosts is {num_hosts} and host_id {host_id}; give the number of hosts, 2 or more, to all of them by "
            "--num-hosts, and to each its own, from 0, by --host-id"
        )
    address, _, port = coordinator.rpartition(":")
    if not address or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise UserError(f"coordinator is {coordinator!r}; give host 0's address and a free port, as HOST:PORT")
    others = f"host 0 at {coordinator}" if host_id else f"{num_hosts - 1} more at {coordinator}"
    print(f"waiting for {others}, {START_SECONDS} seconds at most", file=sys.stderr)
    if host_id:
        _wait_for(address, int(port))
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)  # JAX waits in C++, where no handler of Python's is called
    try:
        jax.distributed.initialize(
            coordinator,
            num_hosts,
            host_id,
            cluster_detection_method="deactivate",  # Slurm's or MPI's would show each process one GPU only
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=LOST_SECONDS,
        )
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"coordinator: the hosts did not meet at {coordinator} ({reason})") from None
    finally:
        signal.signal(signal.SIGINT, handler)


def _wait_for(address: str, port: int) -> None:
    """Returns when host 0 is there; JAX itself would end the program by an abort if it never came."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection((address, port), timeout=10).close()
            return
        except (OSError, UnicodeError) as error:
            unknown = isinstance(error, UnicodeError) or error.errno == socket.EAI_NONAME  # and will stay so
            if unknown or time.monotonic() > end:
                reason = getattr(error, "strerror", None) or error
                raise UserError(f"coordinator: nobody is at {address}:{port} ({reason}); start host 0") from None
            time.sleep(1)


def _leave(error: BaseException, host_id: int) -> None:
    """Says what went wrong and ends this process, without waiting for the other hosts."""
    if isinstance(error, Exception) and not isinstance(error, UserError | OSError):  # JAX's are of several types
        reason = str(error).split("\n")[0]
        if any(sign in str(error) for sign in SIGNS_OF_LOSS):
            error = UserError(f"another host was lost ({reason}); start all again with --resume")
        elif UNLIKE in str(error):
            error = UserError("the hosts compute differently; train on processors, or GPUs, of one kind")
    try:
        said = ending(error)
    except BaseException:  # a mistake of ours
        traceback.print_exc()
        said = 1
    if isinstance(said, str):
        print(said, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if not host_id:
        time.sleep(2)  # the others end as soon as it is gone, and may have something to say before
    os._exit(1 if isinstance(said, str) else said)


def anyone(share: Share, flag: bool) -> bool:
    """Whether any host says so. All must ask at the same place of the program, where they wait for each other."""
    return bool(_gathered(share, np.array(flag)).any())


@contextmanager
def all_or_none(share: Share) -> Iterator[None]:
    """No host leaves the block before all have come to its end; if one fails in it, all fail."""
    try:
        yield
    except (UserError, OSError):
        anyone(share, True)
        raise
    if anyone(share, False):
        raise UserError("another host cannot go on; what it says stands in its own output")


def first_then_others(share: Share, work: Callable[[], T]) -> T:
    """What `work` returns; on the first host before the others, which may see the same disk and find it done.

    If it fails on one of them, it fails on all.
    """
    with all_or_none(share):
        done = work() if share.writes else None
    with all_or_none(share):
        return done if share.writes else work()


def check_same(share: Share, what: str, text: str, arrays: Iterable[np.ndarray] = ()) -> None:
    """Raises UserError, which says `what`, if a text or some arrays are not the same on all hosts."""
    if share.hosts == 1:
        return
    digest = zlib.crc32(text.encode())
    for array in arrays:
        digest = zlib.crc32(np.ascontiguousarray(array), digest)
    digests = _gathered(share, np.array(digest, np.uint32))
    if (digests != digests[0]).any():
        raise UserError(f"the hosts have not the same {what}; give all of them the same")


def _gathered(share: Share, value: np.ndarray) -> np.ndarray:
    """(hosts, ...): each host's value."""
    if share.hosts == 1:
        return value[np.newaxis]
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(value)


# Several devices


def this_share() -> Share:
    """The share of this host: all of each batch where there are no others; the devices of all hosts."""
    if keras.backend.backend() != "jax":
        return WHOLE
    import jax

    return Share(jax.process_index(), jax.process_count(), jax.device_count())


def warn_of_idle_gpus() -> None:
    """Says so if TensorFlow leaves GPUs idle."""
    if keras.backend.backend() != "jax" and len(gpu_names()) > 1:
        print(f"TensorFlow trains on one of the {len(gpu_names())} GPUs; for all of them set KERAS_BACKEND=jax")


def check_divides(share: Share, batch_size: int, resuming: bool = False) -> None:
    """Raises UserError, on all hosts, if the devices do not divide the batch, or are not equally many on each host."""
    if share.devices == 1:
        return
    import jax

    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        numbers = ", ".join(str(counts[host]) for host in sorted(counts))
        raise UserError(f"the hosts have {numbers} devices; give each of them equally many")
    if batch_size % share.devices:
        below = batch_size // share.devices * share.devices
        near = " or ".join(str(size) for size in (below, below + share.devices) if size)
        fewer = [count for count in range(share.hosts, share.devices, share.hosts) if batch_size % count == 0]
        example = f", such as {fewer[-1]}" if fewer else ", on fewer hosts"
        raise UserError(
            f"batch_size is {batch_size}, which {share.devices} devices do not divide; "
            + ("" if resuming else f"set it to {near}, or ")
            + f"use fewer devices{example} (CUDA_VISIBLE_DEVICES says which a host shows)"
        )


@contextmanager
def spread(share: Share) -> Iterator[None]:
    """Models that are built within the block are trained on all devices, if there are several."""
    if share.devices > 1:
        keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    try:
        yield
    finally:
        keras.distribution.set_distribution(None)
