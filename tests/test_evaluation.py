import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from fixres_poc import datasets, evaluation
from fixres_poc.backbones import Tail, create, mean_std
from fixres_poc.config import BASELINE_SIZE, BaselineSettings, resolve
from fixres_poc.zero_shot import Restricted, mapping

PHOTOGRAPHS = Path(os.environ.get("FIXRES_PHOTOGRAPHS") or resolve("data/stanford-dogs-10"))


@torch.inference_mode()
def plain_probabilities(pictures: datasets.Pictures, split: str, own: list[int], imagenet: list[int]) -> np.ndarray:
    """The usual way: PIL, torchvision's first transforms, the network as it was built."""
    resize, crop = transforms.Resize(256), transforms.CenterCrop(BASELINE_SIZE)
    finish = [transforms.ToTensor(), transforms.Normalize(*mean_std("efficientnet_lite0"))]
    framed = transforms.Compose([resize, crop, *finish])
    model = create("efficientnet_lite0").eval()
    names = pictures.split(split)["picture"].tolist()
    logits = torch.full((len(names), len(pictures.classes)), -torch.inf)
    for start in range(0, len(names), 4):
        some = [framed(Image.open(pictures.root / name).convert("RGB")) for name in names[start : start + 4]]
        logits[start : start + 4, own] = model(torch.stack(some))[:, imagenet]
    return logits.softmax(dim=1).numpy()


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="needs ten breeds of Stanford Dogs in $FIXRES_PHOTOGRAPHS")
def test_the_fast_way_predicts_what_the_plain_way_does_on_photographs() -> None:
    settings = BaselineSettings(dataset=str(PHOTOGRAPHS))
    pictures = datasets.load(settings)
    everything = datasets.Pictures(pictures.root, pictures.classes, pictures.table.assign(split="test"))
    mapped = mapping(everything.classes)
    assert len(mapped) == len(everything.classes) == 10
    probabilities = plain_probabilities(everything, "test", list(mapped), list(mapped.values()))
    model = create("efficientnet_lite0")
    tail = Tail(model)
    tail.classifier = Restricted(tail.classifier, mapped, 10)
    engine = evaluation.accelerator("fp32")
    table = evaluation.predict(
        evaluation.place(model, settings, engine), {"own": tail}, everything, "test", settings, BASELINE_SIZE, engine
    ).table
    plain = probabilities.argmax(axis=1)
    differing = float((table["top1"].to_numpy() != plain).mean())
    gap = float((table["top1"] == table["target"]).mean()) - float((plain == table["target"].to_numpy()).mean())
    assert len(table) == 1799
    assert differing <= 0.002, f"top-1 differs on {differing:.2%} of the photographs"
    assert abs(gap) <= 0.001, f"accuracy differs by {gap:+.2%}"
