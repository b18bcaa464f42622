"""Where faults are injected: a call that was renamed would be waited for in vain."""

import importlib

import pytest
import test_killed


@pytest.mark.parametrize(
    "call", [test_killed.DRAWING, test_killed.REPORT, *test_killed.IN_KERNEL.values()]
)
def test_calls_at_which_faults_are_injected_are_there(call: str) -> None:
    module, function, _, number = call.split(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert int(number) >= 1
