"""The backbone's own ImageNet classifier, with a network that sees nothing but colour."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fixres_poc.config.settings import BaselineSettings
from fixres_poc.data.dataset import ImageDataset, load_dataset
from fixres_poc.method import zero_shot

GOLDFISH, BEAGLE, SAMOYED = 1, 162, 258


class Colours(nn.Module):
    """Red is a goldfish and blue a beagle, but anything is a tench before that."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 1000)
        nn.init.zeros_(self.fc.weight)
        nn.init.constant_(self.fc.bias, -50)
        self.fc.weight.data[GOLDFISH, 0] = self.fc.weight.data[BEAGLE, 2] = 9
        self.fc.bias.data[0] = 99

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def forward_head(self, maps: torch.Tensor, **_: bool) -> torch.Tensor:
        return maps.mean((2, 3))

    def get_classifier(self) -> nn.Module:
        return self.fc


@pytest.fixture
def data(colour_folder: Path) -> ImageDataset:
    for before, after in {
        "red": "Goldfish",
        "blue": "n02088364-Snoopy",
        "green": "A_sort_of_moss",
    }.items():
        (colour_folder / before).rename(colour_folder / after)
    return load_dataset(BaselineSettings(dataset=str(colour_folder)))


def test_classes_are_mapped_by_wordnet_id_or_by_exactly_one_name() -> None:
    names = [
        "n02088364-beagle",
        "SAMOYED",
        "carassius-auratus",
        "01-beagle",
        "crane",
        "cardigan",
        "dog",
        "n02088364x",
    ]
    # the two of one WordNet id are left out
    assert zero_shot.mapping(names) == {1: SAMOYED, 2: GOLDFISH}
    assert zero_shot.mapping(names[:3]) == {0: BEAGLE, 1: SAMOYED, 2: GOLDFISH}
    assert zero_shot.mapping(["beagle", "Old English_sheepdog", "bobtail", "n99999999-beagle"]) == {
        0: BEAGLE
    }


ASKED = [
    "efficientnet_lite0",
    "resnext101_32x8d_wsl",
    "timm:resnet50",
    "timm:convnext_tiny.in12k_ft_in1k_384",
]
OTHER = [
    "timm:convnext_tiny.fb_in22k",
    "timm:resmlp_12_224.fb_dino",
    "timm:vit_small_patch14_dinov2.lvd142m",
    "timm:x",
]


@pytest.mark.parametrize("backbone", ASKED + OTHER)
def test_only_classifiers_of_imagenet_are_asked(backbone: str) -> None:
    assert zero_shot.has_imagenet_classifier(BaselineSettings(backbone=backbone)) is (
        backbone in ASKED
    )


def test_only_mapped_classes_are_asked_for_and_chosen(
    data: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zero_shot, "create", lambda _: Colours())
    found = zero_shot.predict_zero_shot(BaselineSettings(test_sizes=(48, 64)), data)
    assert found.mapped == {"Goldfish": "goldfish", "n02088364-Snoopy": "beagle"}
    table = found.predictions
    cells = dict.fromkeys([(48, "test"), (48, "val"), (64, "test"), (64, "val")], 6)
    assert table.groupby(["test_size", "split"]).size().to_dict() == cells
    assert set(table["adaptation"]) == {"zero_shot"}
    assert [data.classes[label] for label in sorted(set(table["target"]))] == [
        "Goldfish",
        "n02088364-Snoopy",
    ]
    assert (table["top1"] == table["target"]).all()
    assert table["probability"].min() > 0.5


@pytest.mark.parametrize(
    ("values", "obstacle"),
    [
        ({"weights": "mine.pth"}, "classifier of mine.pth is not known"),
        ({"backbone": "timm:convnext_tiny.fb_in22k"}, "convnext_tiny.fb_in22k is not known"),
        ({}, "fewer than 2 classes with test images are ImageNet's by name"),
    ],
)
def test_why_there_is_nothing_to_ask(
    data: ImageDataset, values: dict[str, str], obstacle: str
) -> None:
    if not values:
        data = ImageDataset(data.root, ("Moss", "Goldfish", "Snoopy"), data.table)
    found = zero_shot.predict_zero_shot(BaselineSettings(**values), data)  # type: ignore[arg-type]
    assert obstacle in found.obstacle
    assert len(found.predictions) == 0
