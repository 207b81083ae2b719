"""Log a training afterwards, from its folder, where the tracking server was away to the end.

python -m steps.log_training checkpoints/<run id>/journal-<run id>
"""

import sys

import click

from k400tiny_lib.errors import UserError


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
def log_training(folder: str) -> None:
    """Send what a training left in FOLDER to its MLflow run, and end the run.

    FOLDER is journal-<run id> in its checkpoint_dir. What had arrived already is not sent twice. A
    training that did not come to its end is logged as far as it came, and its run ends as FAILED.
    Not for a training that is still running.
    """
    try:
        print(_log(folder))
    except UserError as error:
        print(f"log_training: {error}", file=sys.stderr)
        sys.exit(2)


def _log(folder: str) -> str:
    from pathlib import Path

    from k400tiny_lib.models.checkpoint import BEST
    from k400tiny_lib.tracking.training_log import TrainingLog
    from k400tiny_lib.training.summary import learning_curves, read_results, summarise
    from k400tiny_lib.training.worker import Job

    job_file = Path(folder, "job.json")
    if not job_file.exists():
        raise UserError(
            f"FOLDER: {folder} holds no job.json. Needed: journal-<run id> of a checkpoint_dir."
        )
    job = Job.read(job_file)
    checkpoints = Path(folder).resolve().parent  # it may have been moved
    journal = checkpoints / job.journal.name
    log = TrainingLog(job.run_id, journal)
    done = read_results(journal)
    results = done or summarise(journal, job.config, job.run_id)
    if results is None:
        log.close()
    else:
        log.add_picture(learning_curves(journal), "learning_curves.png")
        log.close(results.metrics, results.note, checkpoints / BEST)
    if done:
        return log.end_run()
    error = checkpoints / job.error.name
    return log.end_run(error.read_text() if error.exists() else "it did not come to its end")


if __name__ == "__main__":
    log_training()
