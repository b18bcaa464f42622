"""Batches of images: the same whatever reads them, and each image with its own random numbers."""

import itertools
from pathlib import Path

import pytest
import torch
from conftest import load

from fixres_poc.config.errors import InputError
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.data.loading import (
    DecodedImages,
    SplitImages,
    batches,
    decoded_images,
    loader,
    parts_of,
    read_image,
)
from fixres_poc.data.transforms import get_transforms


@pytest.fixture
def data(colour_folder: Path) -> ImageDataset:
    return load(colour_folder)


def test_augmentation_is_a_function_of_seed_epoch_and_image(data: ImageDataset) -> None:
    train = get_transforms(32, 32, need=["train"])["train"]
    samples = SplitImages(data, "train", train, seed=3)
    state = torch.random.get_rng_state()
    first = samples[2][0]
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(samples[2][0], first)
    samples.epoch = 1
    assert not torch.equal(samples[2][0], first)
    assert not torch.equal(SplitImages(data, "train", train, seed=4)[2][0], first)


def test_an_epoch_has_batches_of_one_size_and_every_image(data: ImageDataset) -> None:
    samples = SplitImages(data, "train", lambda image: image, seed=0)
    samples.epoch = 1
    first = batches(samples, 8)
    order = list(itertools.chain(*first))
    assert [len(batch) for batch in first] == [6, 6, 6]
    assert sorted(order) == list(range(18)) != order
    samples.epoch = 2
    assert batches(samples, 8) != first
    in_order = batches(SplitImages(data, "train", lambda image: image), 8)
    assert list(itertools.chain(*in_order)) == list(range(18))


@pytest.mark.parametrize(
    ("images", "most", "parts"), [(18, 8, 3), (18, 2, 9), (17, 2, 8), (3, 1, 3), (1, 2, 1)]
)
def test_no_part_has_one_image_alone(images: int, most: int, parts: int) -> None:
    assert parts_of(images, most) == parts


@pytest.mark.parametrize(("workers", "processes"), [(2, 1), (0, 3)])
def test_workers_and_processes_share_every_batch(
    data: ImageDataset, workers: int, processes: int
) -> None:
    samples = SplitImages(data, "train", get_transforms(48, 48)["train"], seed=0)
    rows = batches(samples, 5)
    loaders = [loader(samples, rows, workers, rank, processes) for rank in range(processes)]
    parts = [[batch[2].tolist() for batch in each] for each in loaders]
    assert [list(itertools.chain(*each)) for each in zip(*parts, strict=True)] == rows


@pytest.mark.parametrize(("name", "seed"), [("train", 3), ("val_train", 3), ("val_test", None)])
def test_a_batch_is_its_images_one_by_one(data: ImageDataset, name: str, seed: int | None) -> None:
    transform = get_transforms(32, 40, view="five_crop")[name]
    samples, rows = SplitImages(data, "train", transform, seed), [4, 0, 7]
    images, labels, numbers = samples.__getitems__(rows)
    assert torch.equal(images, torch.stack([samples[row][0] for row in rows]))
    assert images.dtype == torch.float32
    if seed is None:
        files = [samples.paths[row] for row in rows]
        assert torch.equal(images, torch.stack([transform(read_image(file)) for file in files]))
    assert labels.tolist() == [samples.labels[row] for row in rows]
    assert numbers.tolist() == rows


def test_decoded_images_stay_until_their_memory_is_full(data: ImageDataset) -> None:
    first, second, *_ = data.paths
    images = DecodedImages(most_bytes=read_image(first).nbytes)
    kept = images.read(first)
    assert images.read(first) is kept
    assert torch.equal(kept, read_image(first))
    assert images.read(second) is not images.read(second)
    assert images.left_bytes == 0
    first.write_bytes(second.read_bytes())
    assert torch.equal(images.read(first), read_image(second)), "a changed one is decoded again"
    first.unlink()
    with pytest.raises(FileNotFoundError, match=first.name):
        images.read(first)


@pytest.mark.parametrize("name", ["train", "val_train", "val_test"])
def test_transforms_leave_a_kept_image_as_it_is(data: ImageDataset, name: str) -> None:
    # its size is that of the crops, so that views of it are passed on
    samples = SplitImages(data, "train", get_transforms(32, 28)[name], seed=0)
    before = decoded_images().read(samples.paths[0]).clone()
    for epoch in range(5):
        samples.epoch = epoch
        assert samples[0][0].dtype == torch.float32
    assert torch.equal(decoded_images().read(samples.paths[0]), before)


def test_the_cache_size_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIXRES_IMAGE_CACHE_MIB", "much")
    with pytest.raises(InputError, match="FIXRES_IMAGE_CACHE_MIB = 'much'"):
        decoded_images.__wrapped__()
