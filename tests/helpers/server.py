"""A real `mlflow models serve`, and requests to it."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import psutil


class Server(NamedTuple):
    """A running server: where it answers, and its first process."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def megabytes(self) -> float:
        """Resident memory of all its processes."""
        first = psutil.Process(self.process.pid)
        return sum(p.memory_info().rss for p in [first, *first.children(recursive=True)]) / 1e6


@contextmanager
def serving(uri: str, folder: Path, environment: Mapping[str, str] = {}) -> Iterator[Server]:
    """Start it where the library is not to be found.

    Args:
        uri: of the model.
        folder: working directory; the log is in it.
        environment: more variables for the server.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MLFLOW_RUN_ID")}
    variables["MLFLOW_TRACKING_URI"] = mlflow.get_tracking_uri()
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    command = f"mlflow models serve -m {uri} --env-manager local -p {port}"
    log = folder / f"server-{port}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command.split(),
            cwd=folder,
            env=variables | environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        deadline = time.monotonic() + 120
        while not _answers(f"{server.address}/ping"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield server
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def post(
    address: str, body: bytes, timeout: float = 60, kind: str = "application/json"
) -> tuple[int, Any]:
    """Status and parsed answer of a request; the text of one that is not JSON."""
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read()
        try:
            return error.code, json.loads(text)
        except ValueError:
            return error.code, {"message": text.decode()}


def request_for(*videos: Any, **params: Any) -> bytes:
    """The body of the README's curl line."""
    return json.dumps(
        {"dataframe_records": [{"video": video} for video in videos], "params": params}
    ).encode()


def in_base64(video: Path | bytes) -> str:
    return base64.b64encode(video if isinstance(video, bytes) else video.read_bytes()).decode()
