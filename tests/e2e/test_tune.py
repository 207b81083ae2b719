"""The real thing: `mlflow run . -e tune`, continued, and its recipe in `main`."""

import subprocess
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from k400tiny_lib.workflow.command import parse_arguments
from tests.helpers.project import check_out

TINY = {"clip_len": 4, "resize_size": 32, "crop_size": 32, "batch_size": 4, "num_workers": 0}


@pytest.mark.slow
def test_a_study_is_continued_and_its_best_values_are_a_recipe_of_main(
    tiny_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = check_out(tmp_path / "project", f"sqlite:///{tmp_path}/mlflow.db")
    given = {"data_path": tiny_data[0], "gt_csv": tiny_data[1], "search": "lr,optimizer"}
    for trials, line in ((1, "0 have finished, 1 to go"), (2, "1 have finished, 1 to go")):
        command = project.command("tune", **given, **TINY, num_epochs=1, trials=trials)
        done = subprocess.run(
            command,
            env=project.environment(),
            cwd=project.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert line in done.stdout
        assert "epoch 1" not in done.stdout  # what training prints
    assert not list(project.folder.glob("checkpoints/*"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.store)
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(project.store)
    try:
        client = MlflowClient()
        parents = client.search_runs(["0"], "tags.`k400tiny.step` = 'tune'")
        trials = client.search_runs(["0"], "tags.`k400tiny.step` = 'train'")
        assert {run.info.status for run in parents + trials} == {"FINISHED"}
        assert (len(parents), len(trials)) == (2, 2)
        names = sorted(run.info.run_name.split(" · ")[0] for run in trials)
        assert names == ["trial 0", "trial 1"]
        recipe = f"runs:/{parents[0].info.run_id}/tuning/best.yaml"
        config = parse_arguments("main", ["--recipe", recipe])
        best = client.get_run(parents[0].data.tags["k400tiny.run.best"])
        assert config is not None
        assert str(config.lr) == best.data.params["lr"]
        assert (config.num_epochs, config.clip_len) == (1, 4)
        # Of the trials, only the best keeps its checkpoint.
        kept = {
            run.info.run_id: bool(client.list_artifacts(run.info.run_id, "checkpoints"))
            for run in trials
        }
        assert kept == {run.info.run_id: run.info.run_id == best.info.run_id for run in trials}
    finally:
        mlflow.set_tracking_uri(previous)
