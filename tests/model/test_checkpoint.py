"""Checkpoints: those of other settings and damaged ones are refused, and what differs is named."""

from pathlib import Path

import pytest
import torch

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import TrainSettings
from fixres_poc.model import checkpoint


@pytest.mark.parametrize(
    "change", [{"epochs": 1}, {"backbone": "timm:resnet18"}, {"epochs": 3, "seed": 2}]
)
def test_a_refusal_names_what_differs_and_nothing_else(
    tmp_path: Path, change: dict[str, object]
) -> None:
    settings = TrainSettings(train_size=48)
    own = {"settings": settings.model_dump()}
    checkpoint.save(tmp_path / "x", {"a": torch.ones(2)}, {**own, "classes": ["a"]})
    assert checkpoint.load(tmp_path / "x", own)[1]["classes"] == ["a"]
    with pytest.raises(InputError) as refusal:
        checkpoint.load(
            tmp_path / "x", {"settings": settings.model_copy(update=change).model_dump()}
        )
    assert all(f"settings.{key} = " in str(refusal.value) for key in change)
    assert str(refusal.value).count("settings.") == len(change)
    with pytest.raises(InputError, match=r"classes = \['a'\], this run has \['a', 'b'\]"):
        checkpoint.load(tmp_path / "x", {"classes": ["a", "b"]})


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "x", {"a": torch.ones(1000), "b": torch.ones(3).bfloat16()}, {})
    content = bytearray((tmp_path / "x").read_bytes())
    assert torch.equal(checkpoint.load(tmp_path / "x", {})[0]["a"], torch.ones(1000))
    content[-2000] ^= 1
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match="checkpoint x: damaged"):
        checkpoint.load(tmp_path / "x", {})
