"""The whole pipeline: prepare_data, train, evaluate, export_onnx as nested runs.

mlflow run . -e main --env-manager local
mlflow run . -e main --env-manager local -P data_path=frames -P gt_csv=labels.csv
"""

from k400tiny_lib.config import Config
from k400tiny_lib.console import say_result
from k400tiny_lib.workflow.command import step_command


@step_command("main")
def main(config: Config) -> None:
    """Chain the steps, re-using what is finished already."""
    from k400tiny_lib.workflow.chain import run_chain, summarize

    finished = run_chain(config)
    say_result(summarize(finished, config))


if __name__ == "__main__":
    main()
