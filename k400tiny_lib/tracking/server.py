"""The tracking server or database: its address without the password, and the pages in its UI."""

import os
import shlex
from urllib.parse import unquote, urlsplit, urlunsplit

import mlflow
from mlflow.entities import Run

from k400tiny_lib.errors import hide_passwords


def move_password_to_environment() -> None:
    """Take user and password out of the address of an HTTP server.

    MLflow prints that address, and steps inherit it. The client sends the same credentials from
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. The URI of a database keeps its password,
    which has no other way in.
    """
    uri = mlflow.get_tracking_uri()
    parts = urlsplit(uri)
    credentials, at, host = parts.netloc.rpartition("@")
    if not at or parts.scheme not in ("http", "https"):
        return
    user, _, password = credentials.partition(":")
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
    os.environ["MLFLOW_TRACKING_URI"] = urlunsplit(parts._replace(netloc=host))
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])


def shown_server() -> str:
    """The tracking URI as it may be shown."""
    return hide_passwords(mlflow.get_tracking_uri())


def server_in_shell() -> str:
    """The tracking URI for a command line; a variable where it needs a password."""
    uri = mlflow.get_tracking_uri()
    needs_password = uri != shown_server() or "MLFLOW_TRACKING_PASSWORD" in os.environ
    return '"$MLFLOW_TRACKING_URI"' if needs_password else shlex.quote(uri)


def page_path(run: Run) -> str:
    """The path of a run's page in MLflow's UI, which would otherwise open for GenAI, without it."""
    info = run.info
    query = "?workflowType=machine_learning"
    return f"#/experiments/{info.experiment_id}/runs/{info.run_id}{query}"


def run_page(run: Run) -> str | None:
    """The address of a run's page if the tracking server has one that a browser can open."""
    server = shown_server()
    return f"{server.rstrip('/')}/{page_path(run)}" if server.startswith("http") else None


def where_to_look(run: Run) -> str:
    """One line: the address of a run's page, or the command that opens it."""
    if page := run_page(run):
        return page
    command = f"mlflow ui --backend-store-uri {server_in_shell()}"
    return f"{command}, then http://127.0.0.1:5000/{page_path(run)}"
