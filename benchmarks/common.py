"""What the benchmarks share: sides in turns, a table, a results file named by the hardware."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

# Elsewhere with BENCHMARK_RESULTS, on a machine where the checkout is thrown away.
RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).parent / "results")


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


def write_result(benchmark: str, hardware: str, text: str) -> None:
    """Print a result and write it to `results/<benchmark>-<hardware>.md`."""
    print(text)
    slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", hardware.lower())).strip("-")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{benchmark}-{slug}.md").write_text(text.rstrip("\n") + "\n")
