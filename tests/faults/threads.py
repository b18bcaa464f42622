"""Evaluates the pre-trained network's frozen trunk, and trains, with a number of threads; arguments: it, a folder."""

import sys
from pathlib import Path

import torch

from fixres_poc import datasets, evaluation, training
from fixres_poc.backbones import Tail, create
from fixres_poc.config import TrainSettings

if __name__ == "__main__":
    threads, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(int(threads))
    settings = TrainSettings(dataset="synthetic", image_limit=400, train_size=64, epochs=3, batch_size=16)
    pictures = datasets.load(settings)
    engine = evaluation.accelerator("fp32")
    torch.manual_seed(0)
    given = evaluation.place(create(settings.backbone, len(pictures.classes)), settings, engine)
    for name, model in (("evaluated", given), ("trained", training.train(settings, pictures, engine).model)):
        done = evaluation.predict(model, {"none": Tail(model)}, pictures, "test", settings, 64, engine)
        done.table.to_parquet(folder / f"{name}{threads}.parquet")
