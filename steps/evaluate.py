"""Score a checkpoint, or torchvision weights, on a held-out split; tables and a report are logged.

mlflow run . -e evaluate --env-manager local \\
    -P data_path=frames -P annotations=annotations.json -P checkpoint=best.pt
mlflow run . -e evaluate --env-manager local -P data_path=frames -P annotations=annotations.json \\
    -P weights=R2Plus1D_18_Weights.KINETICS400_V1 -P num_clips=5
"""

from k400tiny_lib.config import Config
from k400tiny_lib.console import say_result
from k400tiny_lib.workflow.command import step_command


@step_command("evaluate")
def evaluate(config: Config) -> None:
    """Predict a split in worker processes, score it, log scores, tables and the report."""
    from k400tiny_lib.evaluation.evaluation import evaluate_split
    from k400tiny_lib.tracking.evaluation_log import log_evaluation, other_model
    from k400tiny_lib.tracking.runs import local_inputs

    config = local_inputs(config, "data_path", "annotations", "checkpoint", "unknown_path")
    evaluation = evaluate_split(config, other_model(config))
    log_evaluation(evaluation, config.data_path)
    say_result(evaluation.summary)


if __name__ == "__main__":
    evaluate()
