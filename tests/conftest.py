"""Small image folders and networks that the tests share."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

from fixres_poc.config.settings import DataSettings
from fixres_poc.data.dataset import ImageDataset, load_dataset

torch.set_num_threads(1)
# The same examples at every run; a slow machine is no fault, and one folder serves all examples of
# a test.
unhurried = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
settings.register_profile(
    "same", derandomize=True, deadline=None, database=None, suppress_health_check=unhurried
)
settings.load_profile("same")
COLOURS = {"blue": (30, 40, 200), "green": (30, 190, 40), "red": (200, 40, 30)}


def save_image(
    path: Path, colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (72, 56)
) -> None:
    """A noisy one-colour image of (width, height) px."""
    noise = np.random.default_rng(seed).integers(-30, 30, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype("uint8")).save(path)


def save_colours(folder: Path) -> Path:
    """Three classes that a colour tells apart, 12 images each."""
    for name, colour in COLOURS.items():
        for index in range(12):
            save_image(folder / name / f"{index:02d}.png", colour, seed=len(name) * 100 + index)
    return folder


def load(folder: Path, **more: Any) -> ImageDataset:
    """The images of a folder, with these other settings."""
    return load_dataset(DataSettings(dataset=str(folder), **more))


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has data/, runs/ and reports/ of its own, and no bars."""
    monkeypatch.setenv("FIXRES_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FIXRES_PROGRESS", "/dev/null")
    return tmp_path / "home"


@pytest.fixture
def own_look() -> Iterator[None]:
    """Figures in the project's look, without a window; closed afterwards."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    from fixres_poc.report.plots import style

    plt.switch_backend("Agg")
    with mpl.rc_context():
        style.use_style()
        yield
    plt.close("all")


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `save_colours`, drawn once; not to be changed."""
    return save_colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture
def colour_folder(colours: Path, tmp_path: Path) -> Path:
    """A copy of `colours`."""
    return Path(shutil.copytree(colours, tmp_path / "colours"))
