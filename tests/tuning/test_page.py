"""The page of a tuning: course, best trials, pictures and a recipe that main takes."""

import csv
import io
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
from mlflow import MlflowClient

from k400tiny_lib.config import Config, resolve
from k400tiny_lib.config.declaration import Range
from k400tiny_lib.config.search import RANGES
from k400tiny_lib.errors import UserError
from k400tiny_lib.tuning import page
from k400tiny_lib.tuning.page import TuningPage
from k400tiny_lib.tuning.plots import plot_importances, plot_trials
from k400tiny_lib.tuning.recipe import recipe_text


def distribution(tried: Range) -> optuna.distributions.BaseDistribution:
    if tried.choices:
        return optuna.distributions.CategoricalDistribution(tried.choices)
    return optuna.distributions.FloatDistribution(tried.low, tried.high, log=tried.log)


def study_of(*trials: tuple[str, dict[str, Any], float | None]) -> optuna.Study:
    """A study in memory; for each trial its end, its values and its val_acc1."""
    study = optuna.create_study(direction="maximize")
    for end, params, acc1 in trials:
        tried = {name: distribution(RANGES[name]) for name in params}
        study.enqueue_trial(params)
        trial = study.ask(tried)
        trial.set_user_attr("end", end)
        run = MlflowClient().create_run("0") if mlflow.active_run() else None
        trial.set_user_attr("run_id", run.info.run_id if run else f"run{trial.number}")
        if acc1 is not None:
            for name, value in (("val_acc1", acc1), ("val_loss", 1.0)):
                trial.set_user_attr(name, value)
            trial.set_user_attr("epoch", 2)
            trial.set_user_attr("last_epoch", 2)
        if end == "finished":
            study.tell(trial, acc1)
        else:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return study


TRIALS = (
    ("finished", {"lr": 0.01, "optimizer": "sgd"}, 50.0),
    ("diverged", {"lr": 1.0, "optimizer": "sgd"}, None),
    ("finished", {"lr": 0.001, "optimizer": "adamw"}, 70.0),
    ("pruned", {"lr": 0.1, "optimizer": "adamw"}, 20.0),
    ("finished", {"lr": 0.002, "optimizer": "sgd"}, 60.0),
)


def test_the_page_shows_the_course_the_best_trials_and_keeps_the_best_checkpoint_only(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(search="lr,optimizer", trials=6, data_path="clips", gt_csv="my labels.csv")
    deleted: list[str] = []
    monkeypatch.setattr(page, "delete_checkpoint", deleted.append)
    with mlflow.start_run() as run:
        untrained = study_of(("diverged", {"lr": 1.0}, None))
        with pytest.raises(UserError, match=r"^search: none of 1 trials was trained to its end"):
            TuningPage(run, untrained, Config(search="lr")).close()
        study = study_of(*TRIALS)
        shown = TuningPage(run, study, config)
        shown.begin("postgresql://me:secret@host/db")
        for trial in study.get_trials(deepcopy=False)[:5]:
            shown.add(trial)
        closing = shown.close()
    client, run_id = MlflowClient(), run.info.run_id
    course = {m.step: m.value for m in client.get_metric_history(run_id, "best_val_acc1")}
    assert course == {1: 50.0, 2: 50.0, 3: 70.0, 4: 70.0, 5: 70.0}
    best = study.best_trial.user_attrs["run_id"]
    assert set(deleted) == {
        t.user_attrs["run_id"] for t in study.trials if t.user_attrs.get("end") == "finished"
    } - {best}
    kept = client.get_run(run_id)
    note = kept.data.tags["mlflow.note.content"]
    assert note.startswith("**val top-1 70.0 %, trial 2: lr 0.001, optimizer adamw**")
    assert "5 of 6 trials (1 pruned, 1 diverged)" in note
    assert f"[2](#/experiments/0/runs/{best}?" in note
    command = (
        "mlflow run . -e main --env-manager local -P data_path=clips -P gt_csv='my labels.csv' "
        f"-P recipe=runs:/{run_id}/tuning/best.yaml"
    )
    assert command in closing
    assert command in note
    output = capsys.readouterr().out
    assert "secret" not in output + str(kept.data.tags)
    assert "trial 1: lr 1, optimizer sgd: diverged in epoch 1 (best" in output
    assert "trial 3: lr 0.1, optimizer adamw: pruned after epoch 2 (20.0 %) (best" in output
    folder = Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/tuning"))
    names = {path.name for path in folder.iterdir()}
    assert names == {"best.yaml", "trials.csv", "parallel_coordinates.png", "importances.png"}
    rows = list(csv.DictReader(io.StringIO((folder / "trials.csv").read_text())))
    assert [row["end"] for row in rows[:5]] == [end for end, *_ in TRIALS]
    assert float(rows[2]["lr"]) == 0.001
    found = resolve("main", {"recipe": str(folder / "best.yaml"), "data_path": "clips"})
    assert (found.lr, found.optimizer) == (0.001, "adamw")


def test_pictures_need_neither_different_scores_nor_many_trials() -> None:
    ranges = {name: RANGES[name] for name in ("lr", "optimizer")}
    for trials in (TRIALS[:1], (TRIALS[0], TRIALS[0]), TRIALS[1:2]):
        study = study_of(*trials)
        plot_trials(study.trials, ranges)
        assert plot_importances(study) is None
    assert plot_importances(study_of(*TRIALS)) is not None


def test_the_recipe_of_the_best_makes_the_training_of_the_best(tmp_path: Path) -> None:
    given = {"recipe": "sample", "num_epochs": "2", "amp": "off", "num_workers": "3"}
    fixed = {"checkpoint_dir": "ck", "data_path": "clips", "label_smoothing": "0.1"}
    config = resolve("tune", given | fixed | {"search": "lr,dropout", "description": "why"})
    best = {"lr": 1.23456789e-05, "dropout": 0.3}
    path = tmp_path / "best.yaml"
    path.write_text(recipe_text(config, best, "Best of 2 trials: 50 %"))
    found = resolve("main", {"recipe": str(path), "data_path": "clips"})
    same = config.replace(**best)
    different = {n for n, v in found.to_dict().items() if v != getattr(same, n)}
    assert different == {
        *("recipe", "search", "description", "checkpoint_dir"),
        *("registered_model_name", "video_model_name"),  # main names them
    }
    # Defaults that change one day change nothing here.
    assert {"momentum: 0.9", "seed: 0", "amp: 'off'"} <= set(path.read_text().splitlines())
