"""Disks, rights, names, locales and neighbours: whatever a sweep finds around it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small
from PIL import Image

from fixres_poc.config.files import REPOSITORY

pytest_plugins = ["small"]
pytestmark = pytest.mark.faults


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three classes of 20 images, with letters in their names that ASCII has not."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(["épagneul", "größer Hund", "柴犬"]):
        (tmp_path / "mes photos é" / name).mkdir(parents=True)
        for index in range(20):
            values = rng.integers(0, 256, (40, 50, 3)) // 2 + label * 60
            Image.fromarray(values.astype("uint8")).save(
                tmp_path / f"mes photos é/{name}/número {index}.png"
            )
    return tmp_path / "mes photos é"


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    """A home on a disk of 2 MB."""
    disk = home.with_name("disk")
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
    shutil.copytree(home, disk, dirs_exist_ok=True)
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_full_disk_is_said_in_one_line_and_more_space_ends_the_sweep(
    small_disk: Path, undisturbed: Path
) -> None:
    for megabytes in (2, 12, 40, 75):
        subprocess.run(["mount", "-o", f"remount,size={megabytes}m", str(small_disk)], check=True)
        lines = small.finish(small_disk, code=1).splitlines()
        told = [line for line in lines if "No space left on device" in line]
        assert told, lines
        assert all(len(line) < 300 for line in told)
        assert not [line for line in lines if "Traceback" in line]
    subprocess.run(["mount", "-o", "remount,size=400m", str(small_disk)], check=True)
    small.finish(small_disk)
    small.assert_same_results(small_disk, undisturbed)


@pytest.fixture
def limited_rights() -> list[str]:
    """A command's beginning that makes root heed the modes of files, as others do."""
    rights = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if os.geteuid() == 0 and (
        shutil.which("setpriv") is None or subprocess.run([*rights, "true"]).returncode
    ):
        pytest.skip("root can write everywhere here: setpriv (util-linux) cannot take that right")
    return rights if os.geteuid() == 0 else []


def forbid_writing(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def test_folders_that_may_not_be_written_to(
    home: Path, images: Path, limited_rights: list[str]
) -> None:
    """Images and the user's home do no harm; a runs folder is told in one line."""
    small.lay(home, dataset=str(images))
    forbid_writing(images)
    (house := home / "user").mkdir()
    forbid_writing(house)
    small.finish(home, variables={"HOME": str(house)}, before=limited_rights)
    results = home / "reports/small/results.csv"
    table, before = pd.read_csv(results), results.read_bytes()
    assert (table["status"] == "done").all()
    forbid_writing(home / "runs")
    said = small.finish(home, code=1, before=limited_rights)
    for path in [home / "runs", *(home / "runs").rglob("*")]:
        path.chmod(0o755)
    assert said.count("\n") == 1, said
    assert "Permission denied" in said
    assert results.read_bytes() == before


def test_spaces_and_letters_that_the_locale_does_not_know(
    home: Path, images: Path, tmp_path: Path
) -> None:
    repository, house = tmp_path / "le dépôt", tmp_path / "la maison à côté"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("fixres_poc", "profiles"):
        shutil.copytree(REPOSITORY / name, repository / name, ignore=ignore)
    shutil.copy(REPOSITORY / "Snakefile", repository)
    shutil.move(home, house)
    small.lay(house, dataset=str(images))
    locale = {"LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii"}
    said = small.finish(
        house, variables=locale | {"PYTHONPATH": f"{repository}{os.pathsep}{small.SITE}"}
    )
    assert "5 of 5 runs of small are done" in said
    table = pd.read_csv(house / "reports/small/results.csv")
    assert (table["status"] == "done").all()
