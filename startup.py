"""First import of every script: the environment is checked, TensorFlow made quiet, errors made one line.

It imports nothing heavy, so that a missing package or a wrong Python is answered by one sentence.
"""

import sys

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)  # what TensorFlow 2.21 has wheels for
if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:  # before anything that an old Python cannot read
    sys.exit(
        "error: Python %d.%d has no TensorFlow 2.21; use 3.11, 3.12 or 3.13, for example: "
        "python3.11 -m venv .venv && .venv/bin/pip install -r requirements.txt" % sys.version_info[:2]
    )

import time

START = time.perf_counter()  # of the program: what `train.py` counts as its running time begins here

import functools
import importlib
import importlib.util
import io
import os
import shlex
import signal
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

PACKAGES = {"tensorflow", "keras", "numpy", "PIL", "tyro", "pooch", "tqdm", "tensorboard", "matplotlib"}
BACKENDS = ("tensorflow", "jax")  # of Keras; the first is the default
JAX = "0.10.2"  # the version that the tests run with
ROOT = Path(__file__).resolve().parent  # the folder of the project's own files
IS_SCRIPT = Path(sys.argv[0]).is_file() and Path(sys.argv[0]).resolve().parent == ROOT  # one of them was started

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's errors only; 0 shows all
os.environ.setdefault("KERAS_BACKEND", BACKENDS[0])


class UserError(Exception):
    """Something the user can mend. The message is one line: the file or setting, what is wrong, what to do."""


def check_environment() -> None:
    """Ends the program with one line if a package is missing or the backend's name is unknown."""
    backend = os.environ["KERAS_BACKEND"]
    if backend not in BACKENDS:
        sys.exit(f"error: KERAS_BACKEND is {backend!r}; set it to one of: {', '.join(BACKENDS)}")
    missing = sorted(name for name in PACKAGES if importlib.util.find_spec(name) is None)
    if missing:
        sys.exit(
            f"error: not installed: {', '.join(missing)}; run: {sys.executable} -m pip install -r requirements.txt"
        )
    if backend == "jax" and importlib.util.find_spec("jax") is None:
        sys.exit(
            f"error: KERAS_BACKEND is 'jax', which is not installed; run: {sys.executable} -m pip install jax=={JAX}"
        )


_interrupts: list[int] = []  # Ctrl-C since the command began


def _interrupt(number: int, _frame) -> None:
    _interrupts.append(number)
    raise KeyboardInterrupt


def interrupted() -> bool:
    """Whether there was a Ctrl-C since the command began, even if a library has swallowed the exception."""
    return bool(_interrupts)


def command(main: Callable[[], int | None]) -> Callable[[], None]:
    """Decorates a script's main: a UserError ends it with one line on stderr and exit code 1, no traceback."""

    @functools.wraps(main)
    def run() -> None:
        signal.signal(signal.SIGINT, _interrupt)
        try:
            code = main() or 0
            sys.stdout.flush()  # here, where an error still becomes one line
            sys.exit(code)
        except SystemExit:
            raise
        except BaseException as error:
            sys.exit(ending(error))

    return run


def ending(error: BaseException) -> str | int:
    """What a command ends with that this error has stopped: one line, or an exit code.

    Raises:
        The error itself, if it is a mistake of ours: the traceback is wanted.
    """
    if isinstance(error, UserError):
        return f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return 130  # 128 + SIGINT, as a shell reports it
    if isinstance(error, BrokenPipeError):  # `... | head` closed our output: not an error worth a line
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError):  # a full disk, a folder without permission
        from files import advice_on

        name = error.filename or "the output"
        return f"error: {name}: {error.strerror or error}; {advice_on(error)}"
    kinds = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in kinds or "ResourceExhausted" in kinds:
        return "error: the memory is not enough; end what else uses it or, in training, lower --batch-size"
    raise error


def command_line(arguments: type, **options):
    """The command line as `tyro.cli` reads it; the box with which it answers a wrong one becomes a UserError's line."""
    tyro = importlib.import_module("tyro")
    answer = io.StringIO()
    try:
        with redirect_stderr(answer):
            return tyro.cli(arguments, **options)
    except SystemExit as end:
        if not end.code:  # --help
            raise
        raise UserError(_unboxed(answer.getvalue()) or f"wrong arguments ({end.code})") from None


def shell_line(*words: str, backend: str | None = None) -> str:
    """A command as it is typed: these words, after the setting of Keras's backend where it is not the default.

    Args:
        words: of the command, not quoted.
        backend: of Keras; this process's if None.
    """
    backend = backend or os.environ["KERAS_BACKEND"]
    return f"KERAS_BACKEND={backend} " * (backend != BACKENDS[0]) + shlex.join(words)


