"""One evaluating process, as torchrun starts it: predicts its share of the clips.

torchrun --nproc-per-node 2 -m k400tiny_lib.evaluation.worker job.json

Process r of n takes clips r, r + n, r + 2n, ... and leaves its rows in a file; whoever started the
processes puts them together. No clip is padded or repeated, and no process waits for another.
"""

import sys
from pathlib import Path

import pandas as pd
import torch

from k400tiny_lib.data.annotations import Annotations, read_annotations
from k400tiny_lib.data.loading.loader import worker_count
from k400tiny_lib.distributed import launch
from k400tiny_lib.distributed.process import Process, process_group
from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.evaluation.predictions import Rows, make_table, predict_clips
from k400tiny_lib.evaluation.robustness import Probes, probe, probe_positions, probe_table
from k400tiny_lib.evaluation.views import Protocol
from k400tiny_lib.models.loaded import load_model

FITTING_SPLIT = "val"  # for the temperature


class Job(launch.Job):
    """The job of an evaluation; its folder gets the predictions of the processes."""

    def splits(self, annotations: Annotations) -> list[str]:
        """The splits to predict: the evaluated one, and the one that the temperature needs."""
        names = dict.fromkeys((self.config.split, FITTING_SPLIT))
        return [name for name in names if annotations.splits[name]]


def run(job: Job, process: Process) -> None:
    """Predict this process's share."""
    config = job.config
    # TensorFloat-32 rounds to 10 bits, differently for every batch size.
    torch.backends.cudnn.allow_tf32 = False
    annotations = read_annotations(Path(config.annotations))
    subject = load_model(config)
    model = subject.model.to(process.device)
    loading = {
        "batch_size": config.batch_size,
        "num_workers": worker_count(config.num_workers, process.local_world_size),
    }
    share = slice(process.rank, None, process.world_size)
    for split in job.splits(annotations):
        clips = annotations.splits[split]
        rows = predict_clips(
            model,
            clips,
            range(len(clips))[share],
            Path(config.data_path),
            subject.geometry,
            Protocol(config.num_clips, config.num_crops),
            device=process.device,
            **loading,
        )
        rows.save(job.folder / f"{split}-{process.rank}.npz")
    if config.robustness:
        clips = annotations.splits[config.split]
        probes = probe(
            model,
            clips,
            probe_positions(len(clips))[share],
            Path(config.data_path),
            subject.geometry,
            device=process.device,
            **loading,
        )
        probes.save(job.folder / f"robustness-{process.rank}.npz")


def read_tables(job: Job, annotations: Annotations) -> dict[str, pd.DataFrame]:
    """The predictions tables by split, from the files that the processes have left."""
    tables = {}
    for split in job.splits(annotations):
        files = sorted(job.folder.glob(f"{split}-*.npz"))
        tables[split] = make_table(annotations.splits[split], [Rows.load(file) for file in files])
    return tables


def read_probes(job: Job, table: pd.DataFrame) -> pd.DataFrame:
    """The table of `robustness.probe_table` from the files that the processes have left."""
    files = sorted(job.folder.glob("robustness-*.npz"))
    return probe_table(table, [Probes.load(path) for path in files])


def main() -> None:
    """Entry point of each process; a user's mistake goes to the job's error file, exit code 2."""
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


if __name__ == "__main__":
    main()
