"""The command lines: help that reads, errors in one line before any work."""

import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from k400tiny_lib.config import STEPS
from k400tiny_lib.config.steps import default_text
from k400tiny_lib.errors import UserError
from k400tiny_lib.workflow.command import _complain, click_command, parse_arguments


@pytest.mark.parametrize("step", STEPS)
def test_help_names_every_parameter_with_its_default(step: str) -> None:
    result = CliRunner().invoke(click_command(step), ["--help"])
    assert result.exit_code == 0
    without_headings = re.sub(r"\n\n[A-Z][^\n]*:\n", "\n", result.output)
    options = re.split(r"\n  --(?=\w)", without_headings)[1:]
    helps = {re.split("[ ,]", text)[0]: " ".join(text.split()) for text in options}
    del helps["help"]
    assert list(helps) == list(STEPS[step].params)
    for name, text in helps.items():
        default = default_text(step, name)
        note = "required" if default is None else f"default: {default}"
        assert text.endswith(f"; {note}]"), text


def test_the_dask_scheduler_has_a_short_name_where_it_is_the_only_scheduler() -> None:
    config = parse_arguments("prepare_data", ["--scheduler", "tcp://host:1"])
    assert config is not None
    assert config.dask_scheduler == "tcp://host:1"
    config = parse_arguments("main", ["--scheduler", "step"])
    assert config is not None
    assert (config.scheduler, config.dask_scheduler) == ("step", "none")


def test_arguments_become_a_resolved_config() -> None:
    config = parse_arguments("train", ["--data_path", "d", "--annotations", "a", "--lr", "0.5"])
    assert config is not None
    assert (config.data_path, config.annotations, config.lr) == ("d", "a", 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["main", "--lr", "abc"], "lr: 'abc'"),
        (["train", "--recipe", "x"], "recipe: train has no such parameter; main, tune have it."),
        (["main", "--epochs", "3"], "epochs: main has no such parameter. Did you mean num_epochs?"),
        (["predict"], "input: predict needs it"),
        (["train", "--data_path", ""], "data_path: the value is empty"),
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


def test_the_message_of_a_step_within_a_step_is_printed_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = UserError("train failed (run 7): lr: too large", in_short="train failed (run 7)")
    assert str(error) == "train failed (run 7): lr: too large"  # as the run of main stores it
    _complain("main", error)
    assert capsys.readouterr().err == "train failed (run 7)\n"
