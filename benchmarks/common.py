"""What the benchmarks share: sides in turns, a table, a results file named by the hardware."""

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

# Elsewhere with BENCHMARK_RESULTS, on a machine where the checkout is thrown away.
RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).parent / "results")
ROOT = Path(__file__).resolve().parents[1]

IN_SHORT = "## In short"
COMMIT = "Measured at commit"


class Headline(NamedTuple):
    """A row of the table that `python -m benchmarks` makes of all results.

    Attributes:
        what: what was measured.
        ours, reference: both figures, with their units, and what the reference is.
        ratio: how many times as good ours is; "" where a ratio says nothing.
    """

    what: str
    ours: str
    reference: str
    ratio: str


def in_turns(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median of what each side returns, the sides taking turns; a first round warms up."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            value = side()
            if number:
                values[name].append(value)
    return {name: median(found) for name, found in values.items()}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def slug_of(hardware: str) -> str:
    """The name of a processor or GPU as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", hardware.lower())).strip("-")


def write_result(
    benchmark: str, hardware: str, text: str, headlines: Sequence[Headline] = ()
) -> None:
    """Print a result and write it to `results/<benchmark>-<hardware>.md`, with the commit."""
    parts = [text.rstrip("\n")]
    if headlines:
        parts += [IN_SHORT, markdown(("", "ours", "reference", "times as good"), headlines)]
    parts.append(f"{COMMIT} {current_commit()}.")
    text = "\n\n".join(parts) + "\n"
    print(text)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{benchmark}-{slug_of(hardware)}.md").write_text(text)


def current_commit() -> str:
    """The commit of this checkout; with a plus if what is measured has changed since."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = _output([*git, "rev-parse", "--short=7", "HEAD"])
        changed = _output([*git, "status", "--porcelain", "--", "k400tiny_lib", "steps", "recipes"])
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + "+" * bool(changed)


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
