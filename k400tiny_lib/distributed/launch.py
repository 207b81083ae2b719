"""Starts torchrun with the workers of a step and waits until they end."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
import torch
from pydantic import TypeAdapter

from k400tiny_lib.config import AUTO, Config
from k400tiny_lib.errors import UserError
from k400tiny_lib.system import available_cores

TRAINING = "k400tiny_lib.training.worker"

_LOOPBACK = "127.0.0.1"
_STOP_SECONDS = 60.0
_LOG_LINES = 40
_RENDEZVOUS_FAILED = ("RendezvousTimeoutError", "RendezvousConnectionError")


@dataclass(frozen=True)
class Job:
    """The job description that worker processes read from a JSON file.

    Attributes:
        config: the parameters of the step, with local paths in place of URIs.
        folder: for the files of the workers: job description, log, message to the user, results.
    """

    config: Config
    folder: Path

    @property
    def file(self) -> Path:
        """The job description."""
        return self.folder / "job.json"

    @property
    def error(self) -> Path:
        """The message to the user that a worker writes before it exits."""
        return self.folder / "error.txt"

    def write(self) -> None:
        """Write the job description to its file."""
        self.file.write_bytes(TypeAdapter(type(self)).dump_json(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a job description."""
        return TypeAdapter(cls).validate_json(path.read_bytes())


class WorkerFailed(Exception):
    """The workers failed for a reason that is not the user's; the message ends with their log."""


def processes_per_node(config: Config) -> int:
    """`nproc_per_node` as a number: one process per GPU, or one on a CPU, for `auto`.

    Raises:
        UserError: if there are GPUs, but fewer than processes.
    """
    gpus = torch.cuda.device_count()
    if config.nproc_per_node == AUTO:
        return max(gpus, 1)
    processes = int(config.nproc_per_node)
    if gpus and processes > gpus:
        raise UserError(f"nproc_per_node: {processes}, but this node has {gpus} GPU(s).")
    return processes


def torchrun_command(config: Config, job_file: Path, module: str, log_dir: str) -> list[str]:
    """The torchrun command line of a worker module, the same for one process and for many."""
    command = [
        *(sys.executable, "-m", "k400tiny_lib.distributed.torchrun", str(os.getpid())),
        f"--nnodes={config.nnodes}",
        f"--nproc-per-node={processes_per_node(config)}",
        f"--max-restarts={config.max_restarts}",
        f"--log-dir={log_dir}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={_endpoint(config)}",
    ]
    if config.nnodes == 1:
        # torchrun would ask for the address of the machine's name, which may have none.
        command.append(f"--local-addr={_LOOPBACK}")
    else:
        # c10d would guess the host by comparing names, which fails where nodes share one.
        is_host, timeout = int(config.node_rank == 0), config.rdzv_timeout
        command += [
            f"--node-rank={config.node_rank}",
            f"--local-addr={local_address(config.rdzv_endpoint)}",
            # read_timeout is also that of the first connection to node 0.
            f"--rdzv-conf=is_host={is_host},join_timeout={timeout},read_timeout={timeout}",
            "--rdzv-id=k400tiny",
        ]
    return [*command, "-m", module, str(job_file)]


def _endpoint(config: Config) -> str:
    """Where the processes meet: on one node at the loopback address, not by the machine's name."""
    host, _, port = config.rdzv_endpoint.rpartition(":")
    if config.nnodes == 1 and host == "localhost":
        return f"{_LOOPBACK}:{port}"
    return config.rdzv_endpoint


def check_port(config: Config) -> None:
    """Refuse a port that another program uses, on the node that the others come to.

    Raises:
        UserError: if it is in use.
    """
    port = config.rdzv_endpoint.rpartition(":")[2]
    if config.node_rank or not port.isdecimal() or int(port) == 0:
        return
    try:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("", int(port)))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"rdzv_endpoint: port {port} of this node cannot be used ({reason}). Needed: a free "
            f"port{', or localhost:0 for any' if config.nnodes == 1 else ''}."
        ) from None


