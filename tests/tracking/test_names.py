"""What people read in the UI: names of runs, addresses of pages, scores on a model's page."""

import threading
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, HTTPServer

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.name_utils import _generate_random_name

from k400tiny_lib.config import Config
from k400tiny_lib.registry.registry import log_onnx
from k400tiny_lib.tracking.models import logged_model_id
from k400tiny_lib.tracking.naming import is_drawn, name_run
from k400tiny_lib.tracking.runs import step_run
from k400tiny_lib.tracking.server import (
    move_password_to_environment,
    run_page,
    server_in_shell,
    where_to_look,
)
from tests.helpers.export import METADATA, toy_graph


def name_of(run_id: str) -> str:
    return str(MlflowClient().get_run(run_id).info.run_name)


def test_a_name_that_mlflow_draws_is_told_from_one_of_a_user() -> None:
    for _ in range(300):
        assert is_drawn(_generate_random_name())
    for name in ("baseline", "my-model-3", "r2plus1d-long-run-1", "merciful-fox", "main"):
        assert not is_drawn(name)


@pytest.mark.parametrize(
    ("given", "variable", "first", "last"),
    [
        (None, None, "frames · x3d_s", "frames · x3d_s · top-1 97.0 %"),
        ("baseline", None, "baseline", "baseline"),
        (None, "from outside", "from outside", "from outside"),
        ("baseline", "from outside", "baseline", "baseline"),
    ],
)
def test_a_run_gets_a_readable_name_unless_the_user_gave_one(
    store: str,
    monkeypatch: pytest.MonkeyPatch,
    given: str | None,
    variable: str | None,
    first: str,
    last: str,
) -> None:
    run_id = MlflowClient().create_run("0", run_name=given).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    if variable is not None:
        monkeypatch.setenv("MLFLOW_RUN_NAME", variable)
    config = Config(data_path="/data/frames/", model="x3d_s")
    with step_run("main", config) as run:
        assert name_of(run_id) == first
        name_run(run, "main", config, "top-1 97.0 %")
        assert name_of(run_id) == last


def test_a_name_changed_in_the_ui_while_main_runs_stays(store: str) -> None:
    with step_run("main", Config()) as run:
        assert name_of(run.info.run_id) == "sample · r2plus1d_18"
        MlflowClient().set_tag(run.info.run_id, "mlflow.runName", "the good one")
        name_run(run, "main", Config(), "top-1 97.0 %")
    assert name_of(run.info.run_id) == "the good one"


@pytest.mark.parametrize(
    ("step", "name"),
    [
        ("prepare_data", "prepare_data · sample"),
        ("train", "train · r2plus1d_18"),
        ("evaluate", "evaluate · test"),
        ("export_onnx", "export_onnx"),
        ("predict", "predict · a.mp4"),
    ],
)
def test_a_single_step_is_named_by_what_it_works_on_and_a_nested_one_by_its_step(
    store: str, monkeypatch: pytest.MonkeyPatch, step: str, name: str
) -> None:
    config = Config(input="videos/a.mp4")
    with step_run(step, config) as run:
        assert name_of(run.info.run_id) == name
    tags = {"mlflow.parentRunId": run.info.run_id}
    nested = MlflowClient().create_run("0", tags=tags).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", nested)
    monkeypatch.setenv("MLFLOW_RUN_NAME", "of the parent")
    with step_run(step, config):
        assert name_of(nested) == step


@pytest.mark.parametrize("step", ["main", "train"])
def test_a_description_heads_that_of_the_run_from_the_start(store: str, step: str) -> None:
    with step_run(step, Config(description="a **try**")) as run:
        tags = MlflowClient().get_run(run.info.run_id).data.tags
        assert tags["mlflow.note.content"] == "a **try**"


def test_the_way_to_the_page_of_a_run_can_be_used_and_shows_no_password(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = MlflowClient().create_run("0")
    path = f"#/experiments/0/runs/{run.info.run_id}?workflowType=machine_learning"
    assert where_to_look(run) == (
        f"mlflow ui --backend-store-uri {store}, then http://127.0.0.1:5000/{path}"
    )
    assert run_page(run) is None
    for uri, page in {
        "http://host:5000/": f"http://host:5000/{path}",
        "https://user:secret@host/mlflow": f"https://host/mlflow/{path}",
    }.items():
        monkeypatch.setattr(mlflow, "get_tracking_uri", lambda uri=uri: uri)
        assert where_to_look(run) == run_page(run) == page
    uri = "postgresql://user:secret@host/db"
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: uri)
    assert where_to_look(run).startswith('mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI",')


def test_the_password_of_a_server_goes_to_the_environment_and_still_opens_it(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "before")  # restored afterwards
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        mlflow.set_tracking_uri(f"http://me:p%40ss%3Aword@{host}")
        move_password_to_environment()
        assert mlflow.get_tracking_uri() == f"http://{host}"
        assert server_in_shell() == '"$MLFLOW_TRACKING_URI"'
        with pytest.raises(MlflowException):
            MlflowClient().get_run("0" * 32)
        server.shutdown()
    assert {b64decode(header.partition(" ")[2]).decode() for header in seen} == {"me:p@ss:word"}


def test_scores_are_on_the_page_of_the_model_that_a_version_was_registered_from(store: str) -> None:
    with mlflow.start_run():
        registered = mlflow.register_model(log_onnx(toy_graph(), METADATA), "toy")
    version = MlflowClient().get_model_version("toy", registered.version)
    with mlflow.start_run() as run:
        mlflow.log_metrics({"test_acc1": 75.0}, model_id=logged_model_id(version))
    model = MlflowClient().get_logged_model(version.source.removeprefix("models:/"))
    assert {metric.key: metric.value for metric in model.metrics} == {"test_acc1": 75.0}
    assert MlflowClient().get_run(run.info.run_id).data.metrics == {"test_acc1": 75.0}
