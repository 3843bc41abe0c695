"""The download: from a server on this machine, with every way in which it can go wrong."""

from startup import UserError

import hashlib
import http.server
import io
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from folders import make_folder

from dataset import DEFAULT_DATA_DIR, open_dataset

ROOT = Path(__file__).resolve().parent.parent


def zipped(folder: Path, top: str = "tiny-imagenet-200", extra: dict[str, str] | None = None) -> bytes:
    """A zip file of a folder, under another name, with further members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, f"{top}/{path.relative_to(folder)}")
        for name, text in (extra or {}).items():
            archive.writestr(name, text)
    return out.getvalue()


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    return zipped(make_folder(tmp_path_factory.mktemp("source") / "data"))


class Server(http.server.ThreadingHTTPServer):
    """Serves `data`; `cut` closes the connection half way, `stall` stops half way; `requests` counts."""

    data, cut, stall, requests = b"", False, False, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data.zip"

    @property
    def md5(self) -> str:
        return hashlib.md5(self.data).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests += 1
        if not server.data:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(server.data)))
        self.end_headers()
        part = len(server.data) // 2 if server.cut or server.stall else len(server.data)
        self.wfile.write(server.data[:part])
        if server.stall:
            time.sleep(60)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(good):
    with Server(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        server.data = good
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refusal(target: Path, url: str, md5: str) -> str:
    """The one line of the UserError that a download must end with; nothing may be left beside the target."""
    before = contents(target.parent)
    with pytest.raises(UserError) as caught:
        open_dataset(target, download=True, url=url, md5=md5)
    assert contents(target.parent) == before
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_downloads_checks_and_unpacks(tmp_path, server):
    data = open_dataset(tmp_path / "new", download=True, url=server.url, md5=server.md5)
    assert len(data.train.labels) == 9
    assert contents(tmp_path) == {"new"}
    open_dataset(tmp_path / "new", download=True, url=server.url, md5=server.md5)
    assert server.requests == 1, "what is there is not downloaded again"


def test_an_empty_folder_is_filled(tmp_path, server):
    (tmp_path / "empty").mkdir()
    assert len(open_dataset(tmp_path / "empty", download=True, url=server.url, md5=server.md5).val.labels) == 4


def test_only_the_default_folder_downloads_by_itself(tmp_path, server, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="tiny-imagenet-20 does not exist.*--download"):
        open_dataset(DEFAULT_DATA_DIR[:-1], url=server.url, md5=server.md5)
    assert server.requests == 0
    assert len(open_dataset(DEFAULT_DATA_DIR, url=server.url, md5=server.md5).train.labels) == 9
    assert contents(tmp_path) == {DEFAULT_DATA_DIR}


def test_a_folder_with_other_things_is_left_alone(tmp_path, server):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"wnids\.txt is missing"):
        open_dataset(tmp_path, download=True, url=server.url, md5=server.md5)
    assert server.requests == 0


def test_parent_must_exist(tmp_path, server):
    with pytest.raises(UserError, match="does not exist; make it first"):
        open_dataset(tmp_path / "none" / "data", download=True, url=server.url, md5=server.md5)


def test_no_server(tmp_path):
    text = refusal(tmp_path / "new", "http://127.0.0.1:9/data.zip", "0" * 32)
    assert "http://127.0.0.1:9/data.zip cannot be downloaded" in text and "check the network" in text


def test_not_found(tmp_path, server):
    server.data = b""
    assert "404" in refusal(tmp_path / "new", server.url, "0" * 32)


@pytest.mark.parametrize("url", ["", "nonsense", "file:///etc/passwd", "ftp://x/y.zip"])
def test_address_that_is_none(tmp_path, url):
    assert "cannot be downloaded" in refusal(tmp_path / "new", url, "0" * 32)


def test_wrong_hash(tmp_path, server):
    text = refusal(tmp_path / "new", server.url, "0" * 32)
    assert "md5 is not 00000000" in text


def test_cut_off_half_way(tmp_path, server):
    server.cut = True
    assert server.url in refusal(tmp_path / "new", server.url, server.md5)
    server.cut = False
    assert len(open_dataset(tmp_path / "new", download=True, url=server.url, md5=server.md5).train.labels) == 9


def test_killed_half_way(tmp_path, server):
    server.stall = True
    code = "import sys; from dataset import open_dataset; open_dataset(sys.argv[1], True, sys.argv[2], sys.argv[3])"
    arguments = [sys.executable, "-B", "-c", code, str(tmp_path / "new"), server.url, server.md5]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if any(path.stat().st_size for path in tmp_path.glob("new.download/*")):
                break
            time.sleep(0.1)
        assert (tmp_path / "new.download").is_dir() and process.poll() is None
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with pytest.raises(UserError, match="does not exist"):
        open_dataset(tmp_path / "new")
    server.stall = False
    assert len(open_dataset(tmp_path / "new", download=True, url=server.url, md5=server.md5).train.labels) == 9
    assert contents(tmp_path) == {"new"}


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "data/../../escaped", "..\\escaped", "C:/escaped"])
def test_member_that_climbs_out(tmp_path, server, good, name):
    out = io.BytesIO(good)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr(name, "x")
    server.data = out.getvalue()
    (tmp_path / "inner").mkdir()
    assert "leads out of the folder" in refusal(tmp_path / "inner" / "new", server.url, server.md5)
    assert contents(tmp_path) == {"inner"}


def test_member_that_is_a_link(tmp_path, server, good):
    link = zipfile.ZipInfo("tiny-imagenet-200/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    out = io.BytesIO(good)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr(link, "/etc")
    server.data = out.getvalue()
    assert "is a link" in refusal(tmp_path / "new", server.url, server.md5)


def test_not_a_zip_file(tmp_path, server):
    server.data = b"<html>moved</html>"
    assert "is not a zip file" in refusal(tmp_path / "new", server.url, server.md5)


def test_damaged_inside(tmp_path, server, good):
    data = bytearray(good)
    data[data.index(b"name of n03")] ^= 1  # stored, not compressed: only the CRC notices
    server.data = bytes(data)
    assert "Bad CRC-32" in refusal(tmp_path / "new", server.url, server.md5)


@pytest.mark.parametrize("top", ["other-name", "tiny-imagenet-200/inner"])
def test_top_folder(tmp_path, server, top):
    server.data = zipped(make_folder(tmp_path / "source"), top, {"__MACOSX/x": "litter"})
    target = tmp_path / "new"
    if "/" in top:
        assert "0 top folders with a wnids.txt" in refusal(target, server.url, server.md5)
    else:
        assert len(open_dataset(target, download=True, url=server.url, md5=server.md5).train.labels) == 9


def test_no_space(tmp_path, server, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    assert "No space left on device; free some space" in refusal(tmp_path / "new", server.url, server.md5)