def local_address(rdzv_endpoint: str) -> str:
    """The address of this node on its route to the rendezvous.

    Raises:
        UserError: if the endpoint's name cannot be resolved or has no route.
    """
    host, _, port = rdzv_endpoint.rpartition(":")
    try:
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), int(port))[0]
        with socket.socket(family, socket.SOCK_DGRAM) as udp:
            udp.connect(address)  # sends nothing, only chooses the route
            return str(udp.getsockname()[0])
    except (OSError, ValueError) as error:
        raise UserError(
            f"rdzv_endpoint: {rdzv_endpoint} cannot be reached from this node ({error}). "
            "Needed: <address of node 0>:<free port>."
        ) from None


def interface_of(address: str) -> str | None:
    """The network interface that has an address; None if none does."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address.partition("%")[0] == address for a in addresses):
            return str(name)
    return None


def environment(config: Config) -> dict[str, str]:
    """The environment of torchrun: what the user has set has priority over our defaults."""
    threads = max(1, available_cores() // processes_per_node(config))
    defaults = {
        "OMP_NUM_THREADS": str(threads),  # torchrun would set 1
        # Threads that spin while they wait take cores from the loader's processes and from other
        # programs: while one was running, a training step took three times as long.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    # Gloo would take the address of the machine's name, which may have none, or on several nodes
    # that of the loopback.
    address = _LOOPBACK if config.nnodes == 1 else local_address(config.rdzv_endpoint)
    if interface := interface_of(address):
        defaults["GLOO_SOCKET_IFNAME"] = interface
    # After a restart, workers would find the addresses of their dead predecessors in torchrun's
    # store (pytorch#135712). With this, rank 0 opens a new store each time.
    return defaults | os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def launch(
    job: Job,
    while_running: Callable[[], object] = lambda: None,
    module: str = TRAINING,
    poll_seconds: float = 1.0,
) -> None:
    """Run the workers to their end.

    Args:
        job: its folder exists.
        while_running: called every `poll_seconds`; must not raise.
        module: of the workers, started with the path of the job description.
        poll_seconds: time between two looks at the workers.

    Raises:
        UserError: with the message that a worker wrote, or if the nodes cannot meet.
        WorkerFailed: if they failed otherwise.
    """
    check_port(job.config)
    job.write()
    log_file = job.folder / "workers.log"
    # torchrun and the workers report on stderr, with a traceback even for a user's mistake. It goes
    # to a file, and is shown only where it helps.
    # torchrun itself leaves its directory, with the errors of the workers, behind.
    with (
        log_file.open("wb") as log,
        tempfile.TemporaryDirectory(prefix="torchrun-", ignore_cleanup_errors=True) as log_dir,
    ):
        command = torchrun_command(job.config, job.file, module, log_dir)
        process = subprocess.Popen(command, env=environment(job.config), stderr=log)
        try:
            # An error file means a user's mistake: torchrun must not restart the worker into it.
            while not job.error.exists():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(poll_seconds)
                    break
                while_running()
        finally:
            process.terminate()  # nothing if it has ended
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    if job.error.exists():
        raise UserError(job.error.read_text())
    if process.returncode == 0:
        return
    log_text = log_file.read_text(errors="replace")
    if any(name in log_text for name in _RENDEZVOUS_FAILED):
        if job.config.nnodes == 1:
            raise UserError(
                f"rdzv_endpoint: {job.config.rdzv_endpoint} is not an address of this node with a "
                "free port. Needed: localhost:0."
            )
        raise UserError(
            f"rdzv_endpoint: not all of the {job.config.nnodes} nodes came to "
            f"{job.config.rdzv_endpoint} within {job.config.rdzv_timeout} s. Needed: train on each "
            "of them with the same rdzv_endpoint, node 0 at that address, and a way to its port."
        )
    tail = log_text.splitlines()[-_LOG_LINES:]
    raise WorkerFailed("\n".join([f"torchrun exited with code {process.returncode}:", *tail]))
