"""stub"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fit:
    micro_batch_size: int
    gradient_checkpointing: bool
    peak_bytes: int
    fits: bool


def fit(settings, classes, budget_bytes):
    return Fit(settings.batch_size, settings.gradient_checkpointing is True, 0, True)


def budget_bytes():
    return 0
