"""One evaluation process, started by torchrun: predicts its share of the clips.

torchrun --nproc-per-node 2 -m k400tiny_lib.evaluation.worker job.json

Process r of n predicts clips r, r + n, r + 2n, ... and writes its predictions to files, which
`predict_splits` joins. No clip is padded or repeated, and no process waits for another.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.config.value_types import ALL_CLIPS
from k400tiny_lib.data.annotations import Annotations, Clip, read_annotations
from k400tiny_lib.data.loading.loader import shared_memory_problem, worker_count
from k400tiny_lib.distributed.launch import Job, launch
from k400tiny_lib.distributed.process import Process, process_group
from k400tiny_lib.distributed.torchrun import join_torchrun
from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.evaluation.cross_validation.features import (
    compute_features,
    features_protocol,
    join_features,
)
from k400tiny_lib.evaluation.predictions import Floats, make_table, predict_clips
from k400tiny_lib.evaluation.shift import robustness
from k400tiny_lib.evaluation.shift.unknown import UnknownRows, join_unknown, predict_unknown
from k400tiny_lib.evaluation.shift.unknown_clips import UnknownClips, find_unknown
from k400tiny_lib.evaluation.views import ViewProtocol
from k400tiny_lib.models.loaded import load_model

CALIBRATION_SPLIT = "val"  # temperature and confidence threshold are chosen on it


class Predicted(NamedTuple):
    """What the workers predicted.

    Attributes:
        tables: the predictions tables by split.
        corrupted: see `corruption_table`; None with robustness=False.
        unknown: see `join_unknown`; None without unknown clips.
        features: see `join_features`; None where `features_protocol` wants none.
    """

    tables: dict[str, pd.DataFrame]
    corrupted: pd.DataFrame | None
    unknown: UnknownRows | None
    features: tuple[Floats, Floats] | None


def launch_workers(job: Job) -> None:
    """Run the worker processes to their end; raises like `launch`."""
    launch(job, module="k400tiny_lib.evaluation.worker")


def predict_splits(
    config: Config,
    annotations: Annotations,
    start: Callable[[Job], None] = launch_workers,
    unknown_clips: UnknownClips | None = None,
    trained: Config | None = None,
) -> Predicted:
    """Predict the evaluated split, the calibration split and unknown clips in worker processes.

    With split=all there are no predictions, but the features of all clips.

    Args:
        config: of evaluate, with local paths.
        annotations: the content of `config.annotations`.
        start: runs the workers of a job to their end.
        unknown_clips: those at `config.unknown_path`, if it names any.
        trained: the parameters that the model was trained with; None for published weights.

    Raises:
        UserError: with the message of a worker.
    """
    with tempfile.TemporaryDirectory() as folder:
        start(Job(config, Path(folder)))

        def written(name: str) -> list[pd.DataFrame]:
            return [pd.read_pickle(file) for file in Path(folder).glob(f"{name}-*.pkl")]

        splits = _clips_by_split(config, annotations)
        tables = {split: make_table(clips, written(split)) for split, clips in splits.items()}
        corrupted = others = features = None
        if _measures_robustness(config):
            corrupted = robustness.corruption_table(tables[config.split], written("robustness"))
        if unknown_clips is not None:
            others = join_unknown(unknown_clips, written("unknown"))
        if features_protocol(config, annotations, trained):
            features = join_features(written("features"), len(list(annotations.clips)))
        return Predicted(tables, corrupted, others, features)


def _clips_by_split(config: Config, annotations: Annotations) -> dict[str, list[Clip]]:
    """The splits to predict that have clips, the evaluated one first."""
    names = (config.split, CALIBRATION_SPLIT) if config.split != ALL_CLIPS else ()
    return {name: annotations.splits[name] for name in names if annotations.splits[name]}


def _measures_robustness(config: Config) -> bool:
    return config.robustness and config.split != ALL_CLIPS


def run(job: Job, process: Process) -> None:
    """Predict the share of one process and write the predictions to the job's folder."""
    config, data_path = job.config, Path(job.config.data_path)
    # TensorFloat-32 rounds to 10 bits, differently for every batch size.
    torch.backends.cudnn.allow_tf32 = False
    annotations = read_annotations(Path(config.annotations))
    loaded = load_model(config)
    model = loaded.model.to(process.device)
    protocol = ViewProtocol(config.num_clips, config.num_crops)
    options: dict[str, Any] = {
        "batch_size": config.batch_size,
        "num_workers": worker_count(config.num_workers, process.local_world_size),
        "device": process.device,
    }
    share = slice(process.rank, None, process.world_size)
    for split, clips in _clips_by_split(config, annotations).items():
        positions = range(len(clips))[share]
        predict_clips(
            model, clips, positions, data_path, loaded.geometry, protocol, **options
        ).to_pickle(job.folder / f"{split}-{process.rank}.pkl")
    if views := features_protocol(config, annotations, loaded.trained):
        clips = list(annotations.clips)
        positions = range(len(clips))[share]
        compute_features(
            model, clips, positions, data_path, loaded.geometry, views, **options
        ).to_pickle(job.folder / f"features-{process.rank}.pkl")
    if _measures_robustness(config):
        clips = annotations.splits[config.split]
        corrupted = robustness.corrupted_positions(len(clips))[share]
        robustness.predict_corrupted(
            model, clips, corrupted, data_path, loaded.geometry, **options
        ).to_pickle(job.folder / f"robustness-{process.rank}.pkl")
    if config.unknown_path != NONE:
        others = find_unknown(Path(config.unknown_path))
        positions = range(len(others.clips))[share]
        predict_unknown(model, others, positions, loaded.geometry, protocol, **options).to_pickle(
            job.folder / f"unknown-{process.rank}.pkl"
        )


def main() -> None:
    """Entry point of each process; a user's mistake goes to the job's error file, exit code 2."""
    join_torchrun()
    job = Job.read(Path(sys.argv[1]))
    try:
        with process_group() as process:
            run(job, process)
    except torch.OutOfMemoryError as error:
        job.error.write_text(
            f"batch_size: {job.config.batch_size} views do not fit into the GPU's memory "
            f"({one_line(error)}). Needed: a smaller batch_size."
        )
        sys.exit(2)
    except UserError as error:
        job.error.write_text(str(error))
        sys.exit(2)
    except Exception as error:
        if not (problem := shared_memory_problem(error)):
            raise
        job.error.write_text(problem)
        sys.exit(2)


if __name__ == "__main__":
    main()
