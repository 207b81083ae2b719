"""The examples for clusters call train with parameters that it has."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from k400tiny_lib.config import STEPS, resolve
from tests.conftest import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
FAKE_MLFLOW = '#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n'


def parameters(arguments: list[str]) -> dict[str, str]:
    """The -P parameters of a `mlflow run` command line, which must be one of train."""
    assert arguments[:4] == ["run", ".", "-e", "train"]
    given = [arguments[i + 1] for i, word in enumerate(arguments) if word == "-P"]
    found = dict(parameter.split("=", 1) for parameter in given)
    assert set(found) <= set(STEPS["train"].params)
    resolve("train", found)
    return found


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, str]:
    """An environment in which mlflow prints its arguments, and Slurm's programs do one task."""
    fakes = {
        "mlflow": FAKE_MLFLOW,
        "scontrol": "#!/usr/bin/env bash\nprintf 'node7\\nnode8\\n'\n",
        "srun": '#!/usr/bin/env bash\nshift\nSLURM_NODEID=1 exec "$@"\n',
    }
    for name, text in fakes.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}


def test_the_slurm_script_runs_train_on_each_node(programs: dict[str, str]) -> None:
    slurm = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "70001", "SLURM_JOB_NUM_NODES": "2"}
    done = subprocess.run(
        ["bash", EXAMPLES / "slurm.sh", "my frames", "runs:/1/annotations.json"],
        env=programs | slurm,
        capture_output=True,
        text=True,
        check=True,
    )
    found = parameters(done.stdout.splitlines())
    assert found["data_path"] == "my frames"
    assert (found["nnodes"], found["node_rank"]) == ("2", "1")
    assert found["rdzv_endpoint"] == "node7:50001"
    assert found["checkpoint_dir"].endswith("checkpoints/slurm-70001")


def test_the_trainjob_runs_train_with_what_kubeflow_sets(programs: dict[str, str]) -> None:
    runtime, job = yaml.safe_load_all((EXAMPLES / "trainjob.yaml").read_text())
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    command = job["spec"]["trainer"]["command"]
    # As Kubeflow Trainer's torch plugin sets them.
    kubeflow = {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "8",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "k400tiny-node-0-0.k400tiny",
        "PET_MASTER_PORT": "29400",
    }
    assert set(re.findall(r"\$(\w+)", command[-1])) <= set(kubeflow)
    done = subprocess.run(
        command, env=programs | kubeflow, capture_output=True, text=True, check=True
    )
    found = parameters(done.stdout.splitlines())
    assert found["rdzv_endpoint"] == "k400tiny-node-0-0.k400tiny:29400"
    assert (found["nnodes"], found["node_rank"], found["nproc_per_node"]) == ("2", "1", "8")
