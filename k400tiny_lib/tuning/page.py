"""What a tuning shows: lines on the console, and the page of its run."""

import csv
import io
import shlex
import time
from collections.abc import Sequence

import mlflow
import optuna
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from optuna.trial import FrozenTrial, TrialState

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.config.search import search_ranges
from k400tiny_lib.console import duration
from k400tiny_lib.errors import UserError, hide_passwords
from k400tiny_lib.tracking.naming import NOTE_TAG, name_run
from k400tiny_lib.tracking.server import page_path, where_to_look
from k400tiny_lib.tuning.plots import plot_importances, plot_trials
from k400tiny_lib.tuning.recipe import recipe_text
from k400tiny_lib.tuning.study import FINISHED, shown
from k400tiny_lib.tuning.training import delete_checkpoint

BEST_RECIPE = "tuning/best.yaml"
STUDY_TAG = "k400tiny.study"
BEST_RUN_TAG = "k400tiny.run.best"
VALIDATION_ONLY = (
    "Scores are of the validation clips. The test clips are left for main, which scores the best "
    "parameters on them once."
)
_LISTED = 10


class TuningPage:
    """The page of the active run; `add` brings it up to date after a trial."""

    def __init__(self, run: Run, study: optuna.Study, config: Config) -> None:
        self._run, self._study, self._config = run, study, config
        self._ranges = search_ranges(config.search)
        self._start = time.monotonic()
        self._num_before = self._num_logged = 0
        self._with_checkpoint: set[str] = set()
        self._runs: dict[str, Run | None] = {}
        mlflow.set_tag(STUDY_TAG, study.study_name)

    def begin(self, storage: str) -> None:
        """Say what is to be done."""
        self._num_before = len(self._finished())
        names = ", ".join(f"{n} ({tried.text})" for n, tried in self._ranges.items())
        print(f"study {self._study.study_name} in {hide_passwords(storage)}")
        print(f"search: {names}")
        missing = max(self._config.trials - self._num_before, 0)
        print(f"trials: {self._num_before} have finished, {missing} to go", flush=True)
        self._update()

    def add(self, trial: FrozenTrial) -> None:
        """Show a trial of this process that has finished."""
        num = len(self._finished())
        seconds = (time.monotonic() - self._start) / max(num - self._num_before, 1)
        left = duration(seconds * max(self._config.trials - num, 0))
        best = _best(self._study)
        best_text = f"best {_acc1(best)}, trial {best.number}; " if best else ""
        took = duration(_seconds(trial))
        print(
            f"trial {trial.number}: {shown(trial.params)}: {_result(trial)} "
            f"({best_text}{num} of {self._config.trials}, {took}, about {left} left)",
            flush=True,
        )
        if trial.user_attrs["end"] == "finished":
            self._with_checkpoint.add(trial.user_attrs["run_id"])
        self._update()

    def close(self) -> str:
        """Log the pictures; returns the closing lines for the console.

        Raises:
            UserError: if no trial was trained to its end.
        """
        self._update()
        best = _best(self._study)
        if best is None:
            raise UserError(
                f"search: none of {len(self._finished())} trials was trained to its end (their "
                "loss was not finite). Needed: other fixed parameters, or clip_grad_norm."
            )
        figures = {
            "parallel_coordinates.png": plot_trials(self._finished(), self._ranges),
            "importances.png": plot_importances(self._study),
        }
        for name, figure in figures.items():
            if figure is not None:
                mlflow.log_figure(figure, f"tuning/{name}")
        name_run(self._run, "tune", self._config, f"val top-1 {_acc1(best)}")
        return "\n".join(
            [
                f"best of {len(self._finished())} trials: {_headline(best)}",
                VALIDATION_ONLY,
                self._command(),
                f"look at it: {where_to_look(self._run)}",
            ]
        )

    def _finished(self) -> list[FrozenTrial]:
        """The trials that count, in the order in which they have finished."""
        trials = self._study.get_trials(deepcopy=False, states=FINISHED)
        return sorted(trials, key=lambda t: (t.datetime_complete, t.number))

    def _update(self) -> None:
        finished, best = self._finished(), _best(self._study)
        scores: list[float] = []
        for number, trial in enumerate(finished, start=1):
            if trial.state == TrialState.COMPLETE:
                scores.append(trial.user_attrs["val_acc1"])
            if number > self._num_logged:
                metrics = {"best_val_acc1": max(scores)} if scores else {}
                if "val_acc1" in trial.user_attrs:
                    metrics["val_acc1"] = trial.user_attrs["val_acc1"]
                mlflow.log_metrics(metrics, step=number)
        self._num_logged = len(finished)
        mlflow.log_text(_table(self._study.get_trials(deepcopy=False)), "tuning/trials.csv")
        if best is not None:
            mlflow.set_tag(BEST_RUN_TAG, best.user_attrs["run_id"])
            heading = f"Best of {len(finished)} trials: {_headline(best)}"
            mlflow.log_text(recipe_text(self._config, best.params, heading), BEST_RECIPE)
            for run_id in self._with_checkpoint - {best.user_attrs["run_id"]}:
                delete_checkpoint(run_id)
                self._with_checkpoint.remove(run_id)
        mlflow.set_tag(NOTE_TAG, hide_passwords(self._note(finished, best)))

    def _note(self, finished: Sequence[FrozenTrial], best: FrozenTrial | None) -> str:
        note = [] if self._config.description == NONE else [self._config.description, ""]
        note += [f"**{_headline(best)}**" if best else "No trial was trained to its end yet.", ""]
        ends = [t.user_attrs["end"] for t in finished]
        counts = [f"{n} {end}" for end in ("pruned", "diverged") if (n := ends.count(end))]
        stopped = f" ({', '.join(counts)})" if counts else ""
        note += [f"{len(finished)} of {self._config.trials} trials{stopped}. {VALIDATION_ONLY}", ""]
        if best is not None:
            note += ["```bash", self._command(), "```", ""]
        names = list(self._ranges)
        note += [f"| trial | val top-1 | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
        for trial in sorted(finished, key=_rank)[:_LISTED]:
            values = (_cell(trial.params[n]) for n in names)
            note.append(f"| {self._link(trial)} | {_result(trial)} | {' | '.join(values)} |")
        return "\n".join(note)

    def _command(self) -> str:
        """The command that scores the best parameters on the test clips."""
        config = self._config
        given = {"data_path": config.data_path, "gt_csv": config.gt_csv}
        data = "".join(f" -P {n}={shlex.quote(v)}" for n, v in given.items() if v != NONE)
        recipe = f"runs:/{self._run.info.run_id}/{BEST_RECIPE}"
        return hide_passwords(f"mlflow run . -e main --env-manager local{data} -P recipe={recipe}")

    def _link(self, trial: FrozenTrial) -> str:
        run_id = trial.user_attrs["run_id"]
        if run_id not in self._runs:
            try:
                self._runs[run_id] = MlflowClient().get_run(run_id)
            except MlflowException:  # of a process with another tracking store
                self._runs[run_id] = None
        run = self._runs[run_id]
        return f"[{trial.number}]({page_path(run)})" if run else str(trial.number)


def _best(study: optuna.Study) -> FrozenTrial | None:
    """The best trial; of equal ones the first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(complete, key=lambda t: (t.value, -t.number), default=None)


def _rank(trial: FrozenTrial) -> tuple[bool, float, int]:
    value = trial.value if trial.value is not None else -1.0
    return trial.state != TrialState.COMPLETE, -value, trial.number


def _headline(trial: FrozenTrial) -> str:
    return f"val top-1 {_acc1(trial)}, trial {trial.number}: {shown(trial.params)}"


def _result(trial: FrozenTrial) -> str:
    end, epoch = trial.user_attrs["end"], trial.user_attrs.get("last_epoch", 0)
    if end == "finished":
        return _acc1(trial)
    if not epoch:
        return f"{end} in epoch 1"
    return f"{end} after epoch {epoch} ({_acc1(trial)})"


def _acc1(trial: FrozenTrial) -> str:
    return f"{trial.user_attrs['val_acc1']:.1f} %"


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _seconds(trial: FrozenTrial) -> float:
    return trial.duration.total_seconds() if trial.duration else 0.0


def _table(trials: Sequence[FrozenTrial]) -> str:
    """All trials as CSV, those that failed or are running included."""
    names = sorted({name for trial in trials for name in trial.params})
    attributes = ("val_acc1", "val_loss", "epoch", "run_id")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "end", *attributes, "seconds", *names])
    for trial in trials:
        end = trial.user_attrs.get("end", trial.state.name.lower())
        shown_attributes = (trial.user_attrs.get(a, "") for a in attributes)
        values = (trial.params.get(name, "") for name in names)
        writer.writerow([trial.number, end, *shown_attributes, round(_seconds(trial), 1), *values])
    return text.getvalue()
