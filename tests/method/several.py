"""What one process does alone and two do together; arguments: images, folder for the results."""

import sys
from pathlib import Path
from typing import Any

import torch
from tiny_training import first_step, recipe_for, tiny

from fixres_poc.method import epochs, evaluation, stage2
from fixres_poc.model import device
from fixres_poc.model.backbones import create
from fixres_poc.model.memory_plan import StepPlan


def work(folder: Path) -> dict[str, Any]:
    """A step of stage 1, a whole stage 1, and an adapted head; batches of 6 are twice 3."""
    given = settings, data, accelerator = tiny(folder, batch_size=6, epochs=8, seed=1)
    loss, moved = first_step(given, 3)
    state = epochs.fine_tune(StepPlan(3, False, 0), recipe_for(settings), *given)
    torch.manual_seed(0)
    model = device.place(create("efficientnet_lite0", 3).eval(), settings, accelerator)
    variants = {name: stage2.Variant(name, 0.01, 2) for name in ("head", "head_bn", "bn_stats")}
    tails = stage2.adapt_tails(model, data, settings, 64, variants, accelerator).tails
    head = {"head": tails["head"]}
    table = evaluation.predict(model, head, data, "test", settings, 64, accelerator).table
    return {
        "loss": float(accelerator.reduce(loss, "sum")),
        "moved": moved,
        "buffers": dict(state.model.named_buffers()),
        "val_top1": [row["val_top1"] for row in state.rows],
        **{name: dict(tail.state_dict()) for name, tail in tails.items()},
        "probability": table["probability"].tolist(),
        "top1": table["top1"].tolist(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = work(Path(sys.argv[1]))
    accelerator = device.accelerator_for("fp32")
    name = f"{accelerator.process_index}_of_{accelerator.num_processes}.pt"
    torch.save(result, Path(sys.argv[2]) / name)
    accelerator.end_training()