def _unboxed(box: str) -> str:
    """The text of a box: its rows joined, the parts between its rules parted by ';', without its title."""
    rows = [row[1:-1].strip() for row in box.splitlines() if row[:1] in ("│", "|")]
    parts = " ".join("\n" if set(row) <= set("─-") else row for row in rows).split("\n")
    return "; ".join(part.strip().rstrip(".;") for part in parts if part.strip())


@contextmanager
def quiet_stderr():
    """Holds back what C++ writes to file descriptor 2; an exception shows it after all."""
    import tempfile

    with tempfile.TemporaryFile() as held:
        saved = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


@contextmanager
def _hidden(*packages: str):
    """Lets packages that are not loaded yet seem not to be installed: to import what is None there fails."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


def gpu_names() -> list[str]:
    """The GPUs that Keras's backend sees."""
    if os.environ["KERAS_BACKEND"] == "tensorflow":
        return [details.get("device_name", "GPU") for details in _tensorflow_gpus()]
    return [device.device_kind for device in _jax_gpus()]


def gpu_capabilities() -> list[tuple[int, int]]:
    """The compute capability, (8, 0) for example, of each GPU that Keras's backend sees; (0, 0) of one without."""
    if os.environ["KERAS_BACKEND"] == "tensorflow":
        return [tuple(details.get("compute_capability", (0, 0))) for details in _tensorflow_gpus()]
    found = [str(getattr(device, "compute_capability", "0.0")) for device in _jax_gpus()]
    return [tuple(int(part) for part in text.split(".")) for text in found]


def _tensorflow_gpus() -> list[dict]:
    config = _load_tensorflow().config
    return [config.experimental.get_device_details(device) for device in config.list_physical_devices("GPU")]


def _jax_gpus() -> list:
    try:
        return importlib.import_module("jax").devices("gpu")
    except RuntimeError:  # that is how JAX says that there is none
        return []


def bfloat16_unit() -> str:
    """What makes bfloat16 faster than float32 on the device that Keras's backend computes on; "" if nothing does."""
    if capabilities := gpu_capabilities():
        return "a GPU's tensor cores" if min(capabilities) >= (8, 0) else ""
    if os.environ["KERAS_BACKEND"] != "tensorflow":
        return ""  # XLA computes bfloat16 by way of float32 on processors
    cpuinfo = Path("/proc/cpuinfo")
    words = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return next((f"the processor's {unit}" for unit in ("amx_bf16", "avx512_bf16", "bf16") if unit in words), "")


def require_gpu() -> None:
    """Raises UserError if Keras's backend finds no GPU."""
    backend = os.environ["KERAS_BACKEND"]
    package = {"tensorflow": "tensorflow[and-cuda]==2.21.0", "jax": f"jax[cuda13]=={JAX}"}[backend]
    if not gpu_names():
        raise UserError(f"a GPU is needed, but {backend} finds none; run: {sys.executable} -m pip install '{package}'")


@functools.cache
def _load_tensorflow():
    """Imports TensorFlow and starts its devices without the dozen notes that it prints on every start.

    Under the JAX backend TensorFlow only reads pictures and writes logs, so the GPU is left to JAX. In a script
    of this folder, though not in notebooks, it leaves out what TensorFlow and Keras import only for Keras's galleries
    of pictures (which do not work there then), checkpoints by Orbax and TensorFlow Lite.
    """
    unused = {"matplotlib", "jax"} - {os.environ["KERAS_BACKEND"]} if IS_SCRIPT else ()
    with quiet_stderr(), _hidden(*unused):
        tf = importlib.import_module("tensorflow")
        if os.environ["KERAS_BACKEND"] != "tensorflow":
            tf.config.set_visible_devices([], "GPU")
        tf.config.list_logical_devices()
    return tf


def __getattr__(name: str):
    """`from startup import tf, keras` loads them, quietly, at that moment and not before."""
    if name not in ("tf", "keras"):
        raise AttributeError(f"module 'startup' has no attribute {name!r}")
    tensorflow = _load_tensorflow()  # Keras imports it too, under every backend
    if name == "tf":
        return tensorflow
    keras = importlib.import_module("keras")
    keras.config.set_floatx("float32")  # whatever ~/.keras/keras.json says
    keras.config.set_image_data_format("channels_last")
    return keras


if IS_SCRIPT and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the seconds of imports ends a script, no traceback
check_environment()
