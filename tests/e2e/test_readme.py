"""Each command of the README, copied as it stands, in its order, in a new copy of the project.

    python -m pytest -m readme tests/e2e/test_readme.py

Only the recipes are made small, and the names of files in the commands are given files.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import torch
import yaml

from tests.conftest import LABELS, REPOSITORY, write_data
from tests.helpers.server import in_base64
from tests.helpers.videos import encode, moving
from tests.test_docs import commands_of

pytestmark = pytest.mark.readme

README = REPOSITORY / "README.md"
ELSEWHERE = ("python -m pytest", "bash .ci/run")  # the gate runs these itself
SMALL = {"clip_len": 4, "resize_size": 36, "crop_size": 32, "num_epochs": 1, "batch_size": 4}
SMALL |= {"robustness": False}
SERVED = {"mlflow ui": 5000, "mlflow models serve": 5001}
# Video, label and number of its part of a second.
SEGMENTS = [
    (f"long{video}", label, part) for video in range(6) for part, label in enumerate(LABELS)
]


def write_videos(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        seed = zlib.crc32(f"{folder.name}/{name}".encode())
        encode(folder / f"{name}.mp4", moving(30, seed=seed))


def write_inputs(folder: Path) -> None:
    """What the commands of the README name."""
    assert write_data(folder) == (folder / "frames", folder / "labels.csv")
    names = {f"{label}{number}": label for label in LABELS for number in range(6)}
    write_videos(folder / "videos", list(names))
    rows = [f"{name}.mp4,{label}" for name, label in names.items()]
    (folder / "videos.csv").write_text("\n".join(["file,label", *rows]))
    for label in LABELS:
        write_videos(folder / "class_folders" / label, [f"{label}{n}" for n in range(6)])
    write_videos(folder / "long", sorted({name for name, _, _ in SEGMENTS}))
    parts = [f"{name}.mp4,{label},{s / 4},{(s + 1) / 4}" for name, label, s in SEGMENTS]
    (folder / "segments.csv").write_text("\n".join(["file,label,time_start,time_end", *parts]))
    encode(folder / "video.mp4", moving(60))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the committed files, with small recipes and the inputs of the commands."""
    folder = tmp_path_factory.mktemp("readme") / "k400tiny"
    folder.mkdir()
    tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=REPOSITORY, text=True)
    for name in filter(None, tracked.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, folder / name)
    for file in (folder / "recipes").glob("*.yaml"):
        values = yaml.safe_load(file.read_text()) | SMALL
        file.write_text(yaml.safe_dump(values | {"freeze_epochs": 0}))
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def environment(project: Path) -> dict[str, str]:
    """A shell's environment in which the programs of this Python are found, and no store is set."""
    dropped = {"MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "PYTHONPATH"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    hub = project.parent / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    from k400tiny_lib.models.weights import build_model

    torch.manual_seed(0)
    state = build_model("r2plus1d_18", 400).state_dict()
    torch.save(state, hub / "r2plus1d_18-91a641e6.pth")
    return kept | {"PATH": path, "TORCH_HOME": str(hub.parents[1])}


@contextmanager
def running(command: str, port: int, project: Path, environment: dict[str, str]) -> Iterator[str]:
    """A command that serves; gives its address when it answers."""
    server = subprocess.Popen(
        command, shell=True, cwd=project, env=environment, start_new_session=True
    )
    try:
        for _ in range(600):
            assert server.poll() is None, "the server ended"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def run(command: str, project: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        shell=True,
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"
    return done.stdout


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


def test_a_newcomer_gets_through_the_readme_by_copying_its_commands(
    project: Path, environment: dict[str, str]
) -> None:
    commands = [c for c in commands_of(README) if not c.startswith(ELSEWHERE)]
    assert len(commands) > 12
    for command in commands:
        port = next((port for start, port in SERVED.items() if command.startswith(start)), None)
        if port is None:
            print(command, run(command, project, environment)[-400:], sep="\n", flush=True)
            continue
        with running(command, port, project, environment) as address:
            if port == SERVED["mlflow models serve"]:
                record = {"video": in_base64(project / "video.mp4")}
                body = {"dataframe_records": [record], "params": {"top_k": 2}}
                answer = requests.post(f"{address}/invocations", json=body, timeout=60)
                assert answer.status_code == 200, answer.text
                assert len(answer.json()["predictions"][0]["labels"]) == 2
            else:
                assert requests.get(address, timeout=60).status_code == 200
    for number, block in enumerate(python_blocks()):
        (project / f"block{number}.py").write_text(block)
        assert run(f"python block{number}.py", project, environment).strip()
