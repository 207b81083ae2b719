"""Train a model with torchrun; metrics, curves and the best checkpoint go to the run.

mlflow run . -e train --env-manager local -P data_path=frames -P annotations=annotations.json
"""

from k400tiny_lib.config import Config
from k400tiny_lib.workflow.command import step_command


@step_command("train")
def train(config: Config) -> None:
    """Check the inputs, launch the workers, follow them, log what they leave."""
    import dataclasses
    from pathlib import Path

    import mlflow

    from k400tiny_lib.config import AUTO
    from k400tiny_lib.data.annotations import check_annotations, read_annotations
    from k400tiny_lib.data.packing import settle_frame_cache
    from k400tiny_lib.data.pictures import plot_augmented_clips
    from k400tiny_lib.journal import read_entries
    from k400tiny_lib.tracking.runs import active_run_id, link_run, local_inputs
    from k400tiny_lib.tracking.sender import JournalSender
    from k400tiny_lib.training.checkpoint import BEST
    from k400tiny_lib.training.curves import plot_curves
    from k400tiny_lib.training.launch import launch
    from k400tiny_lib.training.resuming import settle_resume
    from k400tiny_lib.training.worker import Job, training_clips

    run_id = active_run_id()
    config = local_inputs(config, "data_path", "annotations", "load_model", "resume")
    annotations = read_annotations(Path(config.annotations))
    check_annotations(annotations, Path(config.data_path), config)
    folder = (
        Path("checkpoints", run_id)
        if config.checkpoint_dir == AUTO
        else Path(config.checkpoint_dir)
    )
    folder.mkdir(parents=True, exist_ok=True)
    config, former_run = settle_resume(dataclasses.replace(config, checkpoint_dir=str(folder)))
    link_run(former_run, config.parent_run)

    pack = settle_frame_cache(config, annotations)
    figure = plot_augmented_clips(training_clips(config, annotations, pack), annotations)
    mlflow.log_figure(figure, "images/augmented_clips.png")

    journal = folder / f"journal-{run_id}.jsonl"
    sender = JournalSender(run_id, journal)
    job = Job(config, run_id, journal, error=folder / f"error-{run_id}.txt", pack=pack)
    workdir = folder / f"workers-{run_id}"  # of this node alone: the nodes may share the folder
    workdir.mkdir(exist_ok=True)
    launch(job, workdir, while_running=sender.send)
    sender.finish()

    entries = [entry for entry, _ in read_entries(journal)]
    if not entries:
        return  # rank 0, and with it the journal, is on another node
    best = max(entries, key=lambda entry: (entry.metrics["val_acc1"], entry.step))
    mlflow.log_metrics({"best_epoch": best.step, "best_val_acc1": best.metrics["val_acc1"]})
    mlflow.log_figure(plot_curves(entries), "images/learning_curves.png")
    mlflow.log_artifact(str(folder / BEST), "checkpoints")
    print(f"best epoch {best.step}: val_acc1 {best.metrics['val_acc1']:.1f} %  {folder / BEST}")


if __name__ == "__main__":
    train()
