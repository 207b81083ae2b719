"""Starts torchrun with the workers of a step and waits until they end."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from k400tiny_lib.config import AUTO, Config
from k400tiny_lib.errors import UserError

TRAINING = "k400tiny_lib.training.worker"

_POLL_SECONDS = 1.0
_STOP_SECONDS = 60.0
_LOG_LINES = 40


class Job(Protocol):
    """What workers are told, as a file."""

    @property
    def config(self) -> Config:
        """The parameters of the step; the launch parameters are among them."""

    @property
    def error(self) -> Path:
        """Where a worker writes a message for the user before it gives up."""

    def write(self, path: Path) -> None:
        """Write the job file."""


class WorkerFailed(Exception):
    """The workers failed for a reason that is not the user's; the message ends their log."""


def processes_per_node(config: Config) -> int:
    """`nproc_per_node` as a number: one process per GPU, or one on a CPU, for `auto`.

    Raises:
        UserError: if there are GPUs, but fewer than processes.
    """
    gpus = torch.cuda.device_count()
    if config.nproc_per_node == AUTO:
        return max(gpus, 1)
    wanted = int(config.nproc_per_node)
    if gpus and wanted > gpus:
        raise UserError(f"nproc_per_node: {wanted}, but this node has {gpus} GPU(s).")
    return wanted


def torchrun_command(config: Config, job_file: Path, module: str) -> list[str]:
    """The torchrun command line of a worker module; one process and many go the same way."""
    command = [
        sys.executable, "-m", "torch.distributed.run",
        f"--nnodes={config.nnodes}",
        f"--nproc-per-node={processes_per_node(config)}",
        f"--max-restarts={config.max_restarts}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={config.rdzv_endpoint}",
    ]  # fmt: skip
    if config.nnodes > 1:
        # c10d would guess the host by comparing names, which fails where nodes share one.
        command += [
            f"--node-rank={config.node_rank}",
            f"--rdzv-conf=is_host={int(config.node_rank == 0)}",
            "--rdzv-id=k400tiny",
        ]
    return [*command, "-m", module, str(job_file)]


def launch(
    job: Job,
    workdir: Path,
    while_running: Callable[[], object] = lambda: None,
    module: str = TRAINING,
) -> None:
    """Run the workers to their end.

    Args:
        job: what they are told.
        workdir: a directory for the job file and the log of the workers.
        while_running: called about every second, and must not raise.
        module: of the workers, started with the path of the job file.

    Raises:
        UserError: with the message that a worker left.
        WorkerFailed: if they failed otherwise.
    """
    job_file, log_file = workdir / "job.json", workdir / "workers.log"
    job.write(job_file)
    environment = dict(os.environ)
    threads = max(1, (os.cpu_count() or 1) // processes_per_node(job.config))
    environment.setdefault("OMP_NUM_THREADS", str(threads))  # torchrun would set 1
    # Threads that spin while they wait take the cores from the loader's processes and from
    # whatever else runs on a laptop: a step took three times as long beside another program.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # torchrun and the workers report on stderr, tracebacks for a user's mistake included. It is
    # kept in a file and shown only where it helps.
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            torchrun_command(job.config, job_file, module), env=environment, stderr=log
        )
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                while_running()
        finally:
            _stop(process)
    if process.returncode == 0:
        return
    if job.error.exists():
        raise UserError(job.error.read_text())
    tail = log_file.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    raise WorkerFailed("\n".join([f"torchrun exited with code {process.returncode}:", *tail]))


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
