"""The table of notebooks: settings, outputs and needs of each."""

from typing import NamedTuple

from fixres_poc.config.settings import (
    BaselineSettings,
    DatasetSettings,
    OverviewSettings,
    PairSettings,
    ResultsSettings,
    Settings,
    TrainSettings,
)

METRICS, PREDICTIONS = "metrics.json", "predictions.parquet"


class Notebook(NamedTuple):
    """Settings, outputs and needs of a notebook."""

    settings: type[Settings]
    # files of a finished run; for checkpoints see `run_state.checkpoint_is_intact`
    outputs: tuple[str, ...] = (METRICS,)
    uses_gpu: bool = False
    needs: str | None = None  # notebook whose checkpoint it reads


NOTEBOOKS = {
    "00_state_of_the_art": Notebook(OverviewSettings),
    "01_dataset_eda": Notebook(DatasetSettings),
    "02_baseline": Notebook(BaselineSettings, (METRICS, PREDICTIONS), uses_gpu=True),
    "03_train": Notebook(TrainSettings, uses_gpu=True),
    "04_fixres": Notebook(PairSettings, (METRICS, PREDICTIONS), uses_gpu=True, needs="03_train"),
    "05_results": Notebook(ResultsSettings, outputs=()),
}
