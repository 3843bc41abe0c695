"""The machinery behind the scripts. Import it before Keras: it checks the environment and loads TensorFlow quietly."""

import sys
import time

START_TIME = time.perf_counter()  # of the program; a run's time is counted from here

if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(
        "error: TensorFlow 2.21 needs Python 3.11, 3.12 or 3.13, but this is %d.%d; for example: "
        "python3.11 -m venv .venv && .venv/bin/pip install -r requirements.txt" % sys.version_info[:2]
    )

import importlib.util
import os
import signal
from pathlib import Path

for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
    if getattr(sys, name) is None:  # closed, as by `>&-`: the next file to be opened would take its number
        setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, closefd=False))

ROOT = Path(__file__).resolve().parent.parent  # the folder of the scripts
BACKENDS = ("tensorflow", "jax")  # of Keras; the first is the default
PACKAGES = ("tensorflow", "keras", "numpy", "PIL", "tyro", "pooch", "tqdm", "tensorboard", "matplotlib")

backend = os.environ.setdefault("KERAS_BACKEND", BACKENDS[0])
if backend not in BACKENDS:
    sys.exit(f"error: KERAS_BACKEND is {backend!r}; set it to one of: {', '.join(BACKENDS)}")
if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
    sys.exit(f"error: {', '.join(missing)} not installed; run: {sys.executable} -m pip install -r requirements.txt")
if backend == "jax" and importlib.util.find_spec("jax") is None:
    sys.exit(
        "error: KERAS_BACKEND is 'jax', but JAX is not installed; run: "
        f"{sys.executable} -m pip install jax (for a GPU: 'jax[cuda13]')"
    )

is_script = Path(sys.argv[0]).resolve().parent in (ROOT, ROOT / "tools")
if is_script and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the seconds of imports: no traceback

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's errors only; 0 shows everything

from tiny_imagenet.terminal import quiet_stderr

with quiet_stderr():  # TensorFlow prints a dozen notes on every start
    import tensorflow as tf

    if backend != "tensorflow":
        tf.config.set_visible_devices([], "GPU")  # then TensorFlow only reads images and writes logs
    tf.config.list_logical_devices()
    import keras

# Each image size and each model is traced once, on purpose: many of them are no reason for a warning
tf.get_logger().addFilter(lambda record: "triggered tf.function retracing" not in record.getMessage())
keras.config.set_floatx("float32")  # whatever ~/.keras/keras.json says
keras.config.set_image_data_format("channels_last")
