"""Results of a training run: its best epoch, its learning curves, and a summary for people."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.console import duration, warn
from k400tiny_lib.distributed.launch import processes_per_node
from k400tiny_lib.errors import UserError, hide_passwords
from k400tiny_lib.metrics_log import Entry, attachments_dir, read_entries
from k400tiny_lib.models.checkpoint import BEST, read_checkpoint
from k400tiny_lib.plots import CURVE_METRICS, plot_learning_curves
from k400tiny_lib.system import available_cores, cpu_name


@dataclass(frozen=True)
class Results:
    """The outcome of a run.

    Attributes:
        metrics: best_epoch and best_val_acc1.
        headline: one line of plain text.
        next_steps: command lines that use the checkpoint.
        note: all of it and more, in Markdown.
    """

    metrics: dict[str, float]
    headline: str
    next_steps: str
    note: str


def learning_curves(metrics_log: Path) -> Figure:
    """The curves of a metrics log."""
    entries = [entry for entry, _ in read_entries(metrics_log)]

    def history(name: str) -> list[tuple[int, float]]:
        return [(e.step, e.metrics[name]) for e in entries if name in e.metrics]

    return plot_learning_curves({name: history(name) for name in CURVE_METRICS})


def summarize(
    metrics_log: Path, config: Config, run_id: str, resumed_run: str | None = None
) -> Results | None:
    """The results of a training run from its metrics log.

    Args:
        metrics_log: of the run.
        config: the parameters as the user typed them; the next commands repeat them.
        run_id: the MLflow run, for the URI of its checkpoint.
        resumed_run: the run that it has continued, if any.

    Returns:
        None if the log has no epoch: rank 0, which writes it, is on another node.

    Raises:
        UserError: if best.pt is of another training.
    """
    entries = [entry for entry, _ in read_entries(metrics_log)]
    if not entries:
        return None
    best_epoch, best_acc1 = _best(metrics_log, entries, (run_id, resumed_run))
    last = entries[-1]
    seconds = sum(entry.metrics["epoch_seconds"] for entry in entries)
    speed = median(entry.metrics["clips_per_second"] for entry in entries)
    waiting = median(entry.metrics["data_time_fraction"] for entry in entries)
    top1 = f"val top-1 {best_acc1:.1f} % after epoch {best_epoch}"
    epochs = f"{last.step} of {config.num_epochs} epochs"
    if last.step > config.num_epochs:
        epochs = f"{last.step} epochs, no more were needed for num_epochs={config.num_epochs},"
    if config.patience and last.step < config.num_epochs:
        epochs += f" (no better one in {config.patience})"
    pace = f"{epochs} in {duration(seconds)}, {speed:.1f} clips/s, waiting for data {waiting:.0%}"
    checkpoint = f"-P checkpoint=runs:/{run_id}/checkpoints/best.pt"
    data = f"-P data_path={config.data_path} -P annotations={config.annotations}"
    run = "mlflow run . --env-manager local -e"
    commands = hide_passwords(f"{run} evaluate {data} {checkpoint}\n{run} export_onnx {checkpoint}")
    rows = {
        "model": f"{config.model}, {config.clip_len} frames of {config.crop_size} px",
        "training": pace,
        **next((_train_and_val(e.metrics) for e in entries if e.step == best_epoch), {}),
        "memory": f"{last.metrics['memory_gb']:.1f} GB per process",
        "hardware": hardware(config),
    }
    table = [f"| {name} | {value} |" for name, value in rows.items()]
    note = [] if config.description == NONE else [config.description, ""]
    note += [f"**{top1}**", "", "| | |", "|---|---|", *table, "", "Next steps:", ""]
    return Results(
        {"best_epoch": best_epoch, "best_val_acc1": best_acc1},
        f"{top1}; {pace}",
        commands,
        "\n".join([*note, "```bash", commands, "```"]),
    )


def _best(
    metrics_log: Path, entries: Sequence[Entry], runs: Sequence[str | None]
) -> tuple[int, float]:
    """Epoch and val_acc1 of the best epoch: those of best.pt, for that file is used afterwards."""
    # Of equal epochs the later, as in `TrainState.end_epoch`.
    logged = max(entries, key=lambda entry: (entry.metrics["val_acc1"], entry.step))
    path = metrics_log.parent / BEST
    if not path.exists():
        return logged.step, logged.metrics["val_acc1"]
    try:
        best = read_checkpoint(path, "checkpoint_dir", mapped=True)
    except UserError as error:  # a damaged disk; the log is still true
        warn(str(error))
        return logged.step, logged.metrics["val_acc1"]
    epoch = int(best["epoch"])
    accuracies = [entry.metrics["val_acc1"] for entry in entries if entry.step == epoch]
    score = best.get("val_acc1", *accuracies[:1])
    if best.get("run_id") not in runs and score not in accuracies:
        raise UserError(
            f"checkpoint_dir: {path} is of run {best.get('run_id')}, epoch {epoch}, which this "
            "training has not continued. Needed: a checkpoint_dir for each training."
        )
    return epoch, float(score)


def _train_and_val(metrics: Mapping[str, float]) -> dict[str, str]:
    """A row for each metric of both splits; accuracies are in percent."""
    rows = {}
    for name in (name.removeprefix("val_") for name in metrics if name.startswith("val_")):
        train, val = metrics[f"train_{name}"], metrics[f"val_{name}"]
        is_percent = name.startswith("acc")
        row = f"{train:.1f} / {val:.1f} %" if is_percent else f"{train:.3f} / {val:.3f}"
        rows[f"train / val {name}"] = row
    return rows


def hardware(config: Config) -> str:
    """The hardware of a run, as seen from this node."""
    processes = config.nnodes * processes_per_node(config)
    where = f"{processes} process(es) on {config.nnodes} node(s)"
    if torch.cuda.is_available():
        return f"{where}, {torch.cuda.get_device_name()}"
    return f"{where}, {cpu_name()}, {available_cores()} cores"


def write_results(results: Results, metrics_log: Path) -> None:
    """Write the results to the attachments; the file also shows that training has finished."""
    (attachments_dir(metrics_log) / "results.json").write_text(json.dumps(asdict(results)))


def read_results(metrics_log: Path) -> Results | None:
    """The results of a run; None if its training did not finish."""
    path = attachments_dir(metrics_log) / "results.json"
    return Results(**json.loads(path.read_text())) if path.exists() else None
