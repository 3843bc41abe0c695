"""What several test files share: a tiny sample set, and the real scripts run as a user runs them."""

import atexit
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

QUICK_TO_COMPILE = "--xla_backend_optimization_level=0"  # in XLA_FLAGS: what takes JAX long here is to compile

compiled = tempfile.TemporaryDirectory(prefix="jax-cache-")
atexit.register(compiled.cleanup)
JAX_CACHE = {  # for a script that is started several times: JAX keeps all that it compiles
    "JAX_COMPILATION_CACHE_DIR": compiled.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def environment(backend: str) -> dict[str, str]:
    """That of a script under this backend of Keras."""
    return os.environ | {"KERAS_BACKEND": backend} | ({"XLA_FLAGS": QUICK_TO_COMPILE} if backend == "jax" else {})


@pytest.fixture(scope="session")
def sample_dir(tmp_path_factory) -> Path:
    """A sample set of ten classes with 20 training and 5 validation pictures each."""
    from sample_data import draw_sample_set

    folder = tmp_path_factory.mktemp("data") / "sample"
    draw_sample_set(folder, train_per_class=20, val_per_class=5)
    return folder


def run_script(script: str, *arguments, cwd: Path, backend: str = "tensorflow", **settings):
    """Runs a script of the root in `cwd` to its end; its output is captured as text."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        cwd=cwd,
        env=environment(backend),
        capture_output=True,
        text=True,
        timeout=300,
        **settings,
    )


def assert_one_line_error(result, *words: str) -> None:
    """The program ended with one line on stderr that holds these words, no traceback, and a non-zero exit code."""
    lines = result.stderr.strip().splitlines()
    assert result.returncode != 0
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
