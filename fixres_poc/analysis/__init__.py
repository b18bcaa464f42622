"""From predictions to numbers: statistics, result tables, choices, published figures."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cells": ["Cell"],
        "record": ["Metrics", "record_run", "summarise", "write_run"],
        "questions": ["answers", "gain_path"],
        "results": ["load_results"],
    },
)
