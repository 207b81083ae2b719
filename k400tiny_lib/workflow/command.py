"""Turns the function of a step into a command: options, run, errors in one line, exit codes."""

import logging
import os
import sys
import traceback
from collections.abc import Callable
from itertools import groupby

import click

from k400tiny_lib.config import PARAMETERS, STEPS, Config, resolve
from k400tiny_lib.config.recipes import read_recipe_file
from k400tiny_lib.config.steps import default_text, unknown_parameter
from k400tiny_lib.console import complain
from k400tiny_lib.errors import UserError, hide_passwords
from k400tiny_lib.files import ARTIFACT_SCHEMES
from k400tiny_lib.workflow import signals

FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130  # exit codes


def step_command(step: str) -> Callable[[Callable[[Config], None]], Callable[[], None]]:
    """Decorate the function of a step; the result is its command line.

    The function gets the resolved parameters and runs inside the step's MLflow run. It imports
    what it needs within its body, so that a mistyped parameter is refused before PyTorch loads.
    """

    def decorate(function: Callable[[Config], None]) -> Callable[[], None]:
        def command() -> None:
            sys.exit(_run(step, function, sys.argv[1:]))

        return command

    return decorate


class _ByTheme(click.Command):
    """A command whose `--help` lists the options under the headings of their parameters."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for theme, options in groupby(self.get_params(ctx), _theme):
            with formatter.section(theme):
                records = [option.get_help_record(ctx) for option in options]
                formatter.write_dl([record for record in records if record], col_max=26)


def _theme(option: click.Parameter) -> str:
    return PARAMETERS[option.name].theme if option.name in PARAMETERS else "Help"


def click_command(step: str) -> click.Command:
    """The click command of a step: one option per parameter, all text, checked by `config`."""
    options: list[click.Parameter] = []
    for name in STEPS[step].params:
        parameter, default = PARAMETERS[name], default_text(step, name)
        note = "required" if default is None else f"default: {default}"
        if step == "tune" and parameter.search:
            note = f"search: {parameter.search.text}; {note}"
        names = [name, f"--{name}"]
        if parameter.also and step in parameter.steps:
            names.append(f"--{parameter.also}")
        help_text = f"{parameter.help} [{parameter.allowed}; {note}]"
        options.append(click.Option(names, help=help_text, metavar="VALUE"))
    return _ByTheme(
        step,
        params=options,
        help=STEPS[step].help,
        callback=lambda **texts: {k: v for k, v in texts.items() if v is not None},
        context_settings={"max_content_width": 100},
    )


def parse_arguments(step: str, arguments: list[str]) -> Config | None:
    """Resolve a step's command line; None after `--help`.

    Raises:
        UserError: for an unknown, missing or ill-typed parameter.
    """
    try:
        program = f"python -m steps.{step}"
        texts = click_command(step).main(arguments, program, standalone_mode=False)
    except click.NoSuchOption as error:
        raise unknown_parameter(step, error.option_name.lstrip("-")) from None
    except click.ClickException as error:
        raise UserError(error.format_message()) from None
    return resolve(step, texts, _read_recipe) if isinstance(texts, dict) else None


def _read_recipe(uri: str) -> bytes:
    """The content of a recipe at a path or URI, artifact URIs included."""
    if not uri.startswith(ARTIFACT_SCHEMES):
        return read_recipe_file(uri)
    from k400tiny_lib.tracking.runs import read_artifact

    return read_artifact(uri, "recipe")


def _run(step: str, function: Callable[[Config], None], arguments: list[str]) -> int:
    signals.defer()
    try:
        config = parse_arguments(step, arguments)
    except UserError as error:
        _complain(step, error)
        return USER_ERROR
    if config is None:
        return 0
    from k400tiny_lib.tracking.inputs import settle_inputs
    from k400tiny_lib.tracking.runs import step_run, tag_cache_key
    from k400tiny_lib.workflow.cache import cache_key

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:  # of what goes well, the steps say it themselves
        logging.getLogger("mlflow").setLevel(logging.WARNING)
    try:
        with step_run(step, config):
            signals.arm()
            config = settle_inputs(step, config)
            # Only a finished run is re-used, so the key can be set before the step runs;
            # log_training then has nothing to add. prepare_data sets its own when it has its clips.
            if step != "prepare_data":
                tag_cache_key(cache_key(step, config))
            function(config)
    except UserError as error:
        _complain(step, error)
        return USER_ERROR
    except KeyboardInterrupt:
        complain(step, "interrupted")
        return INTERRUPTED
    except Exception:
        print(hide_passwords(traceback.format_exc()), file=sys.stderr, end="", flush=True)
        return FAILED
    return 0


def _complain(step: str, error: UserError) -> None:
    # main's message about a failed step begins with the name of that step.
    message = " ".join((error.in_short or str(error)).split())
    complain("" if step == "main" else step, message)
    if os.environ.get("K400TINY_TRACEBACK"):
        print(hide_passwords("".join(traceback.format_exception(error))), file=sys.stderr)
