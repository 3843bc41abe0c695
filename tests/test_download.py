"""The download: from a server on this machine, with every way in which it can fail."""

import errno
import hashlib
import http.server
import io
import stat
import threading
import zipfile
from pathlib import Path

import pytest
from helpers import make_dataset, write

from tiny_imagenet import dataset
from tiny_imagenet.config import DEFAULT_DATA_DIR
from tiny_imagenet.dataset import Dataset, open_dataset
from tiny_imagenet.errors import UserError


def zip_folder(folder: Path, top: str = "tiny-imagenet-200", extra: str | zipfile.ZipInfo = "__MACOSX/x") -> bytes:
    """A zip file of a folder, under another name, with an extra member."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, f"{top}/{path.relative_to(folder)}")
        archive.writestr(extra, "/etc")
    return out.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves `data`; `is_cut` closes the connection half way; `requests` counts."""

    data, is_cut, requests = b"", False, 0

    @property
    def address(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self.server_port}/data.zip"
        return {"url": url, "md5": hashlib.md5(self.data).hexdigest()}

    def download(self, target: str | Path) -> Dataset:
        return open_dataset(target, download=True, **self.address)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        if not self.server.data:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.data)))
        self.end_headers()
        self.wfile.write(self.server.data[: len(self.server.data) // 2 if self.server.is_cut else None])

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("source") / "data")


@pytest.fixture
def server(source):
    with Server(("127.0.0.1", 0), Handler) as server:
        server.data = zip_folder(source)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def message(target: Path, url: str, md5: str = "0" * 32) -> str:
    """The one line of the UserError with which a download must end; it must leave nothing next to the target."""
    before = set(target.parent.iterdir())
    with pytest.raises(UserError) as caught:
        open_dataset(target, download=True, url=url, md5=md5)
    assert set(target.parent.iterdir()) == before
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_downloads_once_over_what_a_killed_download_left(tmp_path, server):
    killed = write(tmp_path / f".new.download-{'0f' * 8}/unzipped/wnids.txt", "half").parent.parent
    kept = write(tmp_path / "new.download/thesis.tex", "x").parent
    assert len(server.download(tmp_path / "new").train.labels) == 9
    assert set(tmp_path.iterdir()) == {tmp_path / "new", kept} and not killed.exists() and any(kept.iterdir())
    server.download(tmp_path / "new")
    assert server.requests == 1, "what exists is not downloaded again"


def test_downloads_into_an_empty_folder_that_someone_is_in(tmp_path, server, monkeypatch):
    write(tmp_path / "here/.hidden", "x")
    monkeypatch.chdir(tmp_path / "here")
    assert len(server.download(".").val.labels) == 4
    assert {path.name for path in Path().iterdir()} >= {"train", "val", "wnids.txt", "words.txt", ".hidden"}


def test_the_second_address_is_used_if_the_first_fails(tmp_path, server, monkeypatch):
    monkeypatch.setattr(dataset, "URLS", ("http://127.0.0.1:9/a.zip", server.address["url"]))
    assert len(open_dataset(tmp_path / "new", download=True, md5=server.address["md5"]).val.labels) == 4
    with pytest.raises(UserError, match=r"127.0.0.1:9/a.zip \(.* or .*data.zip \(.*another version"):
        open_dataset(tmp_path / "other", download=True, md5="0" * 32)


def test_only_the_default_folder_is_downloaded_automatically(tmp_path, server, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="tiny-imagenet-20 does not exist.*--download"):
        open_dataset(DEFAULT_DATA_DIR[:-1], **server.address)
    assert server.requests == 0
    assert len(open_dataset(DEFAULT_DATA_DIR, **server.address).train.labels) == 9


def test_a_folder_with_other_things_is_left_alone(tmp_path, server):
    write(tmp_path / "thesis.tex", "x")
    with pytest.raises(UserError, match="has no images in train"):
        server.download(tmp_path)
    with pytest.raises(UserError, match="none: No such file"):
        server.download(tmp_path / "none" / "data")
    assert server.requests == 0 and list(tmp_path.iterdir()) == [tmp_path / "thesis.tex"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/data.zip", "", "nonsense", "file:///etc/passwd"])
def test_address_without_a_server(tmp_path, url):
    text = message(tmp_path / "new", url)
    assert f"cannot download {url}" in text and "check the address and the network" in text


def test_downloads_that_fail(tmp_path, server, source, monkeypatch):
    target = tmp_path / "new"
    assert "another version: its MD5 is not 00000000" in message(target, server.address["url"])
    damaged = server.data.replace(b"name of n03", b"name of n04", 1)  # stored, not compressed: only its CRC is wrong
    for data, expected in (
        (b"<html>moved</html>", "cannot be unpacked"),
        (damaged, "Bad CRC-32"),
        (zip_folder(source, "top/inner"), "0 top folders with a wnids.txt"),
        (b"", "404"),
    ):
        server.data = data
        assert expected in message(target, **server.address)
    server.data, server.is_cut = damaged, True
    assert "another version" not in message(target, **server.address)
    server.is_cut = False
    monkeypatch.setattr(zipfile.ZipFile, "extract", full_disk)
    assert "No space left on device; free some disk space" in message(target, **server.address)


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "data/../../escaped"])
def test_no_member_gets_out_of_the_folder(tmp_path, server, source, name):
    server.data = zip_folder(source, extra=name)
    server.download(tmp_path / "new")
    assert list(tmp_path.iterdir()) == [tmp_path / "new"] and not Path("/escaped").exists()


def test_member_that_is_a_link_becomes_a_file(tmp_path, server, source):
    link = zipfile.ZipInfo("tiny-imagenet-200/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    server.data = zip_folder(source, extra=link)
    server.download(tmp_path / "new")
    assert not (tmp_path / "new/link").is_symlink() and (tmp_path / "new/link").read_text() == "/etc"
