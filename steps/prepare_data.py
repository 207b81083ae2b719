"""Bring clips to disk, check them, map their labels and split them by source video.

mlflow run . -e prepare_data --env-manager local -P data_path=frames -P gt_csv=labels.csv
mlflow run . -e prepare_data --env-manager local -P data_path=videos -P gt_csv=videos.csv
mlflow run . -e prepare_data --env-manager local -P data_path=class_folders
mlflow run . -e prepare_data --env-manager local -P data_path=s3://bucket/videos \\
    -P gt_csv=s3://bucket/kinetics.csv -P scheduler=tcp://head:8786
"""

from k400tiny_lib.config import Config
from k400tiny_lib.console import say_result
from k400tiny_lib.workflow.command import step_command


@step_command("prepare_data")
def prepare_data(config: Config) -> None:
    """Prepare the data; log annotations, split tables, report and figures."""
    from k400tiny_lib.data.preparation.prepare import Refused, prepare
    from k400tiny_lib.data.sources.base import open_source
    from k400tiny_lib.tracking.data_log import describe, log_prepared, log_refused
    from k400tiny_lib.tracking.runs import tag_cache_key
    from k400tiny_lib.workflow.cache import cache_key

    source = open_source(config)
    try:
        prepared = prepare(config, source)
    except Refused as error:
        log_refused(error.report)  # which clips and classes are to be mended
        raise
    log_prepared(prepared)
    tag_cache_key(cache_key("prepare_data", config, source))  # its clips have content only now
    say_result(describe(prepared))


if __name__ == "__main__":
    prepare_data()
