"""Downloads the dataset: the zip file's checksum is verified, and the folder appears only when it is complete."""

import logging
import sys
import zipfile
import zlib
from pathlib import Path

import requests
from tqdm import tqdm

from tiny_imagenet.errors import UserError, printable
from tiny_imagenet.file_utils import disk_errors, folder_lock, remove

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


def download_dataset(root: Path, url: str, md5: str) -> None:
    """Downloads and unpacks a dataset to `root`, unless there is something already.

    Everything happens in `<root>.download`, next to `root`. What a killed process left there is removed first.

    Args:
        root: the dataset's folder. Its parent must exist.
        url: address of a zip file with one top folder that contains wnids.txt; this folder becomes `root`.
        md5: checksum of the zip file, hexadecimal.

    Raises:
        UserError: no network, another checksum, a damaged zip file or one that leads out of its folder, a full disk.
    """
    root = root.resolve()  # a link to a folder that does not exist yet is kept
    with disk_errors(root), folder_lock(root.parent):
        if root.is_file() or (root.is_dir() and any(root.iterdir())):
            return
        if root.is_mount():  # the downloaded folder could not be renamed to it
            raise UserError(f"{printable(root)} is a mount point; set --data-dir to a folder in it")
        work = root.with_name(f"{root.name}.download")
        remove(work)
        work.mkdir()
        try:
            _unzip(_fetch(url, md5, work), work / "unzipped")
            found = [path.parent for path in work.glob("unzipped/*/wnids.txt")]
            if len(found) != 1:
                raise UserError(f"{url} has {len(found)} top folders with a wnids.txt, not one; use another address")
            found[0].rename(root)
        finally:
            remove(work)


def _fetch(url: str, md5: str, folder: Path) -> Path:
    """Downloads the zip file, with a progress bar, and verifies its checksum."""
    import pooch  # here: in a notebook it warns of a missing widget

    pooch.get_logger().setLevel(logging.WARNING)  # the bar says the same
    print(f"downloading {url}", file=sys.stderr)
    try:
        downloader = pooch.HTTPDownloader(progressbar=True)
        return Path(pooch.retrieve(url, f"md5:{md5}", "dataset.zip", folder, downloader=downloader))
    except requests.exceptions.RequestException as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"cannot download {url} ({reason}); check the address and the network") from error
    except ValueError as error:  # pooch found another checksum
        raise UserError(f"{url} is cut off or another version (its md5 is not {md5}); try again") from error


def _unzip(path: Path, folder: Path) -> None:
    """Unpacks a zip file, with a progress bar. Links become files; a path out of the folder is refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.startswith("/") or ".." in name.split("/"):
                    raise UserError(
                        f"the zip file's {printable(name[:100])} leads out of its folder; use another address"
                    )
            for member in tqdm(archive.infolist(), "unpacking", unit=" files", unit_scale=True, disable=None):
                archive.extract(member, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise UserError(f"the zip file cannot be unpacked ({error}); use another address") from error
