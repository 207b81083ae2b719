"""Two users with different checkouts run `main` at once against one server with PostgreSQL."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from k400tiny_lib.config import CHAIN
from tests.helpers.project import Checkout, check_out
from tests.helpers.store import tracking
from tests.helpers.tracking_server import Server, postgresql

NAME, VIDEO_NAME = "shared", "shared-video"
SETTINGS = {
    "model": "x3d_s",
    "clip_len": 4,
    "resize_size": 36,
    "crop_size": 32,
    "batch_size": 4,
    "num_epochs": 2,
    "num_workers": 1,
    "quantize": "none",
    "registered_model_name": NAME,
    "video_model_name": VIDEO_NAME,
}


@dataclass
class User:
    """Somebody with a checkout and a temporary directory."""

    name: str
    checkout: Checkout
    data: tuple[Path, Path]

    def start(self) -> "subprocess.Popen[str]":
        temporary = self.checkout.folder.parent / f"tmp-{self.name}"
        temporary.mkdir(exist_ok=True)
        data_path, gt_csv = self.data
        return subprocess.Popen(
            self.checkout.command(data_path=data_path, gt_csv=gt_csv, **SETTINGS),
            env=self.checkout.environment(LOGNAME=self.name, TMPDIR=str(temporary)),
            cwd=temporary,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def client(tmp_path: Path) -> Iterator[MlflowClient]:
    """Of a server with PostgreSQL and two worker processes."""
    with postgresql() as store:
        server = Server(tmp_path, store, workers=2)
        server.start()
        try:
            server.wait()
            with tracking(server.uri):
                yield MlflowClient(server.uri)
        finally:
            server.kill()


def run_at_once(*users: User) -> list[str]:
    processes = [user.start() for user in users]
    outputs = [process.communicate(timeout=1200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(users), "\n".join(outputs)
    return outputs


def family(client: MlflowClient, user: User) -> tuple[Run, dict[str, Run]]:
    """The newest parent of a user, and its children by step."""
    runs = client.search_runs(["0"], f"tags.mlflow.user = '{user.name}'")
    parent = next(run for run in runs if run.data.tags["k400tiny.step"] == "main")
    children = client.search_runs(["0"], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    return parent, {run.data.tags["k400tiny.step"]: run for run in children}


@pytest.mark.slow
def test_two_users_with_different_checkouts_at_once_do_not_mix(
    client: MlflowClient, tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    uri = mlflow.get_tracking_uri()
    anna, ben = (User(n, check_out(tmp_path / n, uri), tiny_data) for n in ("anna", "ben"))
    with (ben.checkout.folder / "k400tiny_lib" / "plots.py").open("a") as file:
        file.write("\n# a change\n")
    outputs = run_at_once(anna, ben)
    assert all(output.count("re-used") == 0 for output in outputs)

    families = [family(client, user) for user in (anna, ben)]
    for user, (parent, children) in zip((anna, ben), families, strict=True):
        assert set(children) == set(CHAIN)
        for step, run in children.items():
            assert run.info.status == "FINISHED"
            assert run.data.tags["mlflow.user"] == user.name
            assert run.data.tags["mlflow.source.name"] == str(user.checkout.folder)
            assert parent.data.tags[f"k400tiny.run.{step}"] == run.info.run_id
        for name in (NAME, VIDEO_NAME):
            [version] = client.search_model_versions(
                f"name = '{name}' and run_id = '{children['export_onnx'].info.run_id}'"
            )
            tag = "model_version" if name == NAME else "video_model_version"
            exported = children["export_onnx"].data.tags[f"k400tiny.{tag}"]
            assert exported == f"{name}/{version.version}"
            if name == NAME:
                assert version.tags["training_run_id"] == children["train"].info.run_id
                assert parent.data.tags["k400tiny.model_version"] == exported
    keys = [{run.data.tags["k400tiny.cache_key"] for run in c.values()} for _, c in families]
    assert not keys[0] & keys[1]
    assert not client.search_runs(["0"], "attributes.status = 'RUNNING'")
    for name in (NAME, VIDEO_NAME):
        versions = client.search_model_versions(f"name = '{name}'")
        assert len(versions) == 2
        aliases = client.get_registered_model(name).aliases
        assert set(aliases) == {"champion", "challenger"}
        assert aliases["challenger"] == "2"
    # Both registries name the same training as champion.
    onnx, video = (client.get_model_version_by_alias(n, "champion") for n in (NAME, VIDEO_NAME))
    assert onnx.run_id == video.run_id

    # Again: all is re-used, by each of what is theirs, and by another copy of the same code.
    carla = User("carla", check_out(tmp_path / "carla", uri), tiny_data)
    for output, user, owner in zip(
        run_at_once(anna, ben, carla), (anna, ben, carla), (0, 1, 0), strict=True
    ):
        assert output.count("re-used") == 4, output
        parent, children = family(client, user)
        assert not children
        for step, run in families[owner][1].items():
            assert parent.data.tags[f"k400tiny.run.{step}"] == run.info.run_id
