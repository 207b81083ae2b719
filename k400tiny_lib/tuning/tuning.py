"""`tune`: one study, its data prepared once, its trials nested runs of train."""

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from k400tiny_lib.config import Config
from k400tiny_lib.config.search import search_ranges
from k400tiny_lib.files import combine_digests
from k400tiny_lib.tracking.runs import active_run_id
from k400tiny_lib.tuning.page import TuningPage
from k400tiny_lib.tuning.storage import open_storage, open_study, storage_errors, storage_url
from k400tiny_lib.tuning.study import Owner, run_trials
from k400tiny_lib.tuning.training import NestedTraining
from k400tiny_lib.workflow.cache import parameter_identities
from k400tiny_lib.workflow.chain import begin, nested_runs, run_prepare_data


def tune_training(config: Config) -> str:
    """Run the trials that are still missing as children of the active run.

    Args:
        config: the parameters of tune.

    Returns:
        The closing lines for the console.

    Raises:
        UserError: if the data, the storage or a training fails, or no trial has a result.
    """
    source = begin(config)
    storage = storage_url(config.storage)
    database = open_storage(storage)
    run = MlflowClient().get_run(active_run_id())
    with nested_runs():
        training_config = run_prepare_data(source)
        train = NestedTraining(run, config.checkpoint_dir, _has_ended)
        owner = Owner(run.info.run_id, _has_ended)
        with storage_errors(storage):
            study = open_study(database, study_name(training_config), config)
            page = TuningPage(run, study, config)
            page.begin(storage)
            run_trials(study, training_config, train, owner, page.add)
            return page.close()


def study_name(config: Config) -> str:
    """The name of the study: the same clips, search and fixed parameters continue the same one.

    Args:
        config: the parameters of tune with the inputs of train.
    """
    ranges = search_ranges(config.search)
    fixed = parameter_identities("train", config, without=ranges)
    tried = (text for name, tried in ranges.items() for text in (name, tried.text))
    return f"tune-{combine_digests([*fixed, *tried])[:12]}"


def _has_ended(run_id: str) -> bool:
    """Whether the run of a tuning has ended; a run of another tracking store is not known to have.

    `begin` has ended those of killed processes of this machine.
    """
    try:
        return str(MlflowClient().get_run(run_id).info.status) != "RUNNING"
    except MlflowException:
        return False
