"""What one process does alone and two do together, for comparison; arguments: pictures, folder for the results."""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from fixres_poc import adaptation, datasets, evaluation, fine_tuning
from fixres_poc.backbones import create
from fixres_poc.config import TrainSettings
from fixres_poc.datasets.loading import PictureDataset, batches, loader
from fixres_poc.preflight import Fit


def settings_for(folder: Path) -> TrainSettings:
    """Batches of 6, twice 3 in two processes."""
    return TrainSettings(
        dataset=str(folder), train_size=48, batch_size=6, epochs=8, adapt_epochs=2, learning_rate=0.03, seed=1
    )


def work(engine: Accelerator, folder: Path) -> dict[str, Any]:
    """One step of stage 1, a whole stage 1, and an adapted head."""
    settings = settings_for(folder)
    pictures = datasets.load(settings)
    fit = Fit(3, False, 0, True)
    state = fine_tuning.begin(settings, pictures, engine, fit)
    before = {key: value.detach().clone() for key, value in state.model.named_parameters()}
    transform = evaluation.transforms_for(settings, 48, 48)["train"]
    data = PictureDataset(pictures, "train", transform, settings.seed)
    rows = batches(data, settings.batch_size)
    images, labels, _ = next(iter(loader(data, rows, 0, engine.process_index, engine.num_processes)))
    state.model.train()
    loss = fine_tuning.step(state, images, labels, len(rows[0]), settings, engine, 3)
    moved = {key: value.detach() - before[key] for key, value in state.model.named_parameters()}
    fine_tuned, history = fine_tuning.fine_tune(settings, pictures, engine, fit, None, {})
    torch.manual_seed(0)
    model = evaluation.place(create("efficientnet_lite0", 3), settings, engine)
    head = adaptation.adapt(model, pictures, settings, 64, ["head", "head_bn"], engine).tails
    table = evaluation.predict(model, {"head": head["head"]}, pictures, "test", settings, 64, engine).table
    return {
        "loss": float(engine.reduce(loss, "sum")),
        "moved": moved,
        "buffers": dict(fine_tuned.named_buffers()),
        "val_top1": [row["val_top1"] for row in history],
        "head": dict(head["head"].state_dict()),
        "head_bn": dict(head["head_bn"].state_dict()),
        "probability": table["probability"].tolist(),
        "top1": table["top1"].tolist(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    accelerator = evaluation.accelerator("fp32")
    result = work(accelerator, Path(sys.argv[1]))
    torch.save(result, Path(sys.argv[2]) / f"{accelerator.process_index}_of_{accelerator.num_processes}.pt")
    accelerator.end_training()
