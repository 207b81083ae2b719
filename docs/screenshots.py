"""The pictures in `docs/images`: pages of `mlflow ui` and the report of the newest `main`.

    python docs/screenshots.py --store sqlite:///mlflow.db

Needs Chromium. Nothing is staged: the store is one that `mlflow run . -e main` has filled.
"""

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import click
import mlflow
from mlflow import MlflowClient
from PIL import Image

IMAGES = Path(__file__).resolve().parent / "images"
LOAD_MS = 40_000  # pages of mlflow ui are drawn by scripts that ask the server several times
ASSISTANT = 392  # pixels of the assistant's column at the right of every page, which is cut off


@contextlib.contextmanager
def mlflow_ui(store: str) -> Iterator[str]:
    """The address of a server on a store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--workers", "1"]
    server = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(
                    f"{address}/api/2.0/mlflow/experiments/get?experiment_id=0", timeout=5
                )
                break
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


def shoot(name: str, address: str, size: tuple[int, int], *options: str) -> None:
    """Write a picture of a page."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    target, in_ui = IMAGES / f"{name}.png", address.startswith("http:")
    size = (size[0] + ASSISTANT * in_ui, size[1])
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--window-size={size[0]},{size[1]}", f"--virtual-time-budget={LOAD_MS}"]
    subprocess.run(
        [*command, *options, f"--screenshot={target}", address], check=True, capture_output=True
    )
    picture = Image.open(target).crop((0, 0, size[0] - ASSISTANT * in_ui, size[1]))
    picture.convert("RGB").quantize(128).save(target, optimize=True)
    print(target)


@click.command()
@click.option("--store", default="sqlite:///mlflow.db", help="The tracking store.")
def main(store: str) -> None:
    """Take all pictures."""
    mlflow.set_tracking_uri(store)
    client = MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    newest = "tags.`k400tiny.step` = 'main' and attributes.status = 'FINISHED'"
    [run] = client.search_runs(experiments, newest, max_results=1)
    tags, experiment = run.data.tags, run.info.experiment_id
    model = tags["k400tiny.model_version"].rpartition("/")
    IMAGES.mkdir(exist_ok=True)
    with mlflow_ui(store) as address:
        runs = f"{address}/#/experiments/{experiment}/runs"
        training = "workflowType=machine_learning"  # the pages of models, not of agents
        # Sorted by name the list shows nested runs, which it folds up when sorted by time.
        by_name = f"orderByKey={quote('tags.`mlflow.runName`')}&orderByAsc=true"
        shoot("runs", f"{runs}?{training}&{by_name}", (1200, 460))
        shoot("main", f"{runs}/{run.info.run_id}?{training}", (1200, 900))
        train = f"{runs}/{tags['k400tiny.run.train']}/model-metrics?{training}"
        shoot("train", train, (1200, 900))
        version = f"{address}/#/models/{model[0]}/versions/{model[2]}?{training}"
        shoot("model", version, (1200, 800))
    with tempfile.TemporaryDirectory() as folder:
        uri = f"runs:/{tags['k400tiny.run.evaluate']}/evaluation/report.html"
        report = mlflow.artifacts.download_artifacts(uri, dst_path=folder)
        for name, scheme in (("light", 1), ("dark", 0)):
            colors = f"--blink-settings=preferredColorScheme={scheme}"
            shoot(f"report-{name}", f"file://{report}", (1100, 820), colors)


if __name__ == "__main__":
    main()
