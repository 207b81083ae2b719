"""What `main` costs beside its steps: its own start, the nested runs, a run with nothing to do.

    python -m benchmarks.main_overhead

`mlflow run . -e main` on the rendered sample with one epoch, in a store of its own, then the same
again. Its overhead is the time of the whole command without the seconds that the four steps spend
in their own work, which each step's run has as its start and end. Beside it `--help`, which every
mistyped parameter waits for. Printed and written to `benchmarks/results/`.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from statistics import median

import click
from mlflow import MlflowClient

from benchmarks.common import ROOT, Headline, markdown, write_result
from k400tiny_lib.config import CHAIN
from k400tiny_lib.system import available_cores, cpu_name
from k400tiny_lib.tracking.runs import STEP_TAG

EXPERIMENT = "main_overhead"


def seconds_of(command: Sequence[str], store: str) -> float:
    """Seconds of a command that succeeds, with a tracking store."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": store, "MLFLOW_DISABLE_TELEMETRY": "true"}
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def step_seconds(client: MlflowClient, experiment_id: str) -> dict[str, float]:
    """Seconds of each nested run of a `main`, from its creation to its end."""
    runs = client.search_runs([experiment_id])
    seconds = {
        run.data.tags[STEP_TAG]: (run.info.end_time - run.info.start_time) / 1000 for run in runs
    }
    return {step: seconds[step] for step in CHAIN}


def report(rounds: int) -> tuple[str, list[Headline]]:
    """Measure everything; returns the text of the results file and the headlines."""
    python = [sys.executable, "-m"]
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/mlflow.db"
        client = MlflowClient(store)
        experiment = client.create_experiment(EXPERIMENT, f"file:{folder}/artifacts")
        places = ("output_dir", "cache_dir", "checkpoint_dir")
        main = [*python, "mlflow", "run", ".", "-e", "main", "--env-manager", "local"]
        main += ["--experiment-name", EXPERIMENT, "-P", "num_epochs=1"]
        main += [part for place in places for part in ("-P", f"{place}={folder}/{place}")]
        first = seconds_of(main, store)
        steps = step_seconds(client, experiment)
        again = median(seconds_of(main, store) for _ in range(rounds))
    helps = [[*python, f"steps.{step}", "--help"] for step in ("main", *CHAIN)]
    help_seconds = median(seconds_of(command, "") for command in helps * rounds)
    overhead = first - sum(steps.values())
    rows = [
        ("`main`, the whole command", f"{first:.1f}"),
        *((f"of which the run of `{step}`", f"{steps[step]:.1f}") for step in CHAIN),
        ("its own overhead", f"{overhead:.1f}"),
        ("`main` again, every step re-used", f"{again:.1f}"),
        ("`--help` of a step", f"{help_seconds:.2f}"),
    ]
    text = "\n\n".join(
        [
            "# What `main` costs beside its steps",
            f"{cpu_name()}, {available_cores()} cores, load average {os.getloadavg()[0]:.1f} at "
            f"the end; Python {platform.python_version()}. The rendered sample, one epoch; "
            f"medians of {rounds} rounds but for the first `main`.",
            markdown(("", "seconds"), rows),
        ]
    )
    headlines = [
        Headline(
            "overhead of `main`",
            f"{overhead:.1f} s",
            f"its four steps, one epoch: {sum(steps.values()):.0f} s",
            "",
        ),
        Headline(
            "`main` again, unchanged",
            f"{again:.1f} s",
            f"the first time, one epoch: {first:.0f} s",
            f"{first / again:.0f}",
        ),
        Headline("`--help` of a step", f"{help_seconds:.2f} s", "", ""),
    ]
    return text, headlines


@click.command()
@click.option("--rounds", default=3, help="Rounds, of which medians are taken.")
def main(rounds: int) -> None:
    """Measure, print and write the table."""
    write_result("main_overhead", cpu_name(), *report(rounds))


if __name__ == "__main__":
    main()
