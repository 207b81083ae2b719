"""Whether training in bf16 learns as well as in float32, on the rendered sample.

    python -m benchmarks.precision --epochs 9,4 --seeds 0,1,2

Each pair has the same seed, clips, order and budget, and differs in `amp` only. About an hour on
two cores: a finished run is kept in `--output_dir`, and is not run again. benchmarks/precision.sh
runs them side by side on a machine with many cores.
"""

import json
import math
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch

from benchmarks.common import markdown, write_result
from benchmarks.learning import CPU, numbers_of, predict_with, prepare_clips
from k400tiny_lib.config import Config
from k400tiny_lib.config.recipes import load_recipe
from k400tiny_lib.data.annotations import Annotations, read_annotations
from k400tiny_lib.data.loading.frame_cache import resolve_frame_cache
from k400tiny_lib.data.sources.base import open_source
from k400tiny_lib.files import atomic_write
from k400tiny_lib.system import available_cores, cpu_name
from k400tiny_lib.training.loop import fit
from k400tiny_lib.training.worker import make_train_state

SIDES = {"float32": "off", "bf16": "bf16"}


@dataclass(frozen=True)
class Run:
    """One training, scored on the test split with the last weights.

    Attributes:
        epochs, seed, side: which.
        train_loss: of the last epoch.
        top1: share of the test clips, in percent.
        loss: mean negative log-likelihood of the test clips' labels.
        seconds: of training alone.
    """

    epochs: int
    seed: int
    side: str
    train_loss: float
    top1: float
    loss: float
    seconds: float


def train(config: Config, annotations: Annotations, side: str) -> Run:
    """Train with a recipe's parameters and predict the test split in float32."""
    pack = resolve_frame_cache(config, annotations)
    state = make_train_state(config, annotations, CPU, pack)
    losses: list[float] = []
    start = time.perf_counter()
    fit(state, lambda state, metrics, is_best: losses.append(metrics["train_loss"]))
    seconds = time.perf_counter() - start
    table = predict_with(state, annotations.splits["test"])
    likelihood = [float(row[f"prob_{row['target']}"]) for row in table.to_dict("records")]
    loss = -sum(math.log(max(value, 1e-12)) for value in likelihood) / len(likelihood)
    top1 = 100 * float((table["predicted"] == table["target"]).mean())
    return Run(config.num_epochs, config.seed, side, losses[-1], top1, loss, seconds)


def report(runs: list[Run]) -> str:
    """A row for each budget and side: accuracy and loss of every seed, and the time of training."""
    rows = []
    for (epochs, side), group in pd.DataFrame(map(asdict, runs)).groupby(["epochs", "side"]):
        group = group.sort_values("seed")
        rows.append(
            [
                str(epochs),
                side,
                ", ".join(map(str, group["seed"])),
                " / ".join(f"{value:.1f}" for value in group["top1"]),
                " / ".join(f"{value:.3f}" for value in group["loss"]),
                " / ".join(f"{value:.3f}" for value in group["train_loss"]),
                f"{group['seconds'].median():.0f}",
            ]
        )
    header = ["epochs", "amp", "seeds", "test top-1 %", "test loss", "training loss", "seconds"]
    return "\n\n".join(
        [
            "# bf16 against float32: the recipe of the sample",
            f"{cpu_name()}, {available_cores()} cores; Python {platform.python_version()}, PyTorch "
            f"{torch.__version__}. The same seeds on both sides, in turns; the last weights are "
            "scored in float32. Seconds are the median of training alone.",
            markdown(header, rows),
        ]
    )


def clips_in(folder: Path) -> tuple[Config, Annotations]:
    """The sample, rendered and checked by the first call only: as `prepare_clips` returns it."""
    file = folder / "annotations.json"
    if not file.exists():
        base, annotations = prepare_clips("sample", folder, "", "")
        with atomic_write(file) as part:
            part.write_text(annotations.to_json())
        return base, annotations
    base = Config(output_dir=str(folder / "data"), cache_dir=str(folder / "frames"))
    return base.replace(data_path=str(open_source(base).directory)), read_annotations(file)


def read_runs(file: Path) -> list[Run]:
    """The finished runs, each once."""
    lines = file.read_text().splitlines() if file.exists() else []
    runs = [Run(**json.loads(line)) for line in lines]
    return list({(run.epochs, run.seed, run.side): run for run in runs}.values())


@click.command()
@click.option("--epochs", default="9,4", help="Budgets.")
@click.option("--seeds", default="0,1,2")
@click.option("--sides", default="float32,bf16")
@click.option("--output_dir", default=".k400tiny/precision", help="Where finished runs are kept.")
@click.option("--runs", "runs_file", type=Path, help="Their file; processes may share it.")
@click.option("--only", type=click.Choice(["clips", "report"]), help="Do this and train nothing.")
def main(
    epochs: str, seeds: str, sides: str, output_dir: str, runs_file: Path | None, only: str | None
) -> None:
    """Train what is missing, print and write the table."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    file = runs_file or folder / "runs.jsonl"
    if only == "report":
        return write_result("precision", cpu_name(), report(read_runs(file)))
    done = {(run.epochs, run.seed, run.side) for run in read_runs(file)}
    base, annotations = clips_in(folder)
    recipe: dict[str, Any] = load_recipe("sample")
    if only == "clips":
        resolve_frame_cache(base.replace(**recipe), annotations)
        return None
    for budget in numbers_of(epochs):
        for seed in numbers_of(seeds):
            for side in sides.split(","):
                if (budget, seed, side) in done:
                    continue
                changes = {"num_epochs": budget, "amp": SIDES[side], "channels_last": True}
                config = base.replace(**(recipe | changes), seed=seed, num_workers=0)
                run = train(config, annotations, side)
                with file.open("a") as stream:  # a line at once: others may write too
                    stream.write(json.dumps(asdict(run)) + "\n")
                print(run, flush=True)
    return write_result("precision", cpu_name(), report(read_runs(file)))


if __name__ == "__main__":
    main()
