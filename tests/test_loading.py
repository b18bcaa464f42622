from pathlib import Path

import pytest
import torch

from fixres_poc import datasets
from fixres_poc.config import DataSettings
from fixres_poc.datasets.loading import PictureDataset, batches, loader
from fixres_poc.transforms import get_transforms


@pytest.mark.parametrize(("framing", "seed"), [("val_test", None), ("train", 3)])
def test_batches_are_the_same_with_any_number_of_threads(colour_folder: Path, framing: str, seed: int | None) -> None:
    pictures = datasets.load(DataSettings(dataset=str(colour_folder)))
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            data = PictureDataset(pictures, "train", get_transforms(32, 32)[framing], seed)
            found.append(list(loader(data, batches(data, 5))))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    for one, three in zip(*found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
