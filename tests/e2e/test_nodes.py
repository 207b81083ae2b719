"""Two nodes, as two network namespaces joined by a cable, train together by `mlflow run`."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from k400tiny_lib.metrics_log import read_entries
from k400tiny_lib.models.checkpoint import read_training_state
from tests.conftest import REPOSITORY
from tests.helpers.training import annotate

ADDRESSES = ("10.213.7.1", "10.213.7.2")


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces with an address each; the test is skipped where none can be made."""
    names = (f"k400tiny{os.getpid()}a", f"k400tiny{os.getpid()}b")
    if shutil.which("ip") is None:
        pytest.skip("network namespaces cannot be made: no `ip` (package iproute2)")

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ends = ["name", "veth0", "netns", names[0], "type", "veth", "peer", "name", "veth0"]
        ip("link", "add", *ends, "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "veth0")
            for device in ("lo", "veth0"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made: {error.stderr.strip()}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def workers_of(folder: Path) -> list[psutil.Process]:
    """The training processes whose job lies in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
            if any(a.startswith(str(folder)) for a in line) and "RANK" in process.environ():
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_two_nodes_train_together_and_a_killed_worker_comes_back(
    namespaces: tuple[str, str], store: str, tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    annotations = tmp_path / "annotations.json"
    annotations.write_text(annotate(tiny_data[0], num_val=3, num_train=16).to_json())
    client = MlflowClient(store)
    parent = client.create_run("0").info.run_id
    folders = (tmp_path / "disk0", tmp_path / "disk1")  # the nodes share no disk
    nodes = []
    for rank, (name, folder) in enumerate(zip(namespaces, folders, strict=True)):
        parameters = {
            "data_path": tiny_data[0],
            "annotations": annotations,
            "model": "mc3_18",
            "clip_len": 4,
            "resize_size": 32,
            "crop_size": 32,
            "batch_size": 2,
            "num_workers": 0,
            "num_epochs": 8,
            "frame_cache": "none",
            "checkpoint_dir": folder,
            "nnodes": 2,
            "node_rank": rank,
            "rdzv_endpoint": f"{ADDRESSES[0]}:29411",
            "max_restarts": 2,
            "rdzv_timeout": 240,
            "parent_run": parent,
        }
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "mlflow", "run"]
        command += [str(REPOSITORY), "-e", "train", "--env-manager", "local"]
        for key, value in parameters.items():
            command += ["-P", f"{key}={value}"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path}
        log = (tmp_path / f"node{rank}.log").open("w")
        nodes.append(
            subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
        )

    def logs() -> str:
        return "".join((tmp_path / f"node{rank}.log").read_text() for rank in (0, 1))

    while not list(tmp_path.glob("disk*/last.pt")):
        assert all(node.poll() is None for node in nodes), logs()
        time.sleep(0.1)
    [worker] = workers_of(folders[1])
    worker.kill()
    for node in nodes:
        assert node.wait(timeout=600) == 0, logs()

    assert "resuming run" in logs()
    runs = client.search_runs(["0"], f"tags.mlflow.parentRunId = '{parent}'")
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    [last] = tmp_path.glob("disk*/last.pt")  # rank 0 stayed where it was
    assert read_training_state(last)["finished_epochs"] == 8
    [metrics_log] = last.parent.glob("metrics-*.jsonl")
    assert [entry.step for entry, _ in read_entries(metrics_log)] == list(range(1, 9))
