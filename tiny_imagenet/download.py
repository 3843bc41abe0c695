"""Downloads the dataset: the zip file's checksum is verified, and the folder appears only when it is complete."""

import logging
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import requests
from tqdm import tqdm

from tiny_imagenet.errors import UserError, printable
from tiny_imagenet.file_utils import disk_errors, folder_lock, is_empty, temporary_folder

URLS = ("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "https://image-net.org/data/tiny-imagenet-200.zip")
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


def download_dataset(root: Path, urls: Sequence[str], md5: str) -> None:
    """Downloads and unpacks a dataset to `root`, unless there is something already.

    Everything happens in a temporary folder: in `root` if that exists, else next to it.

    Args:
        root: the dataset's folder. Its parent must exist.
        urls: addresses of a zip file with one top folder that contains wnids.txt; this folder becomes `root`. The
            first that works is used.
        md5: checksum of the zip file, hexadecimal.

    Raises:
        UserError: no network, another checksum, a damaged zip file, a full disk.
    """
    root = root.resolve()  # a link to a folder that does not exist yet is kept
    place, name = (root, ".download") if root.is_dir() else (root.parent, f".{root.name}.download")
    with disk_errors(root), folder_lock(place):
        if root.is_file() or (root.is_dir() and not is_empty(root)):
            return
        with temporary_folder(place, name) as work:
            _unzip(_fetch(urls, md5, work), work / "unzipped")
            found = [path.parent for path in work.glob("unzipped/*/wnids.txt")]
            if len(found) != 1:
                raise UserError(f"the zip file has {len(found)} top folders with a wnids.txt, not 1; set another --url")
            if root.is_dir():  # replacing it would pull it away from under a shell or a mount point
                for path in sorted(found[0].iterdir(), key=lambda path: path.name == "train"):  # this one last
                    path.rename(root / path.name)
            else:
                found[0].rename(root)


def _fetch(urls: Sequence[str], md5: str, folder: Path) -> Path:
    """Downloads the zip file, with a progress bar, and verifies its checksum."""
    import pooch  # here: in a notebook it warns of a missing widget

    pooch.get_logger().setLevel(logging.WARNING)  # the bar says the same
    failures = []
    for url in urls:
        print(f"downloading {printable(url)}", file=sys.stderr)
        try:
            downloader = pooch.HTTPDownloader(progressbar=True)
            return Path(pooch.retrieve(url, f"md5:{md5}", "dataset.zip", folder, downloader=downloader))
        except requests.exceptions.RequestException as error:  # a connection that was cut, too
            reason = " ".join(str(error).split())[:300]
        except ValueError:  # pooch found another checksum
            reason = f"it arrived, but is another version: its MD5 is not {md5}"
        failures.append(f"{printable(url)} ({printable(reason)})")
    raise UserError(f"cannot download {' or '.join(failures)}; check the address and the network")


def _unzip(path: Path, folder: Path) -> None:
    """Unpacks a zip file, with a progress bar. Links become files, and nothing gets out of the folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in tqdm(archive.infolist(), "unpacking", unit=" files", unit_scale=True, disable=None):
                archive.extract(member, folder)  # without any ".." in its name
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise UserError(f"the zip file cannot be unpacked ({error}); set another --url") from error
