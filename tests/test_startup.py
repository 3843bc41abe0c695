"""What is wrong with the environment is said in one line, with the command that mends it."""

import startup

import importlib
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, assert_one_line_error, run_script

BEGIN = "import sys; sys.path.insert(0, {root!r}); {prepare}; import startup"


def start(prepare: str, **environment):
    """Imports startup in a fresh process after some preparation."""
    code = BEGIN.format(root=str(ROOT), prepare=prepare)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, timeout=60
    )


@pytest.mark.parametrize("version", [(3, 8, 4), (3, 10, 4), (3, 14, 0)])
def test_a_python_without_wheels(version):
    result = start(f"sys.version_info = {version}")
    assert_one_line_error(result, f"Python {version[0]}.{version[1]}", "-m venv .venv", "pip install")


def test_missing_packages_are_named_together():
    prepare = (
        "import importlib.util as u; find = u.find_spec; u.find_spec = lambda n: None if n in {missing} else find(n)"
    )
    result = start(prepare.format(missing=("tyro", "pooch")))
    assert_one_line_error(result, "pooch, tyro", "-m pip install -r requirements.txt")
    result = start(prepare.format(missing=("jax",)), KERAS_BACKEND="jax")
    assert_one_line_error(result, "jax", "-m pip install jax")


def test_an_unknown_backend():
    assert_one_line_error(start("pass", KERAS_BACKEND="theano"), "theano", "tensorflow, jax")


def test_a_gpu_that_is_asked_for_and_not_there(sample_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for backend, package in (("tensorflow", "tensorflow[and-cuda]"), ("jax", "jax[cuda13]")):
        result = run_script("train.py", "--data-dir", sample_dir, "--require-gpu", cwd=tmp_path, backend=backend)
        assert_one_line_error(result, "finds none", f"pip install '{package}")
    assert not (tmp_path / "runs").exists()


def test_the_users_keras_settings_change_nothing(tmp_path):
    (tmp_path / "keras.json").write_text('{"image_data_format": "channels_first", "floatx": "float16"}')
    code = "from startup import keras; print(keras.config.image_data_format(), keras.config.floatx())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"KERAS_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == ["channels_last", "float32"], result.stderr


@pytest.mark.parametrize("seconds", [1.0, 3.0])
def test_ctrl_c_at_the_start_ends_without_a_traceback(sample_dir, tmp_path, seconds):
    command = [sys.executable, str(ROOT / "train.py"), "--data-dir", str(sample_dir), "--num-epochs", "1000"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert "Traceback" not in errors


def test_a_script_starts_without_what_it_does_not_use():
    prepare = (
        f"import atexit, runpy; sys.argv = [{str(ROOT / 'train.py')!r}, '--help']; "
        "atexit.register(lambda: print([name for name in ('matplotlib.pyplot', 'jax') if name in sys.modules])); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    result = start(prepare, KERAS_BACKEND="tensorflow")
    assert result.returncode == 0, result.stderr
    assert "--batch-size" in result.stdout
    assert result.stdout.endswith("[]\n")


def test_a_hidden_package_seems_not_to_be_installed_for_a_while():
    sys.modules.pop("wave", None)
    with startup._hidden("wave", "pytest"):  # the second one is loaded already
        with pytest.raises(ImportError):
            importlib.import_module("wave")
        assert importlib.import_module("pytest") is pytest
    assert importlib.import_module("wave").open
