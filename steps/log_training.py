"""Upload a finished training run's local logs after the tracking server was unreachable.

python -m steps.log_training checkpoints/<run id>/metrics-<run id>
"""

import sys

import click

from k400tiny_lib.errors import UserError


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
def log_training(folder: str) -> None:
    """Send the local logs of a training run to its MLflow run, and end the run.

    FOLDER is metrics-<run id> (before: journal-<run id>) in its checkpoint_dir. What has arrived
    already is not sent twice. A training run that did not finish is logged as far as it came, and
    ends as FAILED. Not for a training run that is still running.
    """
    try:
        print(_log(folder))
    except UserError as error:
        print(f"log_training: {error}", file=sys.stderr)
        sys.exit(2)


def _log(folder: str) -> str:
    import json
    from pathlib import Path

    from k400tiny_lib.config import read_config
    from k400tiny_lib.models.checkpoint import BEST
    from k400tiny_lib.tracking.training_log import TrainingLog
    from k400tiny_lib.training.summary import learning_curves, read_results, summarize

    attachments = Path(folder).resolve()
    if not (attachments / "job.json").exists():
        raise UserError(
            f"FOLDER: {folder} has no job.json. Needed: metrics-<run id> of a checkpoint_dir."
        )
    # Its paths may be those of another machine.
    job = json.loads((attachments / "job.json").read_text())
    metrics_log = Path(f"{attachments}.jsonl")
    log = TrainingLog(job["run_id"], metrics_log)
    finished = read_results(metrics_log)
    config, resumed_run = read_config(job["config"]), job.get("resumed_run")
    results = finished or summarize(metrics_log, config, job["run_id"], resumed_run)
    if results is None:
        log.close()
    else:
        log.add_figure(learning_curves(metrics_log), "learning_curves.png")
        log.close(results.metrics, results.note, attachments.parent / BEST)
    if finished:
        return log.end_run()
    # Formerly it was beside the directory.
    errors = attachments / "error.txt", attachments.parent / f"error-{job['run_id']}.txt"
    error = next((file.read_text() for file in errors if file.exists()), "it did not finish")
    return log.end_run(error)


if __name__ == "__main__":
    log_training()
