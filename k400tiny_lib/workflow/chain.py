"""`main`: the steps as nested runs that hand artifacts to one another through MLflow."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import ExecutionException

from k400tiny_lib.config import CHAIN, IMAGENET, NONE, Config, parameters_of
from k400tiny_lib.config.parameters import SAMPLE
from k400tiny_lib.console import duration, say
from k400tiny_lib.data.sources.base import Source, open_source
from k400tiny_lib.errors import UserError, hide_passwords
from k400tiny_lib.evaluation.shift.unknown_clips import find_unknown
from k400tiny_lib.registry.delivery import deliver
from k400tiny_lib.remote_files import check_writable
from k400tiny_lib.tracking import runs
from k400tiny_lib.tracking.models import logged_model_id
from k400tiny_lib.tracking.naming import NOTE_TAG, name_run
from k400tiny_lib.tracking.server import page_path, where_to_look
from k400tiny_lib.workflow import signals
from k400tiny_lib.workflow.abandoned import end_abandoned_runs, end_running_children
from k400tiny_lib.workflow.cache import ROOT, cache_key, find_finished

_FEW_CLIPS = 20  # a class


@dataclass(frozen=True)
class Finished:
    """A step of the chain that is done: its run, and whether that run is an older one."""

    step: str
    run: Run
    reused: bool
    seconds: float


class StepFailed(UserError):
    """A nested run has failed.

    Attributes:
        run: the run.
        reason: its message; "" if it ended without one, killed, say.
    """

    def __init__(self, step: str, run: Run) -> None:
        self.run, self.reason = run, run.data.tags.get(runs.ERROR_TAG, "")
        failed = f"{step} failed (run {run.info.run_id})"
        if self.reason:
            super().__init__(f"{failed}: {self.reason}", in_short=f"{failed}, see above")
        else:
            super().__init__(f"{failed}: it ended without a message; see above")


def run_chain(config: Config) -> list[Finished]:
    """Run or re-use every step, in order, as nested runs of the active run.

    Raises:
        UserError: if a source is missing, or a step failed: its name, run and message.
    """
    source = begin(config)
    if config.onnx_dir != NONE:
        check_writable(config.onnx_dir, "onnx_dir")
    if config.unknown_path != NONE:  # not only after the training
        find_unknown(runs.local_copy(config.unknown_path, "unknown_path"))
    config = source.config
    finished: list[Finished] = []
    with nested_runs():
        for step in CHAIN:
            done = _run_or_reuse(step, config, source)
            finished.append(done)
            if step == "prepare_data" and (advice := recipe_advice(config, done.run.data.metrics)):
                say("weights", advice)
            config = _hand_over(config, done, source)
    return finished


def begin(config: Config) -> Source:
    """Check the inputs of training before the first nested run; returns where the clips are.

    Raises:
        UserError: if one of them is missing.
    """
    end_abandoned_runs()
    signals.watch_in_children()
    source = open_source(config)
    source.check()
    _check_initial_weights(config)
    return source


@contextmanager
def nested_runs() -> Iterator[None]:
    """Leave no child of the active run RUNNING behind, however the block ends."""
    parent = runs.active_run_id()
    try:
        yield
    finally:
        end_running_children(parent)
    end_abandoned_runs()  # those that were too new when this run began


def run_prepare_data(source: Source) -> Config:
    """Run or re-use prepare_data for a source; returns its parameters with the inputs of train."""
    return _hand_over(source.config, _run_or_reuse("prepare_data", source.config, source), source)


def _check_initial_weights(config: Config) -> None:
    # Imported where needed: a chain of finished steps is answered without waiting for PyTorch.
    if config.weights == IMAGENET:
        from k400tiny_lib.models.tsn import imagenet_file

        imagenet_file()
    elif config.weights != NONE:
        from k400tiny_lib.models.weights import find_weights

        find_weights(config.weights, config.model)
    if config.load_model != NONE:
        from k400tiny_lib.models.checkpoint import read_checkpoint

        read_checkpoint(runs.local_copy(config.load_model, "load_model"), "load_model")


def recipe_advice(config: Config, metrics: Mapping[str, float]) -> str:
    """Which recipe suits few real clips better than training from scratch; "" if there is none.

    Args:
        config: the parameters of main.
        metrics: `num_clips` and `num_classes` of prepare_data.
    """
    per_class = metrics["num_clips"] / metrics["num_classes"]
    is_from_scratch = config.weights == config.load_model == NONE
    if config.data_path == SAMPLE or not is_from_scratch or per_class >= _FEW_CLIPS:
        return ""
    return (
        f"none, and {int(per_class)} clips a class are few to start from scratch. Better: "
        "-P recipe=small, or with a connection -P recipe=finetune"
    )


def _hand_over(config: Config, done: Finished, source: Source) -> Config:
    """The parameters of the steps after this one, with its artifacts as URIs."""
    uri = f"runs:/{done.run.info.run_id}"
    if done.step == "prepare_data":
        return config.replace(
            data_path=str(source.directory), annotations=f"{uri}/annotations/annotations.json"
        )
    if done.step == "train":
        # The weights are in the checkpoint now.
        return config.replace(checkpoint=f"{uri}/checkpoints/best.pt", weights=NONE)
    if done.step == "evaluate":
        return config.replace(evaluation=uri)
    return config


def _run_or_reuse(step: str, config: Config, source: Source) -> Finished:
    start = time.perf_counter()
    parent = MlflowClient().get_run(runs.active_run_id())
    run = None
    # Clips that are still to be rendered, decoded or fetched have no content to compare.
    if config.use_cache and (step != "prepare_data" or source.is_ready()):
        run = find_finished(step, cache_key(step, config, source), parent.info.experiment_id)
    reused = run is not None
    if run is None:
        say(step, "started")
        run = run_nested(step, config, parent)
    seconds = time.perf_counter() - start
    word = "re-used" if reused else "done"
    say(step, f"{word} in {duration(seconds)}, run {run.info.run_id}")
    if reused and step == "export_onnx" and config.onnx_dir != NONE:
        name, _, number = run.data.tags[runs.MODEL_VERSION_TAG].partition("/")
        print(deliver(MlflowClient().get_model_version(name, number), config.onnx_dir), flush=True)
    return Finished(step, run, reused, seconds)


def run_nested(step: str, config: Config, parent: Run, name: str = "") -> Run:
    """Run a step in a nested run and wait for its end.

    Args:
        step, config: what to run.
        parent: the active run.
        name: of the nested run; "" for that of the step.

    Raises:
        StepFailed: if it failed.
    """
    client, experiment = MlflowClient(), parent.info.experiment_id
    try:
        submitted = mlflow.projects.run(
            str(ROOT),
            entry_point=step,
            parameters=parameters_of(step, config),
            experiment_id=experiment,
            env_manager=config.env_manager,
            run_name=name or step,
        )
    except ExecutionException:
        is_child = f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
        newest = ["attributes.start_time DESC"]
        children = client.search_runs([experiment], is_child, order_by=newest, max_results=1)
        if not children:
            raise
        raise StepFailed(step, children[0]) from None
    return client.get_run(submitted.run_id)


def summarize(finished: list[Finished], config: Config) -> str:
    """Log scores and steps to the parent's run; returns the closing lines for the console."""
    run_of = {done.step: done.run for done in finished}
    scores = run_of["evaluate"].data.metrics
    version = run_of["export_onnx"].data.tags[runs.MODEL_VERSION_TAG]
    # Evaluation comes before export: only now is there a model that the scores can be tied to.
    name, _, number = version.partition("/")
    model_id = logged_model_id(MlflowClient().get_model_version(name, number))
    mlflow.log_metrics(scores, model_id=model_id)
    acc1, low, high = (scores[f"{config.split}_acc1{end}"] for end in ("", "_ci_low", "_ci_high"))
    top1 = f"{config.split} top-1 {acc1:.1f} % (95 % interval {low:.1f} to {high:.1f})"
    note = [] if config.description == NONE else [config.description, ""]
    note += [f"**{top1}**, model `models:/{version}`, recipe `{config.recipe}`", ""]
    note += ["| step | run | | seconds |", "|---|---|---|---|"]
    tags = {runs.MODEL_VERSION_TAG: version}
    for done in finished:
        info = done.run.info
        link = f"[{info.run_id}]({page_path(done.run)})"
        word = "re-used" if done.reused else "new"
        note.append(f"| {done.step} | {link} | {word} | {done.seconds:.0f} |")
        tags[f"k400tiny.run.{done.step}"] = info.run_id
    mlflow.set_tags(tags | {NOTE_TAG: hide_passwords("\n".join(note))})
    parent = MlflowClient().get_run(runs.active_run_id())
    name_run(parent, "main", config, f"top-1 {acc1:.1f} %")
    return f"{top1}\nmodel: models:/{version}\nlook at it: {where_to_look(parent)}"
