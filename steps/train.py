"""Train a model with torchrun; metrics, curves and the best checkpoint go to the run.

mlflow run . -e train --env-manager local -P data_path=frames -P annotations=annotations.json
"""

from k400tiny_lib.config import Config
from k400tiny_lib.workflow.command import step_command


@step_command("train")
def train(config: Config) -> None:
    """Check the inputs, launch the workers, follow them, log what they leave."""
    from pathlib import Path

    from k400tiny_lib.config import AUTO
    from k400tiny_lib.data.annotations import check_annotations, read_annotations
    from k400tiny_lib.data.loading.frame_cache import resolve_frame_cache
    from k400tiny_lib.data.preparation.plots import plot_augmented_clips
    from k400tiny_lib.distributed.launch import launch
    from k400tiny_lib.metrics_log import companion_folder
    from k400tiny_lib.models.checkpoint import BEST
    from k400tiny_lib.tracking.runs import active_run_id, is_nested, link_run, local_inputs
    from k400tiny_lib.tracking.training_log import TrainingLog
    from k400tiny_lib.training.resuming import settle_resume
    from k400tiny_lib.training.summary import learning_curves, summarise, write_results
    from k400tiny_lib.training.worker import Job, training_clips

    run_id, given = active_run_id(), config
    config = local_inputs(config, "data_path", "annotations", "load_model", "resume")
    annotations = read_annotations(Path(config.annotations))
    check_annotations(annotations, Path(config.data_path), config.clip_len, config.num_classes)
    folder = (
        Path("checkpoints", run_id)
        if config.checkpoint_dir == AUTO
        else Path(config.checkpoint_dir)
    )
    folder.mkdir(parents=True, exist_ok=True)
    config, former_run = settle_resume(config.replace(checkpoint_dir=str(folder)))
    link_run(former_run, config.parent_run)

    journal = folder / f"journal-{run_id}.jsonl"
    log = TrainingLog(run_id, journal)
    pack = resolve_frame_cache(config, annotations)
    clips = training_clips(config, annotations, pack)
    log.add_picture(plot_augmented_clips(clips, annotations), "augmented_clips.png")

    job = Job(config, run_id, journal, error=folder / f"error-{run_id}.txt", pack=pack)
    try:
        launch(job, companion_folder(journal), while_running=log.follow)
    except BaseException:
        log.abandon()
        raise

    results = summarise(journal, given, run_id)
    if results is None:
        log.close()  # rank 0, and with it the journal, is on another node
        return
    write_results(results, journal)
    log.add_picture(learning_curves(journal), "learning_curves.png")
    print(results.headline, f"{folder / BEST}", sep="\n")
    if not is_nested():
        print(results.next_steps)
    log.close(results.metrics, results.note, folder / BEST)


if __name__ == "__main__":
    train()
