"""Tracking servers, and a database for one."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

import pytest


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    """`mlflow server` on a free port with a new store, which outlives it."""

    def __init__(self, folder: Path, store: str = "", workers: int = 1) -> None:
        self.folder, self.workers = folder, workers
        self.store = store or f"sqlite:///{folder}/server.db"
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--workers",
            str(self.workers),
            "--port",
            str(self.port),
            "--backend-store-uri",
            self.store,
            "--artifacts-destination",
            str(self.folder / "artifacts"),
        ]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        self.process = subprocess.Popen(
            command,
            env=environment,
            cwd=self.folder,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError(self.uri)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def postgresql() -> Iterator[str]:
    """An empty PostgreSQL database; yields its URI. The test is skipped where there is none."""
    # The driver that `postgresql://` alone means depends on the version of SQLAlchemy.
    driver = next((name for name in ("psycopg", "psycopg2") if find_spec(name)), None)
    if driver is None:
        pytest.skip("no client of PostgreSQL is installed (pip install psycopg[binary])")
    candidates = [shutil.which("initdb"), *Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    initdb = next((Path(path) for path in candidates if path), None)
    if initdb is None:
        pytest.skip("PostgreSQL is not installed (initdb)")
    # It refuses root, and another user cannot reach pytest's directory.
    user = "nobody" if os.getuid() == 0 else None
    port, control = free_port(), str(initdb.with_name("pg_ctl"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if user:
            shutil.chown(folder, user)
        data = f"{folder}/data"

        def call(*command: str) -> None:
            subprocess.run(
                command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=120
            )

        call(str(initdb), "-D", data, "-U", "mlflow", "--auth=trust", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        call(control, "start", "-w", "-D", data, "-o", options, "-l", f"{folder}/log")
        try:
            yield f"postgresql+{driver}://mlflow:secret@127.0.0.1:{port}/postgres"
        finally:
            call(control, "stop", "-D", data, "-m", "immediate")
