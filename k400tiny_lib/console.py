"""What all steps print looks alike: colour and bars where a person watches, plain lines elsewhere.

A line is a name and a text, `train: done in 12 min`. On a terminal the name is bold, a warning
yellow and an error red, unless NO_COLOR is set (no-color.org).
"""

import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

_WATCHED_DELAY = 2.0  # seconds before a bar appears on a terminal
_LOG_INTERVAL = 60.0  # seconds between the lines of progress in a log


def say(name: str, text: str) -> None:
    """Print a line about a step, or a parameter, to stdout."""
    _write(f"{_styled(f'{name}:', bold=True)} {text}", sys.stdout)


def say_result(text: str) -> None:
    """Print what a step has found to stdout, its first line in green on a terminal."""
    first, *others = text.split("\n")
    _write("\n".join([_styled(first, fg="green"), *others]), sys.stdout)


def warn(text: str) -> None:
    """Print `warning: text` to stderr: something that the step goes on without."""
    _write(f"{_styled('warning:', fg='yellow')} {text}", sys.stderr)


def complain(name: str, text: str) -> None:
    """Print the line of an error to stderr; without a name the text has its own."""
    head, colon, rest = text.partition(":") if not name else (name, ":", f" {text}")
    _write(_styled(f"{head}{colon}", fg="red") + rest, sys.stderr)


def progress(items: Iterable[Any] | None, total: int, what: str, unit: str = "clip") -> "tqdm[Any]":
    """A bar on the terminal for what takes over two seconds; in a log, a line per minute.

    Only the first of several training processes shows one (torchrun sets RANK).

    Args:
        items: to iterate over, or None to call `update`.
        total: their number.
        what: is being done, a word or two.
        unit: of the number.
    """
    # stderr of a training process is its log; its stdout is the terminal.
    stream = next((s for s in (sys.stderr, sys.stdout) if s.isatty()), None)
    options: dict[str, Any] = {"delay": _WATCHED_DELAY, "mininterval": 0.2}
    if stream is None:
        layout = "{desc}: {n_fmt} of {total_fmt}, {remaining} left"
        options = {"delay": _LOG_INTERVAL, "mininterval": _LOG_INTERVAL, "bar_format": layout}
    return tqdm(
        items,
        desc=what,
        total=total,
        unit=unit,
        leave=False,
        file=stream or _Log(),
        disable=os.environ.get("RANK", "0") != "0",
        **options,
    )


class _Log:
    """stdout that is no terminal, to a bar: what it draws is a line, and what it wipes nothing.

    tqdm does not know this stream as stdout, and leaves the bar alone when others print there.
    """

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, flush=True)

    def flush(self) -> None:
        pass


def duration(seconds: float) -> str:
    """A time span for people: "45 s", "3 min 05 s", "12 min", "3 h 05 min"."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 600 and whole % 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _styled(text: str, **style: Any) -> str:
    import click  # a bare machine that only trains may lack it

    return text if os.environ.get("NO_COLOR") else click.style(text, **style)


def _write(text: str, stream: TextIO) -> None:
    """Print a line above the bars that are shown; without colours where it is no terminal."""
    import click

    with tqdm.external_write_mode(stream):
        click.echo(text, file=stream)
        stream.flush()
