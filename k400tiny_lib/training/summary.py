"""What a training run comes to: its best epoch, its curves, and a summary for people."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure

from k400tiny_lib.config import Config
from k400tiny_lib.distributed.launch import processes_per_node
from k400tiny_lib.metrics_log import Entry, companion_folder, read_entries
from k400tiny_lib.plots import CURVE_METRICS, plot_learning_curves
from k400tiny_lib.system import available_cores, cpu_name
from k400tiny_lib.training.progress import duration


@dataclass(frozen=True)
class Results:
    """The outcome of a run.

    Attributes:
        metrics: best_epoch and best_val_acc1.
        headline: the outcome in a line or two of plain text.
        next_steps: command lines that go on from here.
        note: all of it and more in markdown.
    """

    metrics: dict[str, float]
    headline: str
    next_steps: str
    note: str


def best_of(entries: Sequence[Entry]) -> Entry:
    """The best epoch; of equal ones the later, as in `loop.fit`."""
    return max(entries, key=lambda entry: (entry.metrics["val_acc1"], entry.step))


def learning_curves(journal: Path) -> Figure:
    """The curves of a journal."""
    entries = [entry for entry, _ in read_entries(journal)]
    return plot_learning_curves(
        {
            name: [(e.step, e.metrics[name]) for e in entries if name in e.metrics]
            for name in CURVE_METRICS
        }
    )


def summarise(journal: Path, config: Config, run_id: str) -> Results | None:
    """What came out of training.

    Args:
        journal: of the run.
        config: the parameters as the user gave them; they are repeated in the next commands.
        run_id: the MLflow run, for the URI of its checkpoint.

    Returns:
        None where the journal has no epoch: rank 0, and with it the journal, is on another node.
    """
    entries = [entry for entry, _ in read_entries(journal)]
    if not entries:
        return None
    best, last = best_of(entries), entries[-1]
    seconds = sum(entry.metrics["epoch_seconds"] for entry in entries)
    speed = median(entry.metrics["clips_per_second"] for entry in entries)
    waiting = median(entry.metrics["data_time_fraction"] for entry in entries)
    top1 = f"val top-1 {best.metrics['val_acc1']:.1f} % after epoch {best.step}"
    epochs = f"{last.step} of {config.num_epochs} epochs"
    if config.patience and last.step < config.num_epochs:
        epochs += f" (no better one in {config.patience})"
    pace = f"{epochs} in {duration(seconds)}, {speed:.1f} clips/s, waiting for data {waiting:.0%}"
    commands = _next_steps(config, run_id)
    rows = {
        "model": f"{config.model}, {config.clip_len} frames of {config.crop_size} px",
        "training": pace,
        "train / val loss": f"{best.metrics['train_loss']:.3f} / {best.metrics['val_loss']:.3f}",
        "train / val top-1": f"{best.metrics['train_acc1']:.1f} / {best.metrics['val_acc1']:.1f} %",
        "memory": f"{last.metrics['memory_gb']:.1f} GB per process",
        "hardware": hardware(config),
    }
    table = [f"| {name} | {value} |" for name, value in rows.items()]
    note = [f"**{top1}**", "", "| | |", "|---|---|", *table, "", "How to go on:", ""]
    return Results(
        {"best_epoch": best.step, "best_val_acc1": best.metrics["val_acc1"]},
        f"{top1}; {pace}",
        commands,
        "\n".join([*note, "```bash", commands, "```"]),
    )


def _next_steps(config: Config, run_id: str) -> str:
    checkpoint = f"-P checkpoint=runs:/{run_id}/checkpoints/best.pt"
    data = f"-P data_path={config.data_path} -P annotations={config.annotations}"
    run = "mlflow run . --env-manager local -e"
    return f"{run} evaluate {data} {checkpoint}\n{run} export_onnx {checkpoint}"


def hardware(config: Config) -> str:
    """What a run was trained on, as seen from this node."""
    processes = config.nnodes * processes_per_node(config)
    where = f"{processes} process(es) on {config.nnodes} node(s)"
    if torch.cuda.is_available():
        return f"{where}, {torch.cuda.get_device_name()}"
    return f"{where}, {cpu_name()}, {available_cores()} cores"


def write_results(results: Results, journal: Path) -> None:
    """Keep the results beside the journal: they say, too, that training came to its end."""
    (companion_folder(journal) / "results.json").write_text(json.dumps(asdict(results)))


def read_results(journal: Path) -> Results | None:
    """The results of a run; None if its training did not come to its end."""
    path = companion_folder(journal) / "results.json"
    return Results(**json.loads(path.read_text())) if path.exists() else None
