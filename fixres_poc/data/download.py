"""Downloads that go on where they stopped and are used only with the right checksum. No torch in here."""

import lzma
import math
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import pooch
import requests
from filelock import FileLock

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import file_digest
from fixres_poc.config.run_state import bar

RETRIES = 3
CHUNK_BYTES = 2**20
LARGEST_BYTES = 2**33


def fetch(url: str, folder: Path, checksum: str, terms: str) -> Path:
    """The file of a URL, downloaded unless it lies in the folder already.

    What has arrived of a broken download stays as <name>.part. Several processes may ask at once:
    one works.

    Args:
        url: ends in the file's name.
        checksum: what the file's SHA-256 begins with, all of its 64 hex digits or fewer; "md5:"
            before an MD5; "" where its maker publishes none.
        terms: those of the file, for whoever has to fetch it by hand.

    Raises:
        InputError: no answer, a wrong checksum, a full disk; it says which file to put where by
            hand.
    """
    name = url.rsplit("/", 1)[-1]
    file = folder / name
    pooch.get_logger().setLevel("WARNING")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):
            if file.exists():
                _check(file, checksum, str(file))
            store = pooch.create(
                folder, url.removesuffix(name), registry={name: None}, retry_if_failed=RETRIES
            )
            return Path(store.fetch(name, downloader=partial(_resume, checksum=checksum)))
    except requests.HTTPError as error:
        reason = str(error)
    except requests.RequestException:
        reason = f"{url}: no answer, or the connection broke; run again to go on where it stopped"
    except ValueError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{file}: {error.strerror}"
    raise InputError(f"{reason}; or put {name} into {folder} by hand ({terms})") from None


def install(
    target: Path,
    whole: Callable[[], object],
    files: Mapping[str, str],
    terms: str,
    lay_out: Callable[..., Path],
) -> Path:
    """Download and lay out a dataset that is not there yet, completely or not at all; archives stay beside it.

    Several processes may call this at once: one works, the others wait.

    Args:
        target: the dataset's folder, which is returned.
        whole: says whether the dataset lies there.
        files: URL to checksum, as for `fetch`.
        lay_out: gets the files and an empty folder to work in, and returns the finished dataset's
            folder in that.

    Raises:
        InputError: as `fetch` and `lay_out`; something else lies in the target; it cannot be
            written.
    """
    archives = target.with_name(f"{target.name}_archives")
    if whole():
        return target
    archives.mkdir(parents=True, exist_ok=True)
    with FileLock(archives / "lock"):
        if whole():
            return target
        if target.exists():
            raise InputError(f"{target}: there, but not whole; add what is missing or remove it")
        fetched = [fetch(url, archives, checksum, terms) for url, checksum in files.items()]
        work = archives / "unpacked"
        shutil.rmtree(work, ignore_errors=True)
        try:
            work.mkdir()
            os.replace(lay_out(fetched, work), target)
        except OSError as error:
            raise InputError(f"{target}: cannot be written ({error.strerror})") from None
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def _check(file: Path, checksum: str, source: str) -> None:
    algorithm, _, digits = checksum.rpartition(":")
    if not str(file_digest(file, algorithm or "sha256")).startswith(digits):
        raise ValueError(
            f"{source}: wrong checksum, so cut or damaged; delete {file} and run again"
        )


def unpack(archive: Path, folder: Path, mode: Literal["r", "r:"] = "r") -> None:
    """Unpack a tar archive into a folder, with mode "r:" one that is not compressed; nothing is written elsewhere.

    Raises:
        InputError: it is cut or damaged, would write elsewhere, or the disk is full.
    """
    try:
        with tarfile.open(archive, mode) as tar:
            tar.extractall(folder, members=bar(tar, f"unpacking {archive.name}"), filter="data")
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        advice = (
            ""
            if isinstance(error, OSError) and error.errno
            else "; delete it and run again to download it"
        )
        raise InputError(f"{archive}: cannot be unpacked ({error}){advice}") from None


def _resume(url: str, output_file: str, store: pooch.Pooch, checksum: str) -> None:
    """Downloader for pooch that goes on with <name>.part and checks the whole; pooch itself takes no part of a hash."""
    name = url.rsplit("/", 1)[-1]
    part = Path(store.path) / f"{name}.part"
    done = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with requests.get(url, headers=headers, stream=True, timeout=30) as answer:  # seconds
        # that is: nothing is left to fetch
        if answer.status_code != requests.codes.requested_range_not_satisfiable:
            answer.raise_for_status()
            resumed = answer.status_code == requests.codes.partial_content
            total = math.ceil(int(answer.headers.get("Content-Length", 0)) / CHUNK_BYTES) or None
            with part.open("ab" if resumed else "wb") as file:
                for chunk in bar(
                    answer.iter_content(CHUNK_BYTES), f"downloading {name}, MiB", total
                ):
                    file.write(chunk)
                    if file.tell() > LARGEST_BYTES:
                        raise ValueError(
                            f"{url}: more than {LARGEST_BYTES // 2**30} GiB, so not the file wanted"
                        )
    os.replace(part, output_file)
    _check(Path(output_file), checksum, url)
