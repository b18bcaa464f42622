"""Checkpoints: those of other settings and damaged ones are refused, and what differs is named."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import TrainSettings
from fixres_poc.model import checkpoint


def test_a_refusal_names_what_differs_and_nothing_else(tmp_path: Path) -> None:
    own: dict[str, Any] = {"settings": TrainSettings(train_size=48).model_dump(), "classes": ["a"]}
    checkpoint.save(tmp_path / "x", {"a": torch.ones(2)}, own)
    assert checkpoint.load(tmp_path / "x", {"settings": own["settings"]})[1]["classes"] == ["a"]
    with pytest.raises(InputError) as refusal:
        checkpoint.load(tmp_path / "x", {"settings": own["settings"] | {"epochs": 3, "seed": 2}})
    assert re.findall(r"settings\.\w+", str(refusal.value)) == ["settings.epochs", "settings.seed"]
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
