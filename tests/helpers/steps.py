"""A step in this process: a new one imports PyTorch and MLflow for seconds."""

import sys
from importlib import import_module
from typing import Any

import pytest

from k400tiny_lib.workflow import signals


def run_step_here(step: str, parameters: dict[str, Any]) -> int:
    """Run `python -m steps.<step> --<name> <value> ...`, but for its handlers of signals.

    Returns:
        The exit code. pytest's capsys has what it printed.
    """
    arguments = [text for name, value in parameters.items() for text in (f"--{name}", str(value))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [step, *arguments])
        patch.setattr(signals, "defer", lambda: None)
        patch.setattr(signals, "arm", lambda: None)
        with pytest.raises(SystemExit) as ended:
            getattr(import_module(f"steps.{step}"), step)()
    assert isinstance(ended.value.code, int)
    return ended.value.code
