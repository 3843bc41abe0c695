"""Downloads the dataset's zip file: the hash is checked, and the folder appears only when it is whole."""

from startup import UserError

import logging
import shutil
import stat
import sys
import zipfile
import zlib
from pathlib import Path

from tqdm import tqdm

from files import locked, os_errors_named, shown


def download_dataset(root: Path, url: str, md5: str) -> None:
    """Downloads and unpacks a dataset to `root`; does nothing if `root` is there and not empty.

    All is done in `<root>.download`, beside `root`; what a killed process left there is removed first.

    Args:
        root: The dataset's root to be. Its parent must exist.
        url: Address of a zip file whose one top folder with a wnids.txt in it becomes `root`.
        md5: Hash of the zip file, hexadecimal.

    Raises:
        UserError: No network, another hash, a zip file that is damaged or reaches out of its folder, no space.
    """
    root = root.resolve()  # a link to a folder that is not there yet stays
    if not root.parent.is_dir():
        raise UserError(f"{shown(root.parent)} does not exist; make it first, or correct --data-dir")
    with os_errors_named(root), locked(root.parent):
        if root.is_file() or (root.is_dir() and any(root.iterdir())):
            return
        if root.is_mount():
            raise UserError(f"{shown(root)} is a mount point, which cannot be replaced; name a folder in it")
        work = root.with_name(f"{root.name}.download")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            archive = _fetch(url, md5, work)
            _unzip(archive, work / "unzipped")
            _find_dataset(work / "unzipped", url).rename(root)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _fetch(url: str, md5: str, folder: Path) -> Path:
    """Downloads the zip file, with a progress bar, and checks its hash."""
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)  # the bar says the same
    print(f"downloading {url}", file=sys.stderr)
    try:
        fetcher = pooch.HTTPDownloader(progressbar=True)
        return Path(pooch.retrieve(url, f"md5:{md5}", "dataset.zip", folder, downloader=fetcher))
    except requests.exceptions.RequestException as error:
        what = f"{type(error).__name__}: {_innermost(error)}"
        raise UserError(
            f"{url} cannot be downloaded ({what}); check the network and the address, or unpack the zip file by hand"
        ) from error
    except ValueError as error:  # pooch's answer to another hash
        raise UserError(
            f"{url} is not the expected file (md5 is not {md5}): cut off or another version; try again, or another "
            "address"
        ) from error


def _innermost(error: BaseException) -> str:
    """What lies at the bottom of an error of the network, in one line: the others only say that there is one."""
    while inner := error.__cause__ or error.__context__ or getattr(error, "reason", None):
        if not isinstance(inner, BaseException):
            break
        error = inner
    return " ".join(str(error).split())[:200]


def _check_members(archive: zipfile.ZipFile, name: str) -> None:
    """Refuses a zip file with a member that could be written outside of the folder it is unpacked to."""
    for member in archive.infolist():
        parts = member.filename.replace("\\", "/").split("/")
        kind = stat.S_IFMT(member.external_attr >> 16)
        leaves = not parts[0] or ":" in parts[0] or ".." in parts
        if leaves or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(
                f"{name}: its member {shown(member.filename[:100])} is a link or leads out of the folder; nothing was "
                "unpacked; use another address"
            )


def _unzip(path: Path, folder: Path) -> None:
    """Unpacks a zip file, with a progress bar."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path.name)
            for member in tqdm(archive.infolist(), desc="unpacking", unit=" files", unit_scale=True, disable=None):
                archive.extract(member, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise UserError(f"{path.name} is not a zip file that can be unpacked ({error}); use another address") from error


def _find_dataset(folder: Path, url: str) -> Path:
    """The one top folder that holds a wnids.txt."""
    found = [path.parent for path in folder.glob("*/wnids.txt")]
    if len(found) != 1:
        raise UserError(f"{url} has {len(found)} top folders with a wnids.txt, not one; use another address")
    return found[0]
