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

import functools
import importlib
import importlib.util
import io
import os
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

PACKAGES = {"tensorflow", "keras", "numpy", "PIL", "tyro", "pooch", "tqdm", "tensorboard", "matplotlib"}
BACKENDS = ("tensorflow", "jax")

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's errors only; 0 shows all
os.environ.setdefault("KERAS_BACKEND", "tensorflow")


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
        sys.exit(f"error: KERAS_BACKEND is 'jax', which is not installed; run: {sys.executable} -m pip install jax")


def command(main: Callable[[], int | None]) -> Callable[[], None]:
    """Decorates a script's main: a UserError ends it with one line on stderr and exit code 1, no traceback."""

    @functools.wraps(main)
    def run() -> None:
        try:
            sys.exit(main() or 0)
        except UserError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit(130)  # 128 + SIGINT, as a shell reports it
        except BrokenPipeError:  # `... | head` closed our output: not an error worth a traceback
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:  # a full disk, a folder without permission: the file's name says enough
            sys.exit(f"error: {error.filename or 'cannot read or write'}: {error.strerror or error}")
        except Exception as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "ResourceExhausted" not in type(error).__name__:
                raise  # a mistake of ours: the traceback is wanted
            sys.exit("error: the memory is not enough; lower --batch-size")

    return run


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


def gpu_names() -> list[str]:
    """The GPUs that Keras's backend sees."""
    if os.environ["KERAS_BACKEND"] == "tensorflow":
        config = _load_tensorflow().config
        details = map(config.experimental.get_device_details, config.list_physical_devices("GPU"))
        return [found.get("device_name", "GPU") for found in details]
    try:
        return [device.device_kind for device in importlib.import_module("jax").devices("gpu")]
    except RuntimeError:  # that is how JAX says that there is none
        return []


def require_gpu() -> None:
    """Raises UserError if Keras's backend finds no GPU."""
    backend = os.environ["KERAS_BACKEND"]
    package = {"tensorflow": "tensorflow[and-cuda]==2.21.0", "jax": "jax[cuda13]==0.10.2"}[backend]
    if not gpu_names():
        raise UserError(f"--require-gpu, but {backend} finds none; run: {sys.executable} -m pip install '{package}'")


@functools.cache
def _load_tensorflow():
    """Imports TensorFlow and starts its devices without the dozen notes that it prints on every start.

    Under the JAX backend TensorFlow only reads pictures and writes logs, so the GPU is left to JAX.
    """
    with quiet_stderr():
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
    return tensorflow if name == "tf" else importlib.import_module("keras")


ROOT = Path(__file__).resolve().parent  # the folder of the project's own files
check_environment()
