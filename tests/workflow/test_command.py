"""The command lines: help that reads, errors in one line before any work."""

import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from k400tiny_lib.config import STEPS
from k400tiny_lib.workflow.command import click_command, parse_arguments


@pytest.mark.parametrize("step", STEPS)
def test_help_names_every_parameter_with_its_default(step: str) -> None:
    result = CliRunner().invoke(click_command(step), ["--help"])
    assert result.exit_code == 0
    for name in STEPS[step].params:
        assert re.search(rf"--{name}[ ,]", result.output)
    assert result.output.count("[default: ") + result.output.count("[required]") >= 1


def test_arguments_become_a_settled_config() -> None:
    config = parse_arguments("train", ["--data_path", "d", "--annotations", "a", "--lr", "0.5"])
    assert config is not None
    assert (config.data_path, config.annotations, config.lr) == ("d", "a", 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["main", "--lr", "abc"], "lr: 'abc'"),
        (["main", "--epochs", "3"], "epochs: main has no such parameter. Did you mean num_epochs?"),
        (["train", "--data_path", "x"], "annotations: train needs it"),
        (["main", "--lr"], "lr"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2(arguments: list[str], message: str) -> None:
    step, *rest = arguments
    done = subprocess.run(
        [sys.executable, "-m", f"steps.{step}", *rest], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


def test_a_chain_of_finished_steps_does_not_wait_for_pytorch() -> None:
    code = "import sys, k400tiny_lib.workflow.chain; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
