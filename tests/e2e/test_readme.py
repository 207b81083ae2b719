"""Each command of the README, copied as it stands, in its order, in a new copy of the project.

    python -m pytest -m readme tests/e2e/test_readme.py     # the README
    python -m pytest -m slow tests/e2e/test_readme.py       # and the pages of docs/

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
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests
import torch
import yaml
from mlflow import MlflowClient

from tests.conftest import LABELS, REPOSITORY, write_data
from tests.helpers.project import check_out
from tests.helpers.server import in_base64
from tests.helpers.videos import encode, moving
from tests.test_docs import commands_of

README = REPOSITORY / "README.md"
# The gate runs the first two itself; test_nodes.py runs several nodes, test_shared_server.py a
# server with PostgreSQL; uv installs all packages once more.
ELSEWHERE = ("python -m pytest", "bash .ci/run", "nnodes=2", "psycopg2", "--env-manager uv")
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
    assert write_data(folder, sources_per_class=8, num_frames=16) == (
        folder / "frames",
        folder / "labels.csv",
    )
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
    """A copy of the project, with small recipes and the inputs of the commands."""
    folder = check_out(tmp_path_factory.mktemp("readme") / "k400tiny", "none is set").folder
    shutil.copy(REPOSITORY / "requirements-dev.txt", folder)
    for file in (folder / "recipes").glob("*.yaml"):
        values = yaml.safe_load(file.read_text()) | SMALL | {"freeze_epochs": 0}
        if file.stem == "sample":  # it has hundreds of clips
            values["batch_size"] = 64
        file.write_text(yaml.safe_dump(values))
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


def run_all(commands: Iterable[str], project: Path, environment: dict[str, str]) -> None:
    """Run commands in their order; a server runs until a command that does not ask it."""
    with ExitStack() as servers:
        for command in commands:
            if "localhost:" not in command:
                servers.close()
            start = time.monotonic()
            port = next((port for name, port in SERVED.items() if command.startswith(name)), None)
            if port is None:
                printed = run(command, project, environment)
            else:
                address = servers.enter_context(running(command, port, project, environment))
                printed = ask(address, port, project)
            seconds = time.monotonic() - start
            print(f"\n{command}\n{printed[-400:]}\n{seconds:.0f} s", flush=True)


def ask(address: str, port: int, project: Path) -> str:
    """Ask a server for its first page, or for the labels of a video; returns the answer."""
    if port == SERVED["mlflow ui"]:
        answer = requests.get(address, timeout=60)
        assert answer.status_code == 200, answer.text
        return ""
    record = {"video": in_base64(project / "video.mp4")}
    body = {"dataframe_records": [record], "params": {"top_k": 2}}
    answer = requests.post(f"{address}/invocations", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    [labeled] = answer.json()["predictions"]
    assert len(labeled["labels"]) == 2
    return str(labeled)


@pytest.fixture(scope="module")
def newcomer(project: Path, environment: dict[str, str]) -> Path:
    """The project after each command of the README, in its order."""
    commands = [
        command for command in commands_of(README) if not any(word in command for word in ELSEWHERE)
    ]
    assert len(commands) > 12
    run_all(commands, project, environment)
    for number, block in enumerate(python_blocks()):
        (project / f"block{number}.py").write_text(block)
        assert run(f"python block{number}.py", project, environment).strip()
    return project


@pytest.mark.readme
def test_a_newcomer_gets_through_the_readme_by_copying_its_commands(newcomer: Path) -> None:
    models = MlflowClient(f"sqlite:///{newcomer}/mlflow.db").search_registered_models()
    assert {model.name for model in models} == {
        "k400tiny-r2plus1d_18",
        "k400tiny-tsn_efficientnet_lite0",
        "k400tiny-video-classifier",
        "k400tiny-video-classifier-tsn_efficientnet_lite0",
    }


@pytest.mark.slow
def test_a_reader_gets_through_the_other_pages_as_well(
    newcomer: Path, environment: dict[str, str]
) -> None:
    write_videos(newcomer / "other_videos", ["other0", "other1"])
    checkpoint = max(newcomer.glob("checkpoints/*/best.pt"), key=lambda path: path.stat().st_mtime)
    annotations = max(newcomer.rglob("annotations.json"), key=lambda path: path.stat().st_mtime)
    for file in (checkpoint, annotations):
        shutil.copy(file, newcomer)
    log = next(checkpoint.parent.glob("metrics-*[!a-z]"))
    run_all(commands_of_pages(newcomer, log), newcomer, environment)


def commands_of_pages(project: Path, log: Path) -> Iterator[str]:
    """The commands of the pages, with the names of files and runs that are there by then."""
    for page in ("training", "evaluation", "serving"):
        for command in commands_of(REPOSITORY / "docs" / f"{page}.md"):
            if any(word in command for word in ELSEWHERE):
                continue
            if "split=all" in command:  # asks for a backbone that has not seen the clips
                shutil.copy(newest_of_small(project), project)
            if "tuning/best.yaml" in command:
                command = command.replace("<run id>", newest_run(project, "tune"))
            command = command.replace("checkpoints/<run id>/metrics-<run id>", str(log))
            assert "<" not in command, command
            yield command


def newest_of_small(project: Path) -> Path:
    """The newest checkpoint of the recipe `small`."""
    files = sorted(project.glob("checkpoints/*/best.pt"), key=lambda path: path.stat().st_mtime)
    configs = [torch.load(file, weights_only=True)["config"] for file in files]
    return [f for f, config in zip(files, configs, strict=True) if config["weights"] == "imagenet"][
        -1
    ]


def newest_run(project: Path, step: str) -> str:
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    named = f"tags.`k400tiny.step` = '{step}'"
    [run] = client.search_runs(["0"], named, max_results=1)
    return str(run.info.run_id)
