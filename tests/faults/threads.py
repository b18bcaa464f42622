"""Evaluates the pre-trained network, and trains; arguments: number of threads, folder."""

import sys
from pathlib import Path

import torch

from fixres_poc.config.settings import TrainSettings
from fixres_poc.data.dataset import load_dataset
from fixres_poc.method import evaluation, stage1
from fixres_poc.method.epochs import Recipe
from fixres_poc.model import device
from fixres_poc.model.backbones import create
from fixres_poc.model.trunk import Tail

if __name__ == "__main__":
    threads, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(int(threads))
    settings = TrainSettings(dataset="synthetic", image_limit=400, train_size=64, batch_size=16)
    data = load_dataset(settings)
    accelerator = device.accelerator_for("fp32")
    torch.manual_seed(0)
    given = device.place(create(settings.backbone, len(data.classes)), settings, accelerator)
    recipe = Recipe(settings.train_size, "train", 3, 0.01)
    trained = stage1.train(settings, recipe, data, accelerator).model
    for name, model in (("evaluated", given), ("trained", trained)):
        done = evaluation.predict(
            model, {"none": Tail(model)}, data, "test", settings, 64, accelerator
        )
        done.table.to_parquet(folder / f"{name}{threads}.parquet")
