"""Train a model with torchrun; log metrics, curves and the best checkpoint.

mlflow run . -e train --env-manager local -P data_path=frames -P annotations=annotations.json
"""

from typing import TYPE_CHECKING

from k400tiny_lib.config import Config
from k400tiny_lib.console import say_result
from k400tiny_lib.workflow.command import step_command

if TYPE_CHECKING:
    from k400tiny_lib.data.annotations import Annotations


@step_command("train")
def train(config: Config) -> None:
    """Check the inputs, train in worker processes, log metrics, images and the best checkpoint."""
    from pathlib import Path

    from k400tiny_lib.data.annotations import check_annotations, read_annotations
    from k400tiny_lib.files import writing_to
    from k400tiny_lib.tracking.runs import active_run_id, link_run, local_copy, local_inputs
    from k400tiny_lib.training.folder import hold_folder, resolve_checkpoint_dir
    from k400tiny_lib.training.resuming import fetch_best, resolve_checkpoint_paths

    run_id, as_given = active_run_id(), config
    config = local_inputs(config, "data_path", "annotations", "load_model", "resume")
    annotations = read_annotations(Path(config.annotations))
    check_annotations(annotations, Path(config.data_path), config.clip_len, config.num_classes)
    config = resolve_checkpoint_dir(config, run_id)
    folder = Path(config.checkpoint_dir)
    with hold_folder(config, run_id) as hold, writing_to(folder, "checkpoint_dir"):
        config, resumed_run = resolve_checkpoint_paths(config, run_id, annotations.categories, hold)
        hold.begin()
        fetch_best(as_given.resume, folder, local_copy)
        link_run(resumed_run, config.parent_run)
        _train_and_log(config, annotations, run_id, resumed_run, as_given)
        hold.finish()


def _train_and_log(
    config: Config,
    annotations: "Annotations",
    run_id: str,
    resumed_run: str | None,
    as_given: Config,
) -> None:
    from pathlib import Path

    from k400tiny_lib.data.loading.feature_cache import resolve_features
    from k400tiny_lib.data.loading.frame_cache import resolve_frame_cache
    from k400tiny_lib.data.preparation.plots import plot_augmented_clips
    from k400tiny_lib.distributed.launch import launch
    from k400tiny_lib.models.checkpoint import BEST
    from k400tiny_lib.tracking.runs import is_nested
    from k400tiny_lib.tracking.training_log import TrainingLog
    from k400tiny_lib.training.summary import learning_curves, summarize, write_results
    from k400tiny_lib.training.worker import TrainingJob, training_clips

    folder = Path(config.checkpoint_dir)
    frame_cache = resolve_frame_cache(config, annotations)
    frames_digest = resolve_features(config, annotations)
    job = TrainingJob(
        config, folder / f"metrics-{run_id}", run_id, frame_cache, resumed_run, frames_digest
    )
    log = TrainingLog(run_id, job.metrics_log)
    clips = training_clips(config, annotations, frame_cache)
    log.add_figure(plot_augmented_clips(clips, annotations), "augmented_clips.png")
    try:
        launch(job, while_running=log.follow)
    except BaseException:
        log.abandon()
        raise

    results = summarize(job.metrics_log, as_given, run_id, resumed_run)
    if results is None:
        log.close()  # rank 0, which writes metrics and checkpoints, is on another node
        return
    write_results(results, job.metrics_log)
    log.add_figure(learning_curves(job.metrics_log), "learning_curves.png")
    say_result(f"{results.headline}\n{(folder / BEST).absolute()}")
    if not is_nested():
        print(results.next_steps)
    log.close(results.metrics, results.note, folder / BEST)


if __name__ == "__main__":
    train()
