"""What is wrong with the environment, and how a command ends: one line, an exit code, no traceback."""

import io
import os
import signal
import subprocess
import sys
from contextlib import nullcontext, suppress

import pytest
import tensorflow as tf
from helpers import assert_one_line_error, quick_config

import train
from tiny_imagenet import ROOT, cli, terminal
from tiny_imagenet.cli import command
from tiny_imagenet.dataset import open_dataset
from tiny_imagenet.errors import UserError


def start(prepare: str, **settings):
    """Imports the package in a new process, after some preparation; prints two settings of Keras."""
    code = f"import sys; {prepare}; import tiny_imagenet; from keras import config as c; "
    code += "print(c.image_data_format(), c.floatx())"
    env = os.environ | settings
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=99)


HIDE = "import importlib.util as u; find = u.find_spec; u.find_spec = lambda n: None if n in {} else find(n)"


WRONG = [
    ("sys.version_info = (3, 10, 4)", "", ["Python 3.11, 3.12 or 3.13, but this is 3.10", "-m venv", "pip install"]),
    ("sys.version_info = (3, 14, 0)", "", ["this is 3.14"]),
    (HIDE.format(("tyro", "pooch")), "tensorflow", ["tyro, pooch", "-m pip install -r requirements.txt"]),
    (HIDE.format(("jax",)), "jax", ["JAX is not installed", "-m pip install jax"]),
    ("pass", "theano", ["'theano'", "tensorflow, jax"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("prepare", "backend", "words"), WRONG)
def test_a_wrong_environment_is_named_with_the_command_that_corrects_it(prepare, backend, words):
    assert_one_line_error(start(prepare, KERAS_BACKEND=backend), *words)


@pytest.mark.slow
def test_the_start_is_quiet_and_the_users_keras_settings_change_nothing(tmp_path):
    (tmp_path / "keras.json").write_text('{"image_data_format": "channels_first", "floatx": "float16"}')
    result = start("pass", KERAS_HOME=str(tmp_path), KERAS_BACKEND="tensorflow")
    assert (result.stdout, result.stderr) == ("channels_last float32\n", "")


def test_a_trace_for_each_of_many_image_sizes_is_no_warning(caplog):
    tf.get_logger().addHandler(caplog.handler)
    for size in range(9):
        tf.function(lambda x: x)(tf.zeros(size))
    tf.get_logger().removeHandler(caplog.handler)
    assert caplog.records == []


def fail(error: BaseException):
    raise error


ENDS = [
    (UserError("lr is -1"), "error: lr is -1"),
    (OSError(28, "Full", "a\nb"), r"error: 'a\nb': Full; free some disk space, then try again"),
    (OSError(5, "Broken"), "error: standard output: Broken; check this file or folder, then try again"),
    (MemoryError(), "error: out of memory; "),
    (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating"), "error: out of memory; "),
    (RuntimeError("RESOURCE_EXHAUSTED: ..."), "error: out of memory; close other programs or, in "),
    (KeyboardInterrupt(), "130"),
    (SystemExit(2), "2"),
    (3, "3"),
    (None, "0"),
]


@pytest.mark.parametrize(("result", "status"), ENDS)
def test_a_command_ends_with_one_line_or_a_code(result, status):
    with pytest.raises(SystemExit) as end:
        command(lambda: fail(result) if isinstance(result, BaseException) else result)()
    assert str(end.value.code).startswith(status)
    assert "\n" not in str(end.value.code)
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        command(lambda: 1 / 0)()


def test_a_full_disk_or_a_closed_pipe_behind_standard_output(monkeypatch):
    reader, pipe = os.pipe()
    os.close(reader)
    full = "error: standard output: No space left on device; free some disk space"
    for descriptor, status in ((os.open("/dev/full", os.O_WRONLY), full), (pipe, "1")):
        stream = os.fdopen(descriptor, "w")
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as end:
            command(lambda: print("result"))()
        assert str(end.value.code).startswith(status)
        with suppress(OSError) if status == full else nullcontext():  # a pipe's end is quiet
            stream.close()


def test_lines_arrive_at_once_in_any_encoding_and_a_lost_reader_stops_nothing(monkeypatch):
    reader, writer = os.pipe()
    stdout = os.fdopen(writer, "w", encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)

    def main():
        print("trained for 1 \u00fc")
        assert os.read(reader, 99) == b"trained for 1 \\xfc\n"
        cli.ignore_write_errors("stdout")
        print("2")
        assert os.read(reader, 99) == b"2\n"
        os.close(reader)
        print("3", flush=True)
        return 4

    with pytest.raises(SystemExit, match="4"):
        command(main)()


class Terminal(io.StringIO):
    def isatty(self):
        return True


OUTPUTS = [(io.StringIO(), "packing: 3 of 4 images\n"), (Terminal(), "packing: 100%")]


@pytest.mark.parametrize(("stream", "shown"), OUTPUTS)
def test_progress_is_a_bar_on_a_terminal_and_else_a_line_a_minute(monkeypatch, stream, shown):
    times = iter((0, 59, 61, 61, 90))
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(times))
    with terminal.progress_bar(4, "packing") as bar:
        for count in (1, 2, 1):
            bar.update(count)
    assert shown in stream.getvalue()
    assert stream.isatty() or stream.getvalue() == shown


# Ctrl-C


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "number", "words"),
    [("os.kill(os.getpid(), 2)", signal.SIGINT, ""), ("os.write(2, b'why') and os.abort()", signal.SIGABRT, "why")],
)
def test_ctrl_c_during_the_imports_is_quiet_and_an_abort_says_why(action, number, words):
    """Here as TensorFlow is imported, while what it prints is held back."""
    prepare = "import os, types; sys.argv = ['train.py']; sys.meta_path.insert(0, types.SimpleNamespace(find_spec="
    prepare += f"lambda name, *_: {action} if name == 'tensorflow.python' else None))"
    result = start(prepare)
    assert (result.returncode, result.stderr) == (-number, words)


@pytest.mark.parametrize("swallowed", [False, True])
def test_ctrl_c_before_the_first_step_ends_with_130_even_if_a_library_swallows_it(
    sample_dir, tmp_path, monkeypatch, swallowed
):
    def open_interrupted(*_, **__):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if not swallowed:
                raise
        return open_dataset(sample_dir)

    monkeypatch.setattr(cli, "_interrupts", [])
    monkeypatch.setattr(train, "open_run_dataset", open_interrupted)
    monkeypatch.setattr(train, "parse", lambda: train.Arguments(config=quick_config(sample_dir, tmp_path)))
    with pytest.raises(SystemExit) as end:
        train.main()
    assert end.value.code == 130
