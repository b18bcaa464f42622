"""What a user would run instead: the usual loop of torchvision's and timm's scripts.

PIL decodes in as many loader processes as there are cores, torchvision's transforms follow, and the
network runs as it was built. Inference mode, no gradients for frozen weights, loader processes that
stay between epochs. Numbers are those of the project's settings, so that both do the same work.

As a script, one independent run of a pair: `python -m benchmarks.usual FILE` with the settings as
JSON.
"""

import copy
import itertools
import json
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from fixres_poc.config.provenance import cores
from fixres_poc.config.settings import ADAPTED, CONTROL, ModelSettings, PairSettings, several
from fixres_poc.config.validation import validate
from fixres_poc.data.dataset import ImageDataset, load_dataset
from fixres_poc.data.transforms import shifted_crop
from fixres_poc.method.epochs import number_of_epochs
from fixres_poc.model.backbones import create, mean_std
from fixres_poc.model.trunk import last_batch_norm

CORES = cores()


class Files(Dataset[tuple[torch.Tensor, int]]):
    """Images of one split, decoded by PIL."""

    def __init__(self, data: ImageDataset, split: str, transform: transforms.Compose) -> None:
        """List the files."""
        part = data.only(split)
        self.images = list(zip(map(str, part.paths), part.table["label"].tolist(), strict=True))
        self.transform = transform

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """One image and its label."""
        path, label = self.images[index]
        return self.transform(default_loader(path)), label


def framing(name: str, size: int, backbone: str) -> transforms.Compose:
    """The published transforms: "train" (random crops), "val_train" (stage 2), "val_test"."""
    jitter, resize = transforms.ColorJitter, transforms.Resize(int(256 / 224 * size))
    flip = transforms.RandomHorizontalFlip()
    steps = {
        "train": [transforms.RandomResizedCrop(size), flip, jitter(0.3, 0.3, 0.3)],
        "val_train": [resize, flip, jitter(0.05, 0.05, 0.05), partial(shifted_crop, size=size)],
        "val_test": [resize, transforms.CenterCrop(size)],
    }[name]
    return transforms.Compose(
        [*steps, transforms.ToTensor(), transforms.Normalize(*mean_std(backbone))]
    )


def loader(
    data: ImageDataset, split: str, settings: ModelSettings, size: int, name: str
) -> DataLoader[tuple[torch.Tensor, int]]:
    """Batches of one split; shuffled unless for testing."""
    files = Files(data, split, framing(name, size, settings.backbone))
    return DataLoader(
        files,
        settings.batch_size,
        name != "val_test",
        num_workers=CORES,
        persistent_workers=True,
        pin_memory=False,
    )


@torch.inference_mode()
def evaluate(
    model: nn.Module, loaded: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[torch.Tensor, float]:
    """Probabilities (N, C) of a network in eval mode, and its top-1 accuracy."""
    model.eval()
    parts, hits = [], 0
    for images, labels in loaded:
        parts.append(model(images).softmax(dim=1))
        hits += int((parts[-1].argmax(dim=1) == labels).sum())
    probabilities = torch.cat(parts)
    return probabilities, hits / len(probabilities)


def train(settings: PairSettings, data: ImageDataset, size: int) -> nn.Module:
    """Stage 1 at one rate, from a random classifier, with a test on validation after each epoch."""
    torch.manual_seed(settings.seed)
    model = create(settings.backbone, len(data.classes))
    loaded = loader(data, "train", settings, size, "train")
    validation = loader(data, "val", settings, size, "val_test")
    (rate,) = several(settings.learning_rate)
    optimizer = torch.optim.SGD(model.parameters(), rate, 0.9, weight_decay=1e-4, nesterov=True)
    epochs = number_of_epochs(settings, data.counts())
    steps = epochs * len(loaded)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, steps, pct_start=0.15, cycle_momentum=False
    )
    for _ in range(epochs):
        epoch(model.train(), loaded, optimizer, schedule, settings.label_smoothing)
        evaluate(model, validation)
    return model


def epoch(
    model: nn.Module,
    loaded: Iterable[tuple[torch.Tensor, torch.Tensor]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    smoothing: float,
) -> None:
    """One pass over the loader, of a network that is in the right mode already."""
    criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
    for images, labels in loaded:
        criterion(model(images), labels).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def adapt(
    settings: PairSettings, data: ImageDataset, trained: nn.Module, size: int, adaptation: str
) -> nn.Module:
    """Stage 2: the classifier, the last batch norm, or both."""
    model = copy.deepcopy(trained).requires_grad_(False).eval()
    norm = last_batch_norm(model)
    (epochs,), (rate,) = several(settings.adapt_epochs), several(settings.adapt_learning_rate)
    model.get_classifier().requires_grad_(adaptation != "bn_stats")  # type: ignore[operator]
    if adaptation != "head" and norm is not None:
        norm.train().requires_grad_(adaptation == "head_bn")
    loaded = loader(data, "train", settings, size, "val_train")
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not free:
        for images, _ in itertools.chain.from_iterable(itertools.repeat(loaded, epochs)):
            model(images)
        return model
    optimizer = torch.optim.SGD(free, rate, 0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loaded))
    for _ in range(epochs):
        epoch(model, loaded, optimizer, schedule, settings.adapt_label_smoothing)
    return model


def ways(settings: PairSettings) -> dict[str, tuple[str, int]]:
    """Adaptation and size of every network that a pair compares, controls included, by name."""
    found: dict[str, tuple[str, int]] = {
        name: (name, settings.test_size) for name in settings.adaptations
    }
    if settings.test_size != settings.train_size:
        controlled = [name for name in settings.adaptations if name in ADAPTED]
        found |= {CONTROL + name: (name, settings.train_size) for name in controlled}
    return found


def settings_of(file: str) -> PairSettings:
    """The settings that `processes.pair_files` has written."""
    return validate(PairSettings, json.loads(Path(file).read_text(encoding="utf-8")), file)


def pair(settings: PairSettings) -> dict[str, float]:
    """Top-1 on test by adaptation, everything from the start."""
    data, found = load_dataset(settings), dict[str, float]()
    trained = train(settings, data, settings.train_size)
    for name, (adaptation, size) in ways(settings).items():
        model = trained
        if adaptation != "none":
            model = adapt(settings, data, trained, size, adaptation)
        for split in ("val", "test"):
            loaded = loader(data, split, settings, settings.test_size, "val_test")
            found[name] = evaluate(model, loaded)[1]
    return found


if __name__ == "__main__":
    print(json.dumps(pair(settings_of(sys.argv[1]))))
