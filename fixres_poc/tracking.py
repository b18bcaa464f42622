"""Stage 1's curves for TensorBoard, through accelerate's tracker: off, unless $FIXRES_TRACKER is `tensorboard`."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from accelerate import Accelerator

from fixres_poc.config import InputError, TrainSettings


def log_history(history: pd.DataFrame, settings: TrainSettings, folder: Path) -> None:
    """Write loss and top-1 on validation of every epoch, and the settings, to `folder`/tracking.

    It is done after the training, so that one that was read from its checkpoint is logged as well.

    Args:
        history: columns epoch, loss and val_top1.
        settings: of the training.
        folder: the run's folder; what an earlier run has logged there is replaced.

    Raises:
        InputError: the tracker is unknown or not installed.
    """
    name = os.environ.get("FIXRES_TRACKER")
    if not name:
        return
    if name != "tensorboard":
        raise InputError(f"FIXRES_TRACKER = {name!r}: allowed is tensorboard")
    if find_spec(name) is None:
        raise InputError(f"FIXRES_TRACKER = {name!r}: is not installed; pip install tensorboard")
    shutil.rmtree(folder / "tracking", ignore_errors=True)
    engine = Accelerator(log_with=name, project_dir=folder)
    values = settings.model_dump().items()
    engine.init_trackers(
        "tracking", {key: value if isinstance(value, int | float) else str(value) for key, value in values}
    )
    for row in history.to_dict("records"):
        engine.log({"loss": row["loss"], "val_top1": row["val_top1"]}, step=int(row["epoch"]))
    for tracker in engine.trackers:  # `end_training` would also end the processes' group
        tracker.finish()
